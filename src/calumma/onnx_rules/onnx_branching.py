"""If, Loop and Scan: taken apart where they can be while the model is imported, else graphs inside the graph.

A branch whose condition is a constant is the chosen side. A branch whose sides give different shapes gives the larger
extents, with those at run time beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from tvm import relax, te, tirx

from calumma.core.errors import ModelError
from calumma.extents import run_time_extents as extents
from calumma.graph import control_flow
from calumma.graph.build import expression, operator, reshape, scalar, transpose
from calumma.graph.nodes import CONSTANT, Graph, Node, constant
from calumma.onnx_import.error_text import one_line
from calumma.onnx_import.onnx_node import OnnxNode, Typed
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.onnx_import.repetition import Capture, Repetition, one_element, stacked
from calumma.onnx_import.scope import SubgraphScope, port


@onnx_rule("If")
def branch(node: OnnxNode) -> list[Node]:
    """One of two sub-graphs, whose results have the same types and ranks."""
    condition = one_element(node, node.input(0), "its condition")
    then, otherwise = node.attribute("then_branch"), node.attribute("else_branch")
    if condition.op == CONSTANT:
        return [result.node for result in node.scope.subgraph(then if condition.value else otherwise)]
    sides = [SubgraphScope(node.scope), SubgraphScope(node.scope)]
    results, refusals = _imported(sides, (then, otherwise))
    if len(results[0]) != len(results[1]):
        raise node.refused(f"its branches give {len(results[0])} and {len(results[1])} results", "export it again")
    varying = [_varying(node, index, *pair) for index, pair in enumerate(zip(*results, strict=True))]
    captured = list(dict.fromkeys([*sides[0].captured, *sides[1].captured]))
    one, other = (_side(side, captured, found, varying) for side, found in zip(sides, results, strict=True))
    items = control_flow.branch(condition, captured, one, other, node.name, refusals)
    values, sizes = items[: len(varying)], iter(items[len(varying) :])
    for value, axes in zip(values, varying, strict=True):
        extents.bounded(value, {axis: next(sizes) for axis in axes})
    return [constant(np.zeros(value.shape, value.dtype)) if 0 in value.shape else value for value in values]


def _imported(
    sides: Sequence[SubgraphScope], graphs: Sequence[onnx.GraphProto]
) -> tuple[list[list[Typed]], tuple[str, str]]:
    """What the branches give, and for one that cannot be compiled, why: a run that takes it ends with that."""
    results: list[list[Typed]] = [[], []]
    errors: dict[int, ModelError] = {}
    for index, (side, graph) in enumerate(zip(sides, graphs, strict=True)):
        try:
            results[index] = side.subgraph(graph)
        except ModelError as error:
            errors[index] = error
            side.captured.clear()
    if len(errors) == 2:
        raise errors[0]
    for index in errors:
        results[index] = [Typed(_nothing(other.node), other.element_type) for other in results[1 - index]]
    texts = [f"a branch that could not be compiled is taken: {errors[i]}" if i in errors else "" for i in range(2)]
    return results, (one_line(texts[0]), one_line(texts[1]))


def _nothing(like: Node) -> Node:
    """What stands for a result that is never given."""
    zero = tirx.const(0, like.dtype)
    return expression(lambda: te.compute(like.shape, lambda *i: zero, name="nothing"), name="nothing")


def _varying(node: OnnxNode, index: int, left: Typed, right: Typed) -> dict[int, int]:
    """The axes whose extents depend on which branch is taken: axis -> the largest it can have."""
    one, other = left.node, right.node
    if left.element_type != right.element_type or len(one.shape) != len(other.shape):
        raise node.refused(
            f"its branches give {one.dtype}{list(one.shape)} and {other.dtype}{list(other.shape)} as result {index}",
            "export the model with branches that give the same types and ranks, or with a constant condition",
        )
    return {
        axis: max(sizes)
        for axis, sizes in enumerate(zip(one.shape, other.shape, strict=True))
        if sizes[0] != sizes[1] or axis in one.extents or axis in other.extents
    }


def _side(
    side: SubgraphScope, captured: Sequence[Node], results: Sequence[Typed], varying: Sequence[dict[int, int]]
) -> Graph:
    """A branch as a graph that gives its results in the largest shapes, then their extents."""
    values, sizes = [], []
    for result, axes in zip(results, varying, strict=True):
        shape = [axes.get(axis, size) for axis, size in enumerate(result.node.shape)]
        values.append(extents.filled(result.node, shape))
        sizes += [extents.size_of(result.node, axis) for axis in axes]
    outputs = [*values, *sizes]
    return Graph(
        [side.captured.get(outer) or port(outer) for outer in captured], outputs, [str(i) for i in range(len(outputs))]
    )


@onnx_rule("Loop")
def loop(node: OnnxNode) -> list[Node]:
    """A sub-graph of (iteration, condition, carried...) that gives (condition, carried..., stacked...).

    As in ONNX Runtime, the condition that it gives counts even where none is given to begin with.
    """
    trips = node.optional(0)
    condition = node.optional(1)
    body = node.attribute("body")
    carried = node.typed(2)
    bool_type = onnx.TensorProto.BOOL

    def inputs(iteration: Node, values: Sequence[Typed], _: Capture) -> list[Typed]:
        holds = scalar(True, "bool")  # or the iteration would not be made
        first, second = (_ranked(x, value) for x, value in zip((iteration, holds), body.input, strict=False))
        return [Typed(first, onnx.TensorProto.INT64), Typed(second, bool_type), *values]

    repetition = Repetition(
        node,
        body,
        None if trips is None else one_element(node, trips, "its trip count"),
        None if condition is None else one_element(node, condition, "its condition"),
        carried,
        inputs,
        has_condition=True,
    )
    values, rows = repetition.results()
    return [*values, *rows]


@onnx_rule("Scan", since=9)
def scan(node: OnnxNode) -> list[Node]:
    """A sub-graph of (states..., slices...) that gives (states..., rows...), over slices of tensors along an axis."""
    count, tensors = int(node.attribute("num_scan_inputs")), node.typed()
    states, scanned = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
    axes, directions = node.attribute("scan_input_axes", None), node.attribute("scan_input_directions", None)
    values, rows = _scanned(node, states, scanned, axes or (0,) * count, directions or (0,) * count)
    axes, directions = node.attribute("scan_output_axes", None), node.attribute("scan_output_directions", None)
    return [
        *values,
        *(
            _moved(node, tensor, axis, direction)
            for tensor, axis, direction in zip(
                rows, axes or (0,) * len(rows), directions or (0,) * len(rows), strict=True
            )
        ),
    ]


@onnx_rule("Scan", since=8)
def scan_batches(node: OnnxNode) -> list[Node]:
    """The first form: every tensor has the batch as axis 0 and what is scanned as axis 1."""
    if node.optional(0) is not None:
        raise node.refused("sequence_lens is not supported", "export the model with opset 9 or later")
    count, tensors = int(node.attribute("num_scan_inputs")), node.typed(1)
    directions = node.attribute("directions", None) or (0,) * count
    parts = []
    for index in range(tensors[0].node.shape[0]):
        batch = [Typed(_slice(tensor.node, scalar(index, "int64"), 0), tensor.element_type) for tensor in tensors]
        states, scanned = batch[: len(batch) - count], batch[len(batch) - count :]
        found, rows = _scanned(node, states, scanned, (0,) * count, directions)
        parts.append([*found, *rows])
    return [stacked(list(column)) for column in zip(*parts, strict=True)]


def _scanned(
    node: OnnxNode, states: list[Typed], scanned: list[Typed], axes: Sequence[int], directions: Sequence[int]
) -> tuple[list[Node], list[Node]]:
    if not scanned or len(axes) != len(scanned) or len(directions) != len(scanned):
        raise node.refused(f"{len(scanned)} inputs with {len(axes)} axes are scanned", "export the model again")
    axes = [
        node.normalised_axis(axis, len(t.node.shape), "scan_input_axes") for axis, t in zip(axes, scanned, strict=True)
    ]
    lengths = {tensor.node.shape[axis] for tensor, axis in zip(scanned, axes, strict=True)}
    if len(lengths) > 1:
        raise node.refused(f"inputs of lengths {sorted(lengths)} are scanned together", "export the model again")
    (length,) = lengths

    def inputs(iteration: Node, values: Sequence[Typed], capture: Capture) -> list[Typed]:
        slices = []
        for tensor, axis, backwards in zip(map(capture, scanned), axes, directions, strict=True):
            index = operator(relax.op.subtract, scalar(length - 1, "int64"), iteration) if backwards else iteration
            if iteration.op == CONSTANT:
                index = scalar(length - 1 - int(iteration.value), "int64") if backwards else iteration
            slices.append(Typed(_slice(tensor.node, index, axis), tensor.element_type))
        return [*values, *slices]

    return Repetition(node, node.attribute("body"), scalar(length, "int64"), None, states, inputs).results()


def _ranked(value: Node, declared: onnx.ValueInfoProto) -> Node:
    """A scalar with as many dimensions as a body's input declares."""
    return reshape(value, (1,) * len(declared.type.tensor_type.shape.dim))


def _slice(tensor: Node, index: Node, axis: int) -> Node:
    """The slice of a tensor at an index along an axis."""
    if index.op != CONSTANT:
        return operator(relax.op.take, tensor, index, axis=axis)
    if tensor.op == CONSTANT:
        return constant(np.take(tensor.value, int(index.value), axis), tensor.name)
    start = int(index.value)
    part = operator(relax.op.strided_slice, tensor, axes=[axis], begin=[start], end=[start + 1])
    return reshape(part, (*tensor.shape[:axis], *tensor.shape[axis + 1 :]))


def _moved(node: OnnxNode, rows: Node, axis: int, backwards: int) -> Node:
    """What was stacked along axis 0, in the order and along the axis that the model wants."""
    axis = node.normalised_axis(axis, len(rows.shape), "scan_output_axes")
    if backwards:
        rows = operator(relax.op.flip, rows, axis=0)
    others = list(range(1, len(rows.shape)))
    return transpose(rows, [*others[:axis], 0, *others[axis:]])
