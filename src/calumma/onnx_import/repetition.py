"""A sub-graph that is repeated: unrolled, or a loop of the graph.

A loop of few nodes in all, or one whose carried values change their shapes, is *unrolled*, if the number of its
iterations is known. Any other becomes a loop of the graph (`graph.control_flow`), whose carried values keep their
shapes: where they would change, they have the largest, with the extents at run time beside them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from tvm import relax

from calumma.core.errors import ModelError
from calumma.extents import run_time_extents as extents
from calumma.graph import control_flow
from calumma.graph.build import check_size, operator, reshape, scalar
from calumma.graph.nodes import CONSTANT, INPUT, Graph, Node, constant
from calumma.onnx_import.graph_fields import assign, captured
from calumma.onnx_import.onnx_node import OnnxNode, Typed
from calumma.onnx_import.scope import SubgraphScope, port

_MOST_UNROLLED = 1024
"""Iterations of a loop that is unrolled because its shapes change."""
_FEW_NODES = 64
"""Nodes of all iterations of a loop that is unrolled because it is small: nothing is copied and counted then."""
_MOST_COUNTED = 10_000
"""Iterations whose conditions are computed while a model is imported."""
_MOST_ROWS = 1 << 31
"""A trip count from here on is none: exporters write the largest number for a loop without a limit."""

Capture = Callable[[Typed], Typed]
"""A tensor from outside, as a body reads it."""


@dataclass(frozen=True)
class Repetition:
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
    counted: bool = False
    """Whether `trips` is how many iterations are made, whatever the body says."""

    def results(self) -> tuple[list[Node], list[Node]]:
        """The carried values after the last iteration, and what is stacked over the iterations."""
        count = None if self.counted else self._count()
        if count is not None:
            return dataclasses.replace(self, trips=scalar(count, "int64"), counted=True).results()
        known = self._known_trips()
        small = known is not None and 0 < known * len(self.body.node) <= _FEW_NODES
        kept = functools.partial(_Kept, self)
        ways = [self._unrolled, kept(resizable=False).results]
        for way in ways if small else reversed(ways):
            try:
                return way()
            except ModelError:
                continue
        return kept(resizable=True).results()

    def _known_trips(self) -> int | None:
        if self.condition is not None and self.condition.op == CONSTANT and not self.condition.value:
            return 0
        if self.trips is None or self.trips.op != CONSTANT or self.trips.value >= _MOST_ROWS:
            return None
        return max(int(self.trips.value), 0)

    def _count(self) -> int | None:
        """How many iterations are made, where constants alone decide that: a counter that runs up to a bound."""
        if not self.has_condition or any(x is not None and x.op != CONSTANT for x in (self.trips, self.condition)):
            return None
        needed, graph = _condition_alone(self.body, len(self.carried))
        values = [self.carried[i] for i in needed]
        if any(value.node.op != CONSTANT for value in values):
            return None
        scope, trips, made = self.node.scope.with_weights(self.body), self._known_trips(), 0
        goes_on = trips != 0
        while goes_on and made != trips:
            everything = list(self.carried)
            for i, value in zip(needed, values, strict=True):
                everything[i] = value
            given = self.inputs(scalar(made, "int64"), everything, lambda tensor: tensor)
            try:
                condition, *values = scope.called(graph, given)
            except ModelError:
                return None
            if made == _MOST_COUNTED or any(value.node.op != CONSTANT for value in (condition, *values)):
                return None
            made, goes_on = made + 1, bool(condition.node.value.all())
        return made

    def unchanged(self) -> list[bool]:
        """For each carried value whether the body gives it as it takes it."""
        first = int(self.has_condition)
        names = {node.output[0]: node.input[0] for node in self.body.node if node.op_type == "Identity"}
        found = []
        for index in range(len(self.carried)):
            name, port_name = self.body.output[first + index].name, self.body.input[2 * first + index].name
            while name in names and name != port_name:
                name = names[name]
            found.append(name == port_name)
        return found

    def _taken(self, results: list[Typed]) -> tuple[Node, list[Typed], list[Typed]]:
        """What the body gives: whether to go on, the next carried values, what is to be stacked."""
        first = int(self.has_condition)
        if len(results) < first + len(self.carried):
            raise self.node.refused(f"its body gives {len(results)} results, too few", "export the model again")
        goes_on = one_element(self.node, results[0].node, "its body's condition") if first else scalar(True, "bool")
        return goes_on, results[first : first + len(self.carried)], results[first + len(self.carried) :]

    def _unrolled(self) -> tuple[list[Node], list[Node]]:
        """One copy of the body after the other."""
        if any(given is not None and given.op != CONSTANT for given in (self.trips, self.condition)):
            raise self.node.refused("the number of its iterations is only known at run time")
        trips = self._known_trips()
        scope = self.node.scope.with_weights(self.body)
        values, made, goes_on = self.carried, 0, trips != 0
        rows: list[list[Node]] = []
        while goes_on and (trips is None or made < trips):
            if made == _MOST_UNROLLED:
                raise self.node.refused(f"it takes more than {_MOST_UNROLLED} iterations, whose shapes differ")
            given = self.inputs(scalar(made, "int64"), values, lambda tensor: tensor)
            condition, values, row = self._taken(scope.called(self.body, given))
            if condition.op != CONSTANT:
                raise self.node.refused("whether it goes on is only known at run time")
            rows.append([tensor.node for tensor in row])
            made, goes_on = made + 1, bool(condition.value)
        if not rows:
            raise self.node.refused("it has no iteration")
        columns = [list(column) for column in zip(*rows, strict=True)]
        if any(row.extents or row.shape != column[0].shape for column in columns for row in column):
            raise self.node.refused("the shape of what it stacks changes from one iteration to the next")
        return [value.node for value in values], [stacked(column) for column in columns]


class _Kept:
    """A repetition as a loop of the graph.

    Attributes:
        shapes: those of the carried values, the largest that they can have.
        axes: for each, the axes along which its extent is known at run time only.
    """

    def __init__(self, repetition: Repetition, *, resizable: bool) -> None:
        self.of = repetition
        self.node = repetition.node
        self.trips = repetition._known_trips()
        self.resizable = resizable
        self.unchanged = repetition.unchanged()
        self.shapes = [value.node.shape for value in repetition.carried]
        self.axes = [sorted(value.node.extents) for value in repetition.carried]

    def results(self) -> tuple[list[Node], list[Node]]:
        """As in `Repetition`."""
        self._import()
        if self.resizable and self._grow():
            self._import()
        values = [self._kept(i, before, after) for i, (before, after) in enumerate(self._pairs())]
        if self.trips == 0:
            return [value.node for value in self.of.carried], [_empty(0, row) for row in self.stacked]
        return self._loop(values)

    def _import(self) -> None:
        """Import the body with ports for its carried values."""
        self.region = SubgraphScope(self.node.scope)
        self.iteration = port(scalar(0, "int64"))
        self.ports = [
            self.region.capture(value) if unchanged else self._port(value, shape, axes)
            for value, shape, axes, unchanged in zip(
                self.of.carried, self.shapes, self.axes, self.unchanged, strict=True
            )
        ]
        given = self.of.inputs(self.iteration, self.ports, self.region.capture)
        results = self.region.with_weights(self.of.body).called(self.of.body, given)
        self.goes_on, self.following, self.stacked = self.of._taken(results)
        if self.of.counted:
            self.goes_on = scalar(True, "bool")

    @staticmethod
    def _port(value: Typed, shape: tuple[int, ...], axes: Sequence[int]) -> Typed:
        dtype = value.node.dtype
        if 0 in shape:  # a constant: there is nothing to carry
            return Typed(constant(np.zeros(shape, dtype)), value.element_type)
        held = Node(INPUT, shape=shape, dtype=dtype, name=value.node.name)
        return Typed(extents.bounded(held, {axis: port(scalar(0, "int64")) for axis in axes}), value.element_type)

    def _pairs(self) -> list[tuple[Typed, Typed]]:
        """The carried values as the body reads them, and as it gives them."""
        return list(zip(self.ports, self.following, strict=True))

    def _grow(self) -> bool:
        """Make room for values that change their shapes, if that is bounded; returns whether any does."""
        changed = False
        for index, (before, after) in enumerate(self._pairs()):
            old, new = before.node.shape, after.node.shape
            if len(old) != len(new):
                continue
            axes = {axis for axis in range(len(old)) if old[axis] != new[axis]} | set(after.node.extents)
            growth = [max(b - a, 0) for a, b in zip(old, new, strict=True)]
            if not axes - set(self.axes[index]) or (any(growth) and self.trips is None):
                continue
            self.axes[index] = sorted(axes | set(self.axes[index]))
            self.shapes[index] = tuple(a + (self.trips or 0) * g for a, g in zip(old, growth, strict=True))
            check_size(f"node {self.node.name}", before.node.dtype, self.shapes[index])
            self.growth[index] = growth
            changed = True
        return changed

    @functools.cached_property
    def growth(self) -> dict[int, list[int]]:
        """Carried value -> by how much each of its extents can grow in an iteration."""
        return {}

    def _kept(self, index: int, before: Typed, after: Typed) -> Node:
        """What the body gives as a carried value, in the shape that this keeps."""
        old, new = before.node, after.node
        growth = self.growth.get(index, [0] * len(old.shape))
        fits = (
            before.element_type == after.element_type
            and len(old.shape) == len(new.shape)
            and all(axis in self.axes[index] for axis in new.extents)
            and all(
                b == a or (axis in self.axes[index] and b <= a + growth[axis])
                for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=True))
            )
        )
        if not fits:
            first = self.of.carried[index].node
            raise self.node.refused(
                f"carried value {index} is {_kind(first)} before an iteration and {_kind(new)} after it",
                "export the model with a constant number of iterations, or with values that keep their shapes",
            )
        return extents.filled(new, old.shape)

    def _loop(self, values: list[Node]) -> tuple[list[Node], list[Node]]:
        always = self.of.condition is None or self.of.condition.op == CONSTANT
        exact = always and self.goes_on.op == CONSTANT and bool(self.goes_on.value)
        if self.stacked and self.trips is None:
            raise self.node.refused(
                "what it stacks has as many rows as it makes iterations, of which there is no limit that is known",
                "export the model with a constant number of iterations",
            )
        if any(row.node.extents for row in self.stacked):
            raise self.node.refused("the shape of what it stacks is only known at run time")
        moving = [i for i, shape in enumerate(self.shapes) if 0 not in shape and not self.unchanged[i]]
        sizes = [(i, axis) for i in moving for axis in self.axes[i]]
        full = [row.node for row in self.stacked if 0 not in row.node.shape]
        for row in full:
            check_size(f"node {self.node.name}", row.dtype, (self.trips or 0, *row.shape))
        following = [self.following[i].node for i in range(len(values))]
        inner = Graph(
            [
                self.iteration,
                *(self.ports[i].node for i in moving),
                *(self.ports[i].node.extents[axis] for i, axis in sizes),
                *self.region.captured.values(),
            ],
            [
                self.goes_on,
                *(values[i] for i in moving),
                *(extents.size_of(following[i], axis) for i, axis in sizes),
                *full,
            ],
            [],
        )
        initial = [value.node for value in self.of.carried]
        first = [extents.filled(initial[i], self.shapes[i]) for i in moving]
        first += [extents.size_of(initial[i], axis) for i, axis in sizes]
        made, last, piled = control_flow.loop(
            self.of.trips,
            None if always else self.of.condition,
            first,
            list(self.region.captured),
            inner,
            self.trips or 0,
            self.node.name,
        )
        held = dict(zip(sizes, last[len(moving) :], strict=True))
        for i, value in zip(moving, last, strict=False):
            initial[i] = extents.bounded(value, {axis: held[i, axis] for axis in self.axes[i]})
        piles = iter(piled)
        rows = [_empty(self.trips or 0, row) if 0 in row.node.shape else next(piles) for row in self.stacked]
        return initial, rows if exact else [extents.bounded(row, {0: made}) for row in rows]


def _condition_alone(body: onnx.GraphProto, carried: int) -> tuple[list[int], onnx.GraphProto]:
    """What of a body decides whether to go on.

    Returns:
        Numbers of the carried values that it reads, and a body that gives the condition and these alone.
    """
    producers = {name: node for node in body.node for name in node.output if name}
    ports = {value.name: index - 2 for index, value in enumerate(body.input) if 2 <= index < 2 + carried}
    pending, seen = [body.output[0].name], {""}
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in ports:
            pending.append(body.output[1 + ports[name]].name)
        elif name in producers:
            pending += [*producers[name].input, *captured(producers[name])]
    needed = sorted(index for name, index in ports.items() if name in seen)
    alone = onnx.GraphProto()
    alone.CopyFrom(body)
    assign(alone.node, [node for node in body.node if not seen.isdisjoint(node.output)])
    assign(alone.output, [body.output[0], *(body.output[1 + index] for index in needed)])
    return needed, alone


def one_element(node: OnnxNode, value: Node, what: str) -> Node:
    """A tensor of one element without dimensions."""
    if value.extents or int(np.prod(value.shape)) != 1:
        raise node.refused(f"{what} has shape {list(value.shape)}, expected one element", "export the model again")
    return reshape(value, ())


def stacked(rows: list[Node]) -> Node:
    """Tensors of one shape as the slices of another along a new axis 0."""
    if all(row.op == CONSTANT for row in rows):
        return constant(np.stack([row.value for row in rows]))
    parts = [reshape(row, (1, *row.shape)) for row in rows]
    return parts[0] if len(parts) == 1 else operator(relax.op.concat, parts, axis=0)


def _empty(rows: int, row: Typed) -> Node:
    """So many rows without an element."""
    return constant(np.zeros((rows, *row.node.shape), row.node.dtype), row.node.name)


def _kind(node: Node) -> str:
    """Type and shape, for messages."""
    return f"{node.dtype}{list(node.shape)}"
