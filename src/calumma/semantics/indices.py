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

from calumma.expressions import statements
from calumma.expressions.sorting import key
from calumma.expressions.statements import kernel
from calumma.graph.build import expression, operator, reshape
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


def bags(table: Node, rows: Node, starts: Node, kind: str, shares: Node | None, count: int, padding: int = -1) -> Node:
    """Rows of a table combined in bags, which lie one behind the other in a vector of row numbers.

    Args:
        table: (n, width).
        rows: int64 vector.
        starts: int64 vector: of each bag in `rows`, perhaps followed by the last one's end.
        kind: "sum", "mean" or "max"; an empty bag is 0.
        shares: what each row is multiplied by, of a sum; None for 1.
        count: of bags.
        padding: the number of a row that does not count; -1 for none.

    Returns:
        (count, width).
    """
    (width,), total = table.shape[1:], rows.shape[0]
    if 0 in (width, total, count, table.shape[0]):
        return constant(np.zeros((count, width), table.dtype), table.name)

    def body(table: Any, rows: Any, starts: Any, *rest: Any) -> None:
        out, zero = rest[-1], statements.constant(0, str(table.dtype))

        def bound(place: tirx.Expr) -> tirx.Expr:
            return tirx.max(tirx.min(place, statements.constant(total)), statements.constant(0))

        with T.parallel(0, count) as bag:
            first = T.Bind(bound(starts[bag]))
            following = starts[tirx.min(bag + 1, starts_held - 1)]
            behind = statements.either(bag + 1 < starts_held, following, statements.constant(total))
            end, held = T.Bind(bound(behind)), statements.counter("int64")
            held[0] = statements.constant(0)
            with T.serial(0, width) as column:
                out[bag, column] = zero
            with (
                T.serial(0, tirx.max(end - first, statements.constant(0))) as step,
                T.If(rows[first + step] != padding),
                T.Then(),
            ):
                row = T.Bind(place(rows[first + step], table_rows))
                with T.serial(0, width) as column:
                    value = table[row, column]
                    value = value * rest[0][first + step] if shares is not None else value
                    old = out[bag, column]
                    if kind == "max":
                        out[bag, column] = statements.either(
                            held[0] == statements.constant(0), value, _extreme(old, value, largest=True)
                        )
                    else:
                        out[bag, column] = old + value
                held[0] = held[0] + statements.constant(1)
            if kind == "mean":
                with T.serial(0, width) as column:
                    number = tirx.max(held[0], statements.constant(1)).astype(str(table.dtype))
                    out[bag, column] = out[bag, column] / number

    starts_held, table_rows = starts.shape[0], table.shape[0]
    given = [node for node in (table, rows, starts, shares) if node is not None]
    result = [((count, width), table.dtype)]
    return expression(lambda *tensors: kernel("bags", body, tensors, result)[0], *given, name="bags")


def masked_scattered(x: Node, mask: Node, source: Node) -> Node:
    """x with the elements where a mask of its shape holds replaced by those of a vector, in order."""
    size, given = math.prod(x.shape), math.prod(source.shape)
    if 0 in (size, given):
        return x

    def body(data: Any, mask: Any, source: Any, out: Any) -> None:
        taken = statements.counter("int64")
        taken[0] = statements.constant(0)
        with T.serial(0, size) as i:
            new = source[tirx.min(taken[0], statements.constant(given - 1))]
            out[i] = statements.either(mask[i], new, data[i])
            taken[0] = taken[0] + mask[i].astype("int64")

    flat = reshape(x, (size,)), reshape(mask, (size,)), reshape(source, (given,))
    result = [((size,), x.dtype)]
    found = expression(
        lambda *tensors: kernel("masked_scatter", body, tensors, result)[0], *flat, name="masked_scatter"
    )
    return reshape(found, x.shape)


def searched(sequence: Node, values: Node, *, right: bool) -> Node:
    """Where values are to be put into sorted rows so that these stay sorted, int64.

    Args:
        sequence: (rows, n), ascending, NaN last.
        values: (rows, m).
        right: behind equal elements, instead of before them.
    """
    (rows, n), (_, m) = sequence.shape, values.shape
    if 0 in (rows, m, n):
        return constant(np.zeros((rows, m), np.int64), values.name)

    def body(sequence: Any, values: Any, out: Any) -> None:
        with T.parallel(0, rows * m) as flat:
            row, column = T.Bind(flat // m), T.Bind(flat % m)
            low, high = statements.counter("int64"), statements.counter("int64")
            low[0], high[0] = statements.constant(0), statements.constant(n)
            wanted = key(values[row, column], values.dtype)
            with T.While(low[0] < high[0]):
                middle = T.Bind((low[0] + high[0]) // 2)
                held = key(sequence[row, middle], sequence.dtype)
                with T.If(held <= wanted if right else held < wanted):
                    with T.Then():
                        low[0] = middle + 1
                    with T.Else():
                        high[0] = middle
            out[row, column] = low[0]

    result = [((rows, m), "int64")]
    return expression(lambda *tensors: kernel("searched", body, tensors, result)[0], sequence, values, name="searched")


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
