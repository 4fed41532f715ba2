"""LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.graph.build import operator, reshape
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.graph.recurrence import GRU, LSTM, RNN, Recurrence
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics.recurrent import Weights, named_activations, onnx_layer

_CELLS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
_REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@onnx_rule(*_CELLS)
def recurrent(node: OnnxNode) -> Sequence[Node]:
    cell = _CELLS[node.op]
    node.ignore("hidden_size", "output_sequence")  # the weights say how large it is
    batch_first = node.flag("layout", 0)
    directions = _REVERSE[node.choice("direction", tuple(_REVERSE), "forward")]
    recurrences = _recurrences(node, cell, directions)
    parts = {
        "inputs": _parts(node.input(1), 0),
        "recurrent": _parts(node.input(2), 0),
        "h0": _parts(node.optional(5), 1 if batch_first else 0),
    }
    biases = [_halves(part) for part in _parts(node.optional(3), 0)]
    parts["input_bias"], parts["recurrent_bias"] = ([half[i] for half in biases] for i in range(2))
    if cell == LSTM:
        parts["c0"] = _parts(node.optional(6), 1 if batch_first else 0)
        parts["peepholes"] = [reshape(part, (3, part.shape[0] // 3)) for part in _parts(node.optional(7), 0)]
    weights = [Weights(**{name: nodes[i] for name, nodes in parts.items() if nodes}) for i in range(len(directions))]
    return onnx_layer(node.input(0), weights, recurrences, node.optional(4), batch_first)


def _recurrences(node: OnnxNode, cell: str, directions: Sequence[bool]) -> list[Recurrence]:
    # The schema's default of RNN is for both directions.
    names = node.attribute("activations") if node.has_attribute("activations") else ()
    activations = named_activations(
        cell,
        len(directions),
        names,
        node.attribute("activation_alpha", ()),
        node.attribute("activation_beta", ()),
    )
    clip = node.attribute("clip", None)
    linear = node.flag("linear_before_reset", 0) if cell == GRU else False
    coupled = node.flag("input_forget", 0) if cell == LSTM else False
    return [
        Recurrence(cell, functions, reverse, None if clip is None else float(clip), linear, coupled)
        for functions, reverse in zip(activations, directions, strict=True)
    ]


def _parts(node: Node | None, axis: int) -> list[Node]:
    """What each direction has of an input: the parts along an axis, without it; none of an input that is left out."""
    if node is None:
        return []
    count = node.shape[axis]
    shape = (*node.shape[:axis], *node.shape[axis + 1 :])
    if node.op == CONSTANT:
        return [constant(np.take(node.value, i, axis), node.name) for i in range(count)]
    parts = [node] if count == 1 else operator(relax.op.split, node, count, axis)
    return [reshape(part, shape) for part in parts]


def _halves(node: Node) -> Sequence[Node]:
    """The biases of the input's product and of the recurrent one."""
    if node.op == CONSTANT:
        return [constant(half, node.name) for half in np.split(node.value, 2)]
    halves: Sequence[Node] = operator(relax.op.split, node, 2, 0)
    return halves
