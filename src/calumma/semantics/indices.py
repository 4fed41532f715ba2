"""Reading and writing elements where tensors of indices say: gathers, scatters, one-hot.

Functions of graph nodes, for every importer. An index counts from the start of its axis, a negative one from its end;
one outside is clamped to the axis, so that no foreign memory is read or written. Axes count from 0.

Notation: r is the rank of the data, q that of the indices, n an index's column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions.statements import kernel
from calumma.graph.build import expression, operator
from calumma.graph.nodes import CONSTANT, Node, constant

REDUCTIONS = ("none", "add", "mul", "max", "min")
"""What a scatter makes of an element and an update: the update, or both combined. NaN wins over numbers."""


def place(index: tirx.Expr, size: int) -> tirx.Expr:
    """An index of an axis as a place from its start, always on it."""
    index = index.astype("int64")
    index = tirx.Select(index < 0, index + size, index)
    return tirx.max(tirx.min(index, tirx.const(size - 1, "int64")), tirx.const(0, "int64"))


def gathered(x: Node, indices: Node, axis: int) -> Node:
    """Slices of x along an axis, at indices of any shape, which takes the place of the axis."""
    size = x.shape[axis]
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    if 0 in shape:
        return constant(np.zeros(shape, x.dtype), x.name)
    if indices.op == CONSTANT:
        counted = np.where(indices.value < 0, indices.value + size, indices.value)
        return operator(relax.op.take, x, constant(np.clip(counted, 0, size - 1), indices.name), axis)

    def from_start(index: relax.Expr) -> relax.Expr:
        zero, extent = relax.const(0, indices.dtype), relax.const(size, indices.dtype)
        return relax.op.where(relax.op.less(index, zero), relax.op.add(index, extent), index)

    return operator(relax.op.take, x, operator(from_start, indices), axis)  # `take` is lowered with a clamp


def gathered_elements(x: Node, indices: Node, axis: int) -> Node:
    """One element of x for each index: out[i] = x[i with indices[i] on the axis]."""

    def function(t: te.Tensor, index: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            return t(*(place(index(*i), x.shape[axis]) if a == axis else j for a, j in enumerate(i)))

        return te.compute(indices.shape, element, name="gather_elements")

    return expression(function, x, indices, name="gather_elements")


def gathered_slices(x: Node, indices: Node, batch: int) -> Node:
    """Slices of x at tuples of indices (ONNX's GatherND).

    Args:
        x: (b.., d_1 .. d_n, rest..).
        indices: (b.., any.., n).
        batch: how many leading axes b both share.

    Returns:
        (b.., any.., rest..).
    """
    rank, columns = len(indices.shape) - 1, indices.shape[-1]
    shape = (*indices.shape[:-1], *x.shape[batch + columns :])
    if 0 in shape:
        return constant(np.zeros(shape, x.dtype), x.name)

    def function(t: te.Tensor, index: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            places = [place(index(*i[:rank], n), x.shape[batch + n]) for n in range(columns)]
            return t(*i[:batch], *places, *i[rank:])

        return te.compute(shape, element, name="gather_nd")

    return expression(function, x, indices, name="gather_nd")


def scattered_elements(x: Node, indices: Node, updates: Node, axis: int, reduction: str) -> Node:
    """x with single elements replaced or combined: out[i with indices[i] on the axis] = updates[i].

    Args:
        indices, updates: of one shape, no larger than x but along the axis. Of several updates of one element the
            last in order counts, or all are combined.
        reduction: one of `REDUCTIONS`.
    """
    if 0 in indices.shape:
        return x
    others = [size for a, size in enumerate(indices.shape) if a != axis]

    def body(data: Any, index: Any, update: Any, out: Any) -> None:
        _copy(data, out, x.shape)
        with T.parallel(0, math.prod(others)) as row:
            i = _coordinates(row, others)
            with T.serial(0, indices.shape[axis]) as k:
                source = [*i[:axis], k, *i[axis:]]
                target = [*i[:axis], place(index[tuple(source)], x.shape[axis]), *i[axis:]]
                _store(out, target, update[tuple(source)], reduction)

    return _written(body, x, indices, updates, "scatter_elements")


def scattered_slices(x: Node, indices: Node, updates: Node, reduction: str) -> Node:
    """x with slices replaced or combined at tuples of indices (ONNX's ScatterND).

    Args:
        x: (d_1 .. d_n, rest..).
        indices: (any.., n).
        updates: (any.., rest..).
        reduction: one of `REDUCTIONS`.
    """
    if 0 in updates.shape:
        return x
    rank, columns = len(indices.shape) - 1, indices.shape[-1]
    count, rest = indices.shape[:rank], x.shape[columns:]

    def body(data: Any, index: Any, update: Any, out: Any) -> None:
        _copy(data, out, x.shape)
        with T.serial(0, math.prod(count)) as row:
            i = _coordinates(row, count)
            with T.serial(0, math.prod(rest)) as column:
                j = _coordinates(column, rest)
                target = [place(index[(*i, n)], x.shape[n]) for n in range(columns)]
                _store(out, [*target, *j], update[(*i, *j)], reduction)

    return _written(body, x, indices, updates, "scatter_nd")


def one_hot(indices: Node, depth: int, values: Node, axis: int) -> Node:
    """A new axis that is `on` at the index and `off` elsewhere; all `off` for an index outside of it.

    Args:
        indices: numbers, of which the fraction is dropped.
        values: off, on.
        axis: of the result.
    """
    shape = (*indices.shape[:axis], depth, *indices.shape[axis:])
    if 0 in shape:
        return constant(np.zeros(shape, values.dtype), indices.name)

    def function(index: te.Tensor, value: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            hot = index(*i[:axis], *i[axis + 1 :]).astype("int64")
            hot = tirx.Select(hot < 0, hot + depth, hot)
            return tirx.Select(hot == i[axis].astype("int64"), value(1), value(0))

        return te.compute(shape, element, name="one_hot")

    return expression(function, indices, values, name="one_hot")


def written_rows(cache: Node, update: Node, starts: Node, axis: int, *, circular: bool) -> Node:
    """A cache in which rows from a start of their own in every batch are replaced.

    Args:
        cache: (batch, .., rows, ..), the rows on `axis`.
        update: likewise, with fewer rows.
        starts: (batch,).
        circular: whether rows beyond the end are written from the start on; else none is.
    """
    size, count = cache.shape[axis], update.shape[axis]

    def function(t: te.Tensor, new: te.Tensor, start: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            row = i[axis].astype("int64") - start(i[0]).astype("int64")
            row = tirx.floormod(row, tirx.const(size, "int64")) if circular else row
            written = tirx.all(row >= 0, row < count)
            return tirx.if_then_else(written, new(*i[:axis], row, *i[axis + 1 :]), t(*i))

        return te.compute(cache.shape, element, name="write_rows")

    return expression(function, cache, update, starts, name="write_rows")


def _written(body: Callable[..., None], x: Node, indices: Node, updates: Node, name: str) -> Node:
    """A kernel of loops that reads three tensors and writes one like the first."""
    result = [(x.shape, x.dtype)]
    return expression(lambda *tensors: kernel(name, body, tensors, result)[0], x, indices, updates, name=name)


def _copy(data: Any, out: Any, shape: Sequence[int]) -> None:
    with T.parallel(0, math.prod(shape)) as element:
        i = tuple(_coordinates(element, shape))
        out[i] = data[i]


def _coordinates(flat: tirx.Expr, shape: Sequence[int]) -> list[tirx.Expr]:
    """The coordinates of the element of a shape that has a number in order."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [flat // stride % size for stride, size in zip(strides, shape, strict=True)]


def _store(out: Any, where: Sequence[tirx.Expr], update: tirx.Expr, reduction: str) -> None:
    where = tuple(where)
    out[where] = _COMBINED[reduction](out[where], update)


def _extreme(old: tirx.Expr, new: tirx.Expr, *, largest: bool) -> tirx.Expr:
    better = new > old if largest else new < old
    if str(new.ty).startswith(("float", "bfloat")):
        better = tirx.any(better, tirx.isnan(new))
    return tirx.Select(better, new, old)


_COMBINED: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": partial(_extreme, largest=True),
    "min": partial(_extreme, largest=False),
}
