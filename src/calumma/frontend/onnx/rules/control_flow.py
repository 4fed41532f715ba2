"""If, Loop and Scan: taken apart where they can be while the model is imported, else graphs inside the graph.

A branch whose condition is a constant is the chosen side. A loop of few nodes in all, or one whose values change their
shapes, is *unrolled*, if the number of its iterations is known; any other becomes a loop of the graph
(`graph.regions`), whose carried values keep their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from tvm import relax

from calumma.core.errors import ModelError
from calumma.frontend.onnx.node import OnnxNode, Typed
from calumma.frontend.onnx.registry import onnx_rule
from calumma.frontend.onnx.scope import Region, port
from calumma.graph import regions
from calumma.graph.build import operator, reshape, scalar, transpose
from calumma.graph.nodes import CONSTANT, Graph, Node, constant

_MOST_UNROLLED = 1024
"""Iterations of a loop that is unrolled because it has to be."""
_FEW_NODES = 64
"""Nodes of all iterations of a loop that is unrolled because it is small: nothing is copied and counted then."""


@onnx_rule("If")
def branch(node: OnnxNode) -> list[Node]:
    """One of two sub-graphs, whose results have the same shapes."""
    condition = _scalar(node, node.input(0), "its condition")
    then, otherwise = node.attribute("then_branch"), node.attribute("else_branch")
    if condition.op == CONSTANT:
        return [result.node for result in node.scope.subgraph(then if condition.value else otherwise, [])]
    sides = [Region(node.scope), Region(node.scope)]
    results = [side.subgraph(graph, []) for side, graph in zip(sides, (then, otherwise), strict=True)]
    if len(results[0]) != len(results[1]):
        raise node.refused(f"its branches give {len(results[0])} and {len(results[1])} results", "export it again")
    for index, (left, right) in enumerate(zip(*results, strict=True)):
        if _kind(left) != _kind(right):
            raise node.refused(
                f"its branches give {_kind(left)} and {_kind(right)} as result {index}",
                "export the model with branches that give the same shapes, or with a constant condition",
            )
    captured = list(dict.fromkeys([*sides[0].captured, *sides[1].captured]))
    one, other = (
        Graph([side.captured.get(outer) or port(outer) for outer in captured], *_outputs(found))
        for side, found in zip(sides, results, strict=True)
    )
    items = regions.branch(condition, captured, one, other, node.name)
    return [constant(np.zeros(item.shape, item.dtype)) if 0 in item.shape else item for item in items]


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

    repetition = _Repetition(
        node,
        body,
        None if trips is None else _scalar(node, trips, "its trip count"),
        None if condition is None else _scalar(node, condition, "its condition"),
        carried,
        inputs,
        has_condition=True,
    )
    values, stacked = repetition.results()
    return [*values, *stacked]


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
    return [_stacked(list(column)) for column in zip(*parts, strict=True)]


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

    return _Repetition(node, node.attribute("body"), scalar(length, "int64"), None, states, inputs).results()


Capture = Callable[[Typed], Typed]
"""A tensor from outside, as a body reads it."""


@dataclass(frozen=True)
class _Repetition:
    """A sub-graph that is repeated."""

    node: OnnxNode
    body: onnx.GraphProto
    trips: Node | None
    """The most iterations; None for no limit."""
    condition: Node | None
    """Whether to begin; None if so."""
    carried: list[Typed]
    inputs: Callable[[Node, Sequence[Typed], Capture], list[Typed]]
    """(iteration, carried values, capture) -> what the body is given."""
    has_condition: bool = False
    """Whether the first of the body's results says whether to go on."""

    def results(self) -> tuple[list[Node], list[Node]]:
        """The carried values after the last iteration, and what is stacked over the iterations."""
        known = self._known_trips()
        small = known is not None and known > 0 and known * len(self.body.node) <= _FEW_NODES
        ways = (self._unrolled, self._kept) if small else (self._kept, self._unrolled)
        errors = []
        for way in ways:
            try:
                return way()
            except ModelError as error:
                errors.append(error)
        raise errors[ways.index(self._kept)]

    def _known_trips(self) -> int | None:
        if self.condition is not None and self.condition.op == CONSTANT and not self.condition.value:
            return 0
        return max(int(self.trips.value), 0) if self.trips is not None and self.trips.op == CONSTANT else None

    def _taken(self, results: list[Typed]) -> tuple[Node, list[Typed], list[Typed]]:
        """What the body gives: whether to go on, the next carried values, what is to be stacked."""
        first = int(self.has_condition)
        if len(results) < first + len(self.carried):
            raise self.node.refused(f"its body gives {len(results)} results, too few", "export the model again")
        goes_on = _scalar(self.node, results[0].node, "its body's condition") if first else scalar(True, "bool")
        return goes_on, results[first : first + len(self.carried)], results[first + len(self.carried) :]

    def _unrolled(self) -> tuple[list[Node], list[Node]]:
        """One copy of the body after the other."""
        trips = self._known_trips()
        if any(given is not None and given.op != CONSTANT for given in (self.trips, self.condition)):
            raise self.node.refused("the number of its iterations is only known at run time")
        values, made, goes_on = self.carried, 0, trips != 0
        rows: list[list[Node]] = []
        while goes_on and (trips is None or made < trips):
            if made == _MOST_UNROLLED:
                raise self.node.refused(f"it takes more than {_MOST_UNROLLED} iterations, whose shapes differ")
            given = self.inputs(scalar(made, "int64"), values, lambda tensor: tensor)
            condition, values, row = self._taken(self.node.scope.subgraph(self.body, given))
            if condition.op != CONSTANT:
                raise self.node.refused("whether it goes on is only known at run time")
            rows.append([tensor.node for tensor in row])
            made, goes_on = made + 1, bool(condition.value)
        if not rows:
            raise self.node.refused("it has no iteration")
        columns = [list(column) for column in zip(*rows, strict=True)]
        if any(len({row.shape for row in column}) > 1 for column in columns):
            raise self.node.refused("the shape of what it stacks changes from one iteration to the next")
        return [value.node for value in values], [_stacked(column) for column in columns]

    def _kept(self) -> tuple[list[Node], list[Node]]:
        """A loop of the graph."""
        node, known = self.node, self._known_trips()
        region = Region(node.scope)
        iteration = port(scalar(0, "int64"))
        # A value with an extent of 0 is a constant: there is nothing to carry.
        ports = [v if 0 in v.node.shape else Typed(port(v.node), v.element_type) for v in self.carried]
        results = region.subgraph(self.body, self.inputs(iteration, ports, region.capture))
        goes_on, following, stacked = self._taken(results)
        for index, (before, after) in enumerate(zip(self.carried, following, strict=True)):
            if _kind(before) != _kind(after):
                raise node.refused(
                    f"carried value {index} is {_kind(before)} before an iteration and {_kind(after)} after it",
                    "export the model with a constant number of iterations, or with values that keep their shapes",
                )
        if known == 0:
            return [value.node for value in self.carried], [_empty(0, row) for row in stacked]
        always = self.condition is None or self.condition.op == CONSTANT
        if stacked and not (always and goes_on.op == CONSTANT and goes_on.value and known is not None):
            # With a bound on the iterations, the results cropped to how many were made: `regions.loop` gives that.
            raise node.refused(
                "what it stacks has as many rows as it makes iterations, which is only known at run time",
                "export the model with a constant number of iterations",
            )
        moving = [i for i, value in enumerate(self.carried) if 0 not in value.node.shape]
        full = [row.node for row in stacked if 0 not in row.node.shape]
        inner = Graph(
            [iteration, *(ports[i].node for i in moving), *region.captured.values()],
            [goes_on, *(following[i].node for i in moving), *full],
            [value.name for value in self.body.output],
        )
        initial = [self.carried[i].node for i in moving]
        condition = None if always else self.condition
        _, final, piled = regions.loop(
            self.trips, condition, initial, list(region.captured), inner, known or 0, node.name
        )
        last = dict(zip(moving, final, strict=True))
        piles = iter(piled)
        return (
            [last.get(i, value.node) for i, value in enumerate(self.carried)],
            [_empty(known or 0, row) if 0 in row.node.shape else next(piles) for row in stacked],
        )


def _outputs(results: Sequence[Typed]) -> tuple[list[Node], list[str]]:
    """The outputs of a graph, and names for them."""
    return [result.node for result in results], [str(index) for index in range(len(results))]


def _empty(rows: int, row: Typed) -> Node:
    """So many rows without an element."""
    return constant(np.zeros((rows, *row.node.shape), row.node.dtype), row.node.name)


def _kind(tensor: Typed) -> str:
    """Type and shape."""
    return f"{tensor.node.dtype}{list(tensor.node.shape)}"


def _scalar(node: OnnxNode, value: Node, what: str) -> Node:
    """A tensor of one element without dimensions."""
    if int(np.prod(value.shape)) != 1:
        raise node.refused(f"{what} has shape {list(value.shape)}, expected one element", "export the model again")
    return reshape(value, ())


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


def _stacked(rows: list[Node]) -> Node:
    """Tensors of one shape as the slices of another along a new axis 0."""
    if all(row.op == CONSTANT for row in rows):
        return constant(np.stack([row.value for row in rows]))
    parts = [reshape(row, (1, *row.shape)) for row in rows]
    return parts[0] if len(parts) == 1 else operator(relax.op.concat, parts, axis=0)


def _moved(node: OnnxNode, stacked: Node, axis: int, backwards: int) -> Node:
    """What was stacked along axis 0, in the order and along the axis that the model wants."""
    axis = node.normalised_axis(axis, len(stacked.shape), "scan_output_axes")
    if backwards:
        stacked = operator(relax.op.flip, stacked, axis=0)
    others = list(range(1, len(stacked.shape)))
    return transpose(stacked, [*others[:axis], 0, *others[axis:]])
