"""LSTM, GRU and plain recurrent modules, kept whole for the template that they have."""

from __future__ import annotations

from collections.abc import Sequence

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.nodes import Node
from calumma.graph.recurrence import GRU, LSTM, RNN
from calumma.semantics.recurrent import torch_layers

_CELLS = {"lstm": LSTM, "gru": GRU, "rnn_tanh": RNN, "rnn_relu": RNN}


@aten_rule(*(f"{name}.input" for name in _CELLS))
def recurrent(
    node: TorchNode,
    input: Node,
    hx: Node | Sequence[Node],
    params: Sequence[Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Sequence[Node]:
    """A module of layers; dropout between them is of training alone."""
    if train and dropout:
        raise node.refused("dropout between layers is of training; call .eval() on the module before exporting it")
    return torch_layers(
        input,
        _CELLS[node.op],
        params,
        [hx] if isinstance(hx, Node) else hx,
        layers=num_layers,
        biased=has_biases,
        bidirectional=bidirectional,
        batch_first=batch_first,
        activation="relu" if node.op == "rnn_relu" else "tanh",
    )


@aten_rule(*(f"{name}.data" for name in _CELLS))
def packed(node: TorchNode) -> Sequence[Node]:
    raise node.refused("packed sequences have lengths that depend on values, which is not supported")
