"""The function of a recurrent layer before it is scheduled, and its weights in the form that it takes.

A recurrence is no tensor expression: every step reads what the one before has written. So the function is a block of
loops, the plainest tiling of `recurrent_loops`, annotated with what the layer computes, from which its design space
makes every other one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx, topi
from tvm.tirx.script import builder as T

from calumma.contractions.recurrent.recurrent_loops import RecurrentLayer, RecurrentLoops, Tiling
from calumma.core.values import MAGNITUDES
from calumma.graph.recurrence import GRU, LSTM, Recurrence
from calumma.space.blocks import OPERATOR
from calumma.space.loops import OPERATIONS

NAME = "recurrent"
LAYER = "calumma.recurrent.layer"
"""Annotation of the block: the layer as JSON."""
_ACTIVATION_OPERATIONS = 20
"""Operations of an activation function, about: what a polynomial of float32's precision takes."""
_ELEMENTWISE_OPERATIONS = {LSTM: 4, GRU: 4}
"""Cell -> operations that join its gates, per hidden unit."""


def recurrent(layer: RecurrentLayer) -> tirx.PrimFunc:
    """The function of a layer, unscheduled; arguments as `recurrent_loops` lists them."""

    def describe(reads: Sequence[Any], writes: Sequence[Any]) -> None:
        T.reads(*(_whole(buffer) for buffer in reads))
        T.writes(*(_whole(buffer) for buffer in writes))
        T.sblock_attr({OPERATOR: NAME, LAYER: layer_text(layer), OPERATIONS: operations(layer)})

    function = RecurrentLoops(layer, Tiling(vectors=False)).function(describe)
    # Weights as large as other arguments would make a chaotic system of it: rounding errors would grow with every step.
    magnitudes = [1.0] * len(function.params)
    first = 1
    if layer.inputs:
        magnitudes[1], first = layer.inputs**-0.5, 3
    magnitudes[first : first + len(layer.phases)] = [layer.hidden**-0.5] * len(layer.phases)
    if layer.lengths:
        magnitudes[next(i for i, p in enumerate(function.params) if p.dtype == "int32")] = float(layer.steps)
    return function.with_attr(MAGNITUDES, magnitudes)


def operations(layer: RecurrentLayer) -> int:
    """Floating-point operations of a layer."""
    recurrence, hidden = layer.recurrence, layer.hidden
    gates = sum(len(phase) for phase in layer.phases)
    activations = len(recurrence.gates) + (recurrence.cell == LSTM)
    joining = _ELEMENTWISE_OPERATIONS.get(recurrence.cell, 0)
    per_unit = gates * (2 * hidden + 1) + activations * _ACTIVATION_OPERATIONS + joining
    per_unit += len(recurrence.gates) * 2 * layer.inputs
    return layer.steps * layer.batch * hidden * per_unit


def layer_text(layer: RecurrentLayer) -> str:
    """A layer as JSON."""
    return json.dumps({**asdict(layer), "recurrence": layer.recurrence.to_text()})


def layer_from(text: str) -> RecurrentLayer:
    """The layer that `layer_text` wrote."""
    fields = json.loads(text)
    return RecurrentLayer(
        **{**fields, "recurrence": Recurrence.from_text(fields["recurrence"]), "initial": tuple(fields["initial"])}
    )


def pack_weights(weight: NDArray[np.float32], layer: RecurrentLayer) -> list[NDArray[np.float32]]:
    """Recurrent weights (G H, H) -> one array [B, K, g, L] per phase, lanes beyond H zero."""
    hidden, lanes, blocks = layer.hidden, layer.lanes, layer.blocks
    full = np.zeros((len(layer.recurrence.gates), blocks * lanes, hidden), np.float32)
    full[:, :hidden] = weight.reshape(-1, hidden, hidden)
    blocked = full.reshape(-1, blocks, lanes, hidden)
    places = [[layer.recurrence.gates.index(gate) for gate in phase] for phase in layer.phases]
    return [np.ascontiguousarray(blocked[place].transpose(1, 3, 0, 2)) for place in places]


def pack_input_weights(weight: NDArray[np.float32], layer: RecurrentLayer) -> NDArray[np.float32]:
    """Input weights (G H, I) -> [B, G, I, L], a bias (G H, 1) -> [B, G, 1, L]; lanes beyond H zero."""
    hidden, lanes, blocks = layer.hidden, layer.lanes, layer.blocks
    full = np.zeros((len(layer.recurrence.gates), blocks * lanes, weight.shape[1]), np.float32)
    full[:, :hidden] = weight.reshape(-1, hidden, weight.shape[1])
    return np.ascontiguousarray(full.reshape(-1, blocks, lanes, weight.shape[1]).transpose(1, 0, 3, 2))


def packed_weights(weight: te.Tensor, layer: RecurrentLayer, phase: int) -> te.Tensor:
    """The same of weights that the model computes: [G H, H] -> [B, K, g, L] of one phase."""
    hidden, lanes = layer.hidden, layer.lanes
    gates = [layer.recurrence.gates.index(gate) for gate in layer.phases[phase]]

    def packed(b: tirx.Var, k: tirx.Var, g: tirx.Var, lane: tirx.Var) -> tirx.Expr:
        gate: tirx.Expr = tirx.const(gates[0], "int32")
        for number, place in enumerate(gates[1:], 1):
            gate = tirx.Select(g == number, tirx.const(place, "int32"), gate)
        unit = b * lanes + lane
        value = weight[gate * hidden + tirx.min(unit, hidden - 1), k]
        return value if hidden % lanes == 0 else tirx.if_then_else(unit < hidden, value, tirx.const(0.0, "float32"))

    return te.compute((layer.blocks, hidden, len(gates), lanes), packed, name="packed_weights")


def padded_vectors(vectors: NDArray[np.float32], layer: RecurrentLayer) -> NDArray[np.float32]:
    """(..., H) -> (..., B L), zeros beyond H."""
    padding = [(0, 0)] * (vectors.ndim - 1) + [(0, layer.blocks * layer.lanes - layer.hidden)]
    return np.pad(vectors, padding)


def padded(vectors: te.Tensor, layer: RecurrentLayer) -> te.Tensor:
    """The same of vectors that the model computes."""
    after = layer.blocks * layer.lanes - layer.hidden
    rank = len(vectors.shape)
    return topi.nn.pad(vectors, [0] * rank, [0] * (rank - 1) + [after], name="padded")


def _whole(buffer: Any) -> Any:
    return buffer[tuple(slice(0, int(extent)) for extent in buffer.shape)]
