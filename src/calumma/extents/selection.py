"""Operators that select: their results are as long as the values say, up to a bound that is known.

Functions of graph nodes, whatever format the model comes in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax, te, tirx

from calumma.core.errors import ModelError
from calumma.expressions import compaction, sorting
from calumma.extents.run_time_extents import (
    bounded,
    empty,
    fresh,
    highest,
    lowest,
    masked,
    refuse,
    scalar_of,
    size_of,
    without,
)
from calumma.graph.build import expression, operator, reshape, transpose
from calumma.graph.nodes import CONSTANT, Node, constant


def nonzero(x: Node) -> Node:
    """Where a tensor is not zero, in row-major order: indices (rank, count), int64; a scalar counts as a vector."""
    x = masked(x, range(len(x.shape)), 0) if x.shape else reshape(x, (1,))
    if 0 in x.shape:
        return constant(np.zeros((len(x.shape), 0), np.int64))
    found, count = _positions(x)

    def unravelled(flat: te.Tensor) -> te.Tensor:
        shape = (len(x.shape), flat.shape[0])
        return te.compute(shape, lambda axis, i: _coordinate(flat(i), axis, x.shape), name="unravelled")

    return bounded(expression(unravelled, found, name="unravelled"), {1: count})


def first_nonzero(x: Node, count: int, fill: int) -> Node:
    """Where the first elements of a tensor are that are not zero, in row-major order, one per row: int64 (count, rank).

    Args:
        fill: what stands in the rows behind the last of them.
    """
    rank = len(x.shape)
    if 0 in (count, rank, *x.shape):
        return constant(np.full((count, rank), fill, np.int64))
    found, held = _positions(x)
    last = found.shape[0] - 1

    def rows(flat: te.Tensor, number: te.Tensor) -> te.Tensor:
        def element(i: tirx.Var, axis: tirx.Var) -> tirx.Expr:
            value = _coordinate(flat(tirx.min(i, last)), axis, x.shape)
            return tirx.Select(i.astype("int64") < number(), value, tirx.const(fill, "int64"))

        return te.compute((count, rank), element, name="first_nonzero")

    return expression(rows, found, held, name="first_nonzero")


def _coordinate(place: tirx.Expr, axis: tirx.Var, shape: Sequence[int]) -> tirx.Expr:
    """The index along an axis of the element of a shape that has a number in order."""
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    value = place
    for number, (stride, size) in enumerate(zip(strides, shape, strict=True)):
        index = tirx.indexdiv(place, tirx.const(int(stride), "int64"))
        index = index if number == 0 else tirx.indexmod(index, tirx.const(size, "int64"))
        value = tirx.Select(axis == number, index, value)
    return value


def _positions(x: Node) -> tuple[Node, Node]:
    """Where the elements of a tensor are not zero, in row-major order, and how many they are."""
    found, count = expression(compaction.positions, reshape(x, (math.prod(x.shape),)), name="positions")
    return found, count


def compress(x: Node, condition: Node, axis: int | None) -> Node:
    """The slices of an axis, or the elements of the flattened tensor, for which a condition holds.

    Args:
        condition: a vector; what is longer of both it and the axis is cut.
        axis: None flattens.
    """
    if axis is None:
        x, axis = _flattened(x), 0
    most = min(x.shape[axis], condition.shape[0])
    others = {other: extent for other, extent in x.extents.items() if other != axis}
    if condition.op == CONSTANT and axis not in x.extents:
        taken = constant(np.flatnonzero(condition.value[:most]))
        return bounded(_taken(x, taken, axis), others)
    held = _shortened(masked(condition, (0,), False), most)
    if axis in x.extents:
        held = masked(bounded(fresh(held), {0: x.extents[axis]}), (0,), False)
    if 0 in (most, *x.shape):
        return empty(constant(np.zeros((*x.shape[:axis], most, *x.shape[axis + 1 :]), x.dtype)), (axis, *others))
    found, count = _positions(held)
    return bounded(_taken(x, found, axis), {**others, axis: count})


def _flattened(x: Node) -> Node:
    if len(x.shape) == 1:
        return x
    if any(x.extents):
        raise refuse(max(x.extents), "it is not the first of what is flattened")
    rest = math.prod(x.shape[1:])
    flat = reshape(x, (math.prod(x.shape),))
    return bounded(flat, {0: scalar_of(lambda e: e * rest, x.extents[0])}) if x.extents else flat


def _shortened(vector: Node, most: int) -> Node:
    if vector.shape == (most,):
        return vector
    return expression(lambda x: te.compute((most,), lambda i: x(i), name="shortened"), vector, name="shortened")


def _taken(x: Node, indices: Node, axis: int) -> Node:
    return operator(relax.op.take, x, indices, axis=axis)


def select(x: Node, mask: Node) -> Node:
    """The elements or slices where a mask over the first axes holds, as indexing by a boolean tensor gives them."""
    if mask.shape != x.shape[: len(mask.shape)]:
        raise ModelError(f"a mask of shape {list(mask.shape)} for a tensor of shape {list(x.shape)}")
    if x.extents or mask.extents:
        raise refuse(max([*x.extents, *mask.extents]), "a mask is laid over it")
    n = math.prod(mask.shape)
    return compress(reshape(x, (n, *x.shape[len(mask.shape) :])), reshape(mask, (n,)), 0)


def unique(x: Node, axis: int | None, *, ordered: bool, nan_is_one: bool = True) -> tuple[Node, Node, Node, Node]:
    """The distinct elements of a tensor, or its distinct slices along an axis.

    Args:
        axis: None flattens.
        ordered: sorted, slices lexicographically; otherwise in the order of their first occurrence.
        nan_is_one: whether one NaN counts as equal to another.

    Returns:
        Them; where each occurs first, (count,); which of them each slice is, (extent of the axis,); how often each
        occurs, (count,). The last three are int64.
    """
    if x.extents:
        raise refuse(max(x.extents), "distinct values are looked for along it")
    if axis is None:
        x, axis = reshape(x, (math.prod(x.shape),)), 0
    n, others = x.shape[axis], [other for other in range(len(x.shape)) if other != axis]
    if 0 in x.shape:
        raise ModelError(f"distinct values of an empty tensor of shape {list(x.shape)}; leave this node out")
    rows = reshape(transpose(x, [axis, *others]), (n, math.prod(x.shape[other] for other in others)))
    first, counts, inverse, count = expression(
        lambda t: sorting.unique(t, ordered=ordered, nan_is_one=nan_is_one), rows, name="unique"
    )
    values = bounded(_taken(x, first, axis), {axis: count})
    return values, bounded(first, {0: count}), inverse, bounded(counts, {0: count})


def top_k(x: Node, k: int | Node, axis: int, *, largest: bool, most: int | None = None) -> tuple[Node, Node]:
    """The k largest or smallest elements along an axis, sorted, and their int64 indices.

    Of equal ones the one with the lower index comes first; NaN is larger than any number.

    Args:
        k: a number, at most the extent of the axis; or an int64 scalar node, which counts as the axis' extent where it
            is more.
        most: the largest that a k in a node can be, where that is known.
    """
    size = x.shape[axis]
    if isinstance(k, int) and not 0 <= k <= size:
        raise ModelError(f"k is {k}, and axis {axis} has {size} elements; give at most so many")
    fill = lowest(x.dtype) if largest else (math.nan if x.dtype.startswith("float") else highest(x.dtype))
    x = masked(x, (axis,), fill)
    others = [other for other in range(len(x.shape)) if other != axis]
    held = k if isinstance(k, int) else size if most is None else min(size, max(most, 0))
    if held == 0 or 0 in x.shape:
        shape = tuple(held if other == axis else extent for other, extent in enumerate(x.shape))
        open_axes = [*x.extents, *(() if isinstance(k, int) else (axis,))]
        values, indices = (empty(constant(np.zeros(shape, dtype)), open_axes) for dtype in (x.dtype, np.int64))
        return values, indices
    order = [*others, axis]
    sizes = [x.shape[other] for other in others]
    rows = reshape(transpose(x, order), (math.prod(sizes), size))
    results = expression(lambda t: sorting.top_k(t, held, largest=largest), rows, name="top_k")
    extents = {other: extent for other, extent in x.extents.items() if other != axis}
    if not isinstance(k, int):
        extents[axis] = scalar_of(lambda k, n: tirx.max(tirx.min(k, n), tirx.const(0, "int64")), k, size_of(x, axis))
    back = [order.index(other) for other in range(len(order))]
    values, indices = (transpose(reshape(result, (*sizes, held)), back) for result in results)
    return bounded(values, extents), bounded(indices, extents)


def non_max_suppression(boxes: Node, scores: Node, most: Node, iou: Node, score: Node | None, *, centred: bool) -> Node:
    """Indices (count, 3) of image, class and box that are kept of boxes (B, N, 4) with scores (B, C, N).

    Args:
        most: int64 scalar: boxes to keep of a class, at most.
        iou: float32 scalar: of two boxes whose intersection over union is above it, the one with the lower score goes.
        score: float32 scalar: boxes whose score is not above it go; None keeps all.
        centred: boxes are centre x, y, width, height; otherwise two opposite corners y, x, y, x.
    """
    batch, n, _ = boxes.shape
    classes = scores.shape[1]
    for node, axes in ((boxes, (0, 2)), (scores, (0, 1))):
        without(node.extents, axes, 3)
    ends = [e for e in (boxes.extents.get(1), scores.extents.get(2)) if e is not None]
    if len(ends) == 1 or (ends and ends[0] is not ends[1]):
        raise refuse(1, "boxes and scores are not as many")
    bound = min(n, max(int(most.value), 0)) if most.op == CONSTANT else n
    if 0 in (bound, batch, classes):
        return constant(np.zeros((0, 3), np.int64))
    optional: Sequence[Node | None] = (score, ends[0] if ends else None)
    given = [node for node in optional if node is not None]

    def kept(*tensors: te.Tensor) -> list[te.Tensor]:
        rest = iter(tensors[4:])
        least, number = (None if node is None else next(rest) for node in optional)
        corners, values, limit, share = tensors[:4]
        return compaction.selected_boxes(corners, values, limit, share, least, number, bound, centred=centred)

    chosen, counts = expression(kept, boxes, scores, most, iou, *given, name="selected_boxes")
    table, rows = expression(lambda a, b: compaction.joined_boxes(a, b, classes), chosen, counts, name="joined_boxes")
    return bounded(table, {0: rows})
