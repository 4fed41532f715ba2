"""Recurrent layers as importers make them: the product with the input for all steps at once, then `calumma.recurrent`.

Notation: T steps, N rows of a batch, I inputs, H hidden units, G gates, D directions. A layer in both directions is
two nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from calumma.core.errors import ModelError
from calumma.graph.build import operator, own_operator, reshape, transpose
from calumma.graph.nodes import CONSTANT, RECURRENT, Node, constant
from calumma.graph.recurrence import FUNCTIONS, GRU, LSTM, PARAMETERS, RNN, Activation, Recurrence

_DEFAULTS = {LSTM: ("sigmoid", "tanh", "tanh"), GRU: ("sigmoid", "tanh"), RNN: ("tanh",)}
_TORCH_GATES = {LSTM: "ifco", GRU: "rzh", RNN: "h"}
"""Cell -> gates in the order in which torch's weights hold them."""


_LONG = 16
"""Steps from which a layer of one row computes its gate inputs itself, some steps ahead: more than it looks ahead."""


@dataclass(frozen=True)
class Weights:
    """What a layer reads in one direction, beside its input; None for what it does not have."""

    inputs: Node
    """[G H, I], gates in the order of `graph.recurrence.GATES`, as in the others."""
    recurrent: Node
    """[G H, H]."""
    input_bias: Node | None = None
    recurrent_bias: Node | None = None
    """[G H]."""
    peepholes: Node | None = None
    """[3, H] of the gates i, o, f."""
    h0: Node | None = None
    c0: Node | None = None
    """[N, H]; zero without."""


def default_activations(cell: str) -> tuple[Activation, ...]:
    """The activation functions of a cell that names none."""
    return tuple(Activation(name) for name in _DEFAULTS[cell])


def named_activations(
    cell: str, directions: int, names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]
) -> list[tuple[Activation, ...]]:
    """The activation functions of each direction, from ONNX's attributes.

    Args:
        names: of all directions' functions in order, in any case; none for the defaults.
        alphas, betas: one for each function in turn that has such a parameter; defaults where they end.

    Raises:
        ModelError: a function is unknown, or there are too few or too many.
    """
    if not names:
        return [default_activations(cell)] * directions
    count = FUNCTIONS[cell]
    if len(names) != directions * count:
        raise ModelError(
            f"{len(names)} activation functions, expected {count} for each of {directions} directions; "
            "export the model again"
        )
    given = iter(alphas), iter(betas)
    found = []
    for name in names:
        if name.lower() not in PARAMETERS:
            raise ModelError(f"activation function {name} is not supported, known are {', '.join(PARAMETERS)}")
        defaults = PARAMETERS[name.lower()]
        values = (next(source, default) for source, default in zip(given, defaults, strict=False))
        found.append(Activation(name.lower(), tuple(float(value) for value in values)))
    return [tuple(found[i : i + count]) for i in range(0, len(found), count)]


def recurrent_layer(x: Node, weights: Weights, recurrence: Recurrence, lengths: Node | None = None) -> tuple[Node, ...]:
    """A layer in one direction.

    Args:
        x: [T, N, I].
        lengths: int32 [N], steps of each row; T without.

    Returns:
        h of every step [T, N, H], h after the last one [N, H], and for an LSTM c after the last one [N, H].

    Raises:
        ModelError: it does not compute in float32.
    """
    if x.dtype != "float32":
        raise ModelError(f"a recurrent layer in {x.dtype} is not supported; export the model in float32")
    steps, batch, _ = x.shape
    hidden = weights.recurrent.shape[1]
    h0, c0 = _unless_zero(weights.h0), _unless_zero(weights.c0)
    results = [(batch, hidden)] * (2 if recurrence.cell == LSTM else 1)
    if 0 in (steps, batch, hidden):
        states = [constant(np.zeros((batch, hidden), np.float32)) if given is None else given for given in (h0, c0)]
        return constant(np.zeros((steps, batch, hidden), np.float32)), *states[: len(results)]
    bias, own_bias = _biases(weights, recurrence, hidden)
    if lengths is not None and lengths.op == CONSTANT and (lengths.value >= steps).all():
        lengths = None
    rest = (weights.recurrent, own_bias, _unless_zero(weights.peepholes), h0, c0, lengths)
    args = (*_gate_inputs(x, weights.inputs, bias), *rest)
    return own_operator(RECURRENT, args, recurrence, [(shape, x.dtype) for shape in ((steps, *results[0]), *results)])


def onnx_layer(
    x: Node,
    weights: Sequence[Weights],
    recurrences: Sequence[Recurrence],
    lengths: Node | None = None,
    batch_first: bool = False,
) -> tuple[Node, ...]:
    """The results of ONNX's LSTM, GRU and RNN.

    Args:
        x: [T, N, I], or [N, T, I] with `batch_first`.
        weights, recurrences: one for each of D directions. Their initial states are [N, H].

    Returns:
        Y [T, D, N, H], Y_h [D, N, H], and for an LSTM Y_c [D, N, H]; with `batch_first` Y [N, T, D, H], the others
        [N, D, H].
    """
    if batch_first:
        x = _axes_exchanged(x)
    found = [recurrent_layer(x, w, r, lengths) for w, r in zip(weights, recurrences, strict=True)]
    sequences, *states = zip(*found, strict=True)
    y = _stacked(sequences, 1)
    ends = [_stacked(state, 0) for state in states]
    if batch_first:
        return transpose(y, (2, 0, 1, 3)), *(transpose(end, (1, 0, 2)) for end in ends)
    return y, *ends


def torch_layers(
    x: Node,
    cell: str,
    parameters: Sequence[Node],
    states: Sequence[Node],
    *,
    layers: int,
    biased: bool,
    bidirectional: bool = False,
    batch_first: bool = False,
    activation: str = "tanh",
) -> tuple[Node, ...]:
    """The results of torch's LSTM, GRU and RNN: aten.lstm.input, gru.input, rnn_tanh.input and rnn_relu.input.

    Args:
        x: [T, N, I], or [N, T, I] with `batch_first`.
        parameters: of each layer and direction in turn w_ih [G H, I], w_hh [G H, H], and, if `biased`, b_ih and b_hh
            [G H].
        states: initial h, and for an LSTM c, [layers D, N, H] each.
        activation: of a plain recurrent cell, "tanh" or "relu".

    Returns:
        h of the last layer at every step [T, N, D H] ([N, T, D H]), final h and for an LSTM c, [layers D, N, H] each.

    Raises:
        ModelError: there are more parameters, as an LSTM with projections (`proj_size`) has them.
    """
    directions = 2 if bidirectional else 1
    each = 4 if biased else 2
    if len(parameters) != layers * directions * each:
        raise ModelError(
            f"{len(parameters)} parameters of a recurrent module, expected {layers * directions * each}: projections "
            "(proj_size) are not supported; multiply by them in a module of their own"
        )
    activations = (Activation(activation),) if cell == RNN else default_activations(cell)
    plain = Recurrence(cell, activations, linear_before_reset=cell == GRU)
    initial = [_unstacked(state) for state in states]
    x = _axes_exchanged(x) if batch_first else x
    ends: list[list[Node]] = [[] for _ in states]
    for layer in range(layers):
        sequences = []
        for number in range(layer * directions, (layer + 1) * directions):
            own = [in_onnx_order(p, _TORCH_GATES[cell], cell) for p in parameters[number * each : (number + 1) * each]]
            weights = Weights(*own, **{name: state[number] for name, state in zip(("h0", "c0"), initial, strict=False)})
            reverse = number % directions == 1
            sequence, *last = recurrent_layer(x, weights, replace(plain, reverse=reverse))
            sequences.append(sequence)
            for kept, end in zip(ends, last, strict=True):
                kept.append(end)
        x = sequences[0] if directions == 1 else operator(relax.op.concat, sequences, 2)
    return _axes_exchanged(x) if batch_first else x, *(_stacked(kept, 0) for kept in ends)


def in_onnx_order(node: Node, gates: str, cell: str) -> Node:
    """Weights or a bias [G H, ...] whose gates come in another order, one letter each, in ONNX's."""
    wanted = Recurrence(cell, ()).gates
    if tuple(gates) == wanted:
        return node
    order = [gates.index(gate) for gate in wanted]
    size = node.shape[0] // len(order)
    if node.op == CONSTANT:
        parts = node.value.reshape(len(order), size, *node.shape[1:])[order]
        return constant(parts.reshape(node.shape), node.name)
    parts = operator(relax.op.split, node, len(order), 0)
    return operator(relax.op.concat, [parts[i] for i in order], 0)


def _gate_inputs(x: Node, weight: Node, bias: Node | None) -> tuple[Node, Node | None, Node | None]:
    """What makes the gate inputs: the first three arguments of a node.

    With one row, recurrent products wait for their weights; a long layer computes the product with the input meanwhile.
    """
    steps, batch, inputs = x.shape
    if batch == 1 and steps >= _LONG and all(n is None or n.op == CONSTANT for n in (weight, bias)):
        return x, weight, bias
    product = operator(relax.op.matmul, reshape(x, (steps * batch, inputs)), _transposed(weight))
    if bias is not None:
        product = operator(relax.op.add, product, bias)
    return reshape(product, (steps, batch, product.shape[1])), None, None


def _biases(weights: Weights, recurrence: Recurrence, hidden: int) -> tuple[Node | None, Node | None]:
    """The bias that gate inputs take [G H], and what stays with the recurrent product of a GRU's candidate [H]."""
    given, recurrent = weights.input_bias, _unless_zero(weights.recurrent_bias)
    own = None
    if recurrent is not None and recurrence.cell == GRU and recurrence.linear_before_reset:
        first = 2 * hidden
        if recurrent.op == CONSTANT:
            own = constant(recurrent.value[first:])
            recurrent = constant(np.concatenate([recurrent.value[:first], np.zeros_like(own.value)]))
        else:
            shared, own = operator(relax.op.split, recurrent, [first], 0)
            recurrent = operator(relax.op.concat, [shared, constant(np.zeros(hidden, np.float32))], 0)
    if given is None or recurrent is None:
        return given or recurrent, own
    if given.op == CONSTANT and recurrent.op == CONSTANT:
        return constant(given.value + recurrent.value), own
    return operator(relax.op.add, given, recurrent), own


def _unless_zero(node: Node | None) -> Node | None:
    """None for a constant of zeros."""
    return None if node is not None and node.op == CONSTANT and not node.value.any() else node


def _transposed(node: Node) -> Node:
    return constant(node.value.T, node.name) if node.op == CONSTANT else transpose(node, (1, 0))


def _axes_exchanged(node: Node) -> Node:
    """Steps and rows of [T, N, I] exchanged, without a copy where one of them is 1."""
    first, second, *rest = node.shape
    return reshape(node, (second, first, *rest)) if 1 in (first, second) else transpose(node, (1, 0, 2))


def _stacked(nodes: Sequence[Any], axis: int) -> Node:
    """The nodes along a new axis."""
    wide = [reshape(node, (*node.shape[:axis], 1, *node.shape[axis:])) for node in nodes]
    return wide[0] if len(wide) == 1 else operator(relax.op.concat, wide, axis)


def _unstacked(node: Node) -> list[Node]:
    """The parts of a node along its first axis, without it."""
    if node.op == CONSTANT:
        return [constant(part) for part in node.value]
    count = node.shape[0]
    parts = [node] if count == 1 else operator(relax.op.split, node, count, 0)
    return [reshape(part, node.shape[1:]) for part in parts]
