"""What a recurrent layer computes, as a value: the attributes of a `calumma.recurrent` node."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

LSTM, GRU, RNN = "lstm", "gru", "rnn"
GATES = {LSTM: ("i", "o", "f", "c"), GRU: ("z", "r", "h"), RNN: ("h",)}
"""Cell -> its gates in the order in which weights and gate inputs hold them, which is ONNX's."""
FUNCTIONS = {LSTM: 3, GRU: 2, RNN: 1}
"""Cell -> its activation functions: of the gates f, of the candidate g, of the output h, as far as it has them."""

PARAMETERS: dict[str, tuple[float, ...]] = {
    "sigmoid": (),
    "tanh": (),
    "relu": (),
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01,),
    "thresholdedrelu": (1.0,),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0,),
    "softsign": (),
    "softplus": (),
}
"""Activation function -> defaults of its parameters: none, alpha, or alpha and beta."""


@dataclass(frozen=True)
class Activation:
    """An activation function with its parameters."""

    name: str
    """A key of `PARAMETERS`."""
    parameters: tuple[float, ...] = ()
    """As many as there are defaults."""


@dataclass(frozen=True)
class Recurrence:
    """A cell, and how it walks along the sequence. Source: ONNX's LSTM, GRU and RNN, version 22."""

    cell: str
    """One of LSTM, GRU, RNN."""
    activations: tuple[Activation, ...]
    """As many as `FUNCTIONS` says."""
    reverse: bool = False
    """From the last step to the first."""
    clip: float | None = None
    """What the activation functions of gates and candidate are given is clipped to [-clip, clip]; that of an LSTM's
    output is not, as in ONNX Runtime."""
    linear_before_reset: bool = False
    """GRU: the reset gate multiplies the candidate's recurrent product and its bias, not the state before it."""
    input_forget: bool = False
    """LSTM: the forget gate is 1 - the input gate."""

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates, in order."""
        return GATES[self.cell]

    def to_text(self) -> str:
        """The value as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Recurrence:
        """The value that `to_text` wrote."""
        fields: dict[str, Any] = json.loads(text)
        activations = tuple(Activation(a["name"], tuple(a["parameters"])) for a in fields.pop("activations"))
        return cls(activations=activations, **fields)
