"""Slices whose bounds may be known at run time only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.core.errors import ModelError
from calumma.expressions.integers import index_value
from calumma.expressions.statements import constant as number
from calumma.expressions.statements import counter, kernel
from calumma.extents.run_time_extents import bounded, empty, refuse, size_of
from calumma.graph.build import cast, expression
from calumma.graph.context import INJECTIVE
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.semantics import movement

_TO_THE_END = (2**31 - 1, 2**63 - 1)
"""Ends that stand for the end of the axis, which is its start where a step is negative: as in ONNX Runtime."""


def sliced(x: Node, starts: Node, ends: Node, axes: Node | None = None, steps: Node | None = None) -> Node:
    """Elements `start`, `start + step`, ... before `end` of some axes, as NumPy's slices and ONNX's Slice count.

    Args:
        starts, ends: vectors of integers; negative ones count from the end, those outside are clamped.
        axes: of the same length; None: the first ones.
        steps: of the same length, not zero; None: 1.
    """
    given = [starts, ends, *(node for node in (axes, steps) if node is not None)]
    if any(len(node.shape) != 1 or node.shape != starts.shape for node in given):
        raise ModelError(f"starts, ends, axes and steps of shapes {[list(node.shape) for node in given]}")
    for node in given:
        for axis in node.extents:
            raise refuse(axis, "these are the bounds of a slice")
    rank, count = len(x.shape), starts.shape[0]
    if axes is not None and axes.op != CONSTANT:
        touched = list(range(rank))
    else:
        touched = list(range(count)) if axes is None else [int(axis) for axis in axes.value]
        if any(not -rank <= axis < rank for axis in touched) or len({axis % rank for axis in touched}) < count:
            raise ModelError(f"axes {touched} of a tensor with {rank} dimensions")
        touched = [axis % rank for axis in touched]
    if steps is not None and steps.op == CONSTANT and not np.all(steps.value):
        raise ModelError("a step is 0")
    if all(node.op == CONSTANT for node in given) and not any(axis in x.extents for axis in touched):
        values = [[1] * count if node is None else [int(v) for v in node.value] for node in (starts, ends, steps)]
        return _fixed(x, {axis: (values[0][i], values[1][i], values[2][i]) for i, axis in enumerate(touched)})
    return _at_run_time(x, starts, ends, axes, steps, touched)


def _fixed(x: Node, slices: Mapping[int, tuple[int, int, int]]) -> Node:
    found = {axis: _range(x.shape[axis], *bounds) for axis, bounds in slices.items()}
    found = {axis: places for axis, places in found.items() if places != range(x.shape[axis])}
    extents = {axis: extent for axis, extent in x.extents.items() if axis not in found}
    parts = {a: slice(taken.start, taken.stop if taken.stop >= 0 else None, taken.step) for a, taken in found.items()}
    return bounded(movement.sliced(x, parts), extents) if found else x


def _range(size: int, start: int, end: int, step: int) -> range:
    """The indices of a slice. A start before the axis is its first element for any step, unlike in NumPy."""
    if step < 0 and end in _TO_THE_END:
        end = -size - 1
    start, end = (place + size if place < 0 else place for place in (start, end))
    most, least = (size, 0) if step > 0 else (size - 1, -1)
    places = range(max(min(start, most), 0), max(min(end, most), least), step) if size else range(0)
    return places or range(0)


def _at_run_time(
    x: Node, starts: Node, ends: Node, axes: Node | None, steps: Node | None, touched: Sequence[int]
) -> Node:
    """A slice in a tensor of the largest size that it may have: for a step of s, size / |s| of each axis touched."""
    rank = len(x.shape)
    shape = list(x.shape)
    if steps is not None and steps.op == CONSTANT and (axes is None or axes.op == CONSTANT):
        for axis, step in zip(touched, steps.value, strict=True):
            shape[axis] = -(-shape[axis] // abs(int(step)))
    if 0 in shape:
        return empty(constant(np.zeros(shape, x.dtype)), {*touched, *x.extents})
    order = axes if axes is not None else constant(np.array(touched, np.int64))
    strides = steps if steps is not None else constant(np.ones(starts.shape, np.int64))
    vectors = [cast(node, "int64") for node in (starts, ends, order, strides)]
    sizes = [size_of(x, axis) for axis in range(rank)]
    first, step, extent = expression(lambda *t: _places(t[:4], t[4:]), *vectors, *sizes, name="slice_places")

    def taken(t: te.Tensor, first: te.Tensor, step: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            places: list[Any] = list(i)
            for axis in touched:
                place = first(axis) + index_value(i[axis]) * step(axis)
                places[axis] = tirx.max(tirx.min(place, number(x.shape[axis] - 1)), number(0))
            return t(*places)

        return te.compute(shape, element, name="slice")

    result = expression(taken, x, first, step, name="slice", kind=INJECTIVE)
    extents = dict(x.extents)
    for axis in touched:
        extents[axis] = expression(
            lambda t, axis=axis: te.compute((), lambda: t(axis), name="scalar"), extent, name="scalar"
        )
    return bounded(result, extents)


def _places(vectors: Sequence[te.Tensor], sizes: Sequence[te.Tensor]) -> list[te.Tensor]:
    """First index, step and extent of a slice, for every axis: int64 (rank,). A step of 0 selects nothing."""
    count, rank = int(vectors[0].shape[0]), len(sizes)

    def body(starts: Any, ends: Any, axes: Any, steps: Any, *rest: Any) -> None:
        extents, (first, stride, length) = rest[:rank], rest[rank:]
        for axis, size in enumerate(extents):
            first[axis], stride[axis], length[axis] = number(0), number(1), size[0]
        start, end = counter("int64"), counter("int64")
        with T.serial(0, count) as j:
            for axis, size in enumerate(extents):
                with T.If(tirx.any(axes[j] == number(axis), axes[j] == number(axis - rank))), T.Then():
                    step = T.Bind(tirx.max(steps[j], number(1 - 2**63)))
                    forward = T.Bind(step > number(0))
                    most = T.Bind(tirx.Select(forward, size[0], size[0] - number(1)))
                    least = T.Bind(tirx.Select(forward, number(0), number(-1)))
                    for place, given in ((start, starts[j]), (end, ends[j])):
                        place[0] = tirx.Select(given < number(0), given + size[0], given)
                    to_the_end = tirx.any(*(ends[j] == number(most) for most in _TO_THE_END))
                    end[0] = tirx.Select(tirx.all(tirx.Not(forward), to_the_end), number(-1), end[0])
                    start[0] = tirx.max(tirx.min(start[0], most), number(0))
                    end[0] = tirx.max(tirx.min(end[0], most), least)
                    reach = T.Bind(tirx.Select(forward, end[0] - start[0], start[0] - end[0]))
                    width = T.Bind(tirx.max(tirx.Select(forward, step, number(0) - step), number(1)))
                    whole = tirx.indexdiv(reach - number(1), width) + number(1)
                    selects = tirx.all(step != number(0), reach > number(0), size[0] > number(0))
                    first[axis], stride[axis] = start[0], step
                    length[axis] = tirx.Select(selects, whole, number(0))

    return kernel("slice_places", body, [*vectors, *sizes], [((rank,), "int64")] * 3)
