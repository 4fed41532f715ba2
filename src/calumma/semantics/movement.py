"""Elements moved to other places by rules known at import: slices, padding, tiles, triangles, reversed rows.

Functions of graph nodes, for every importer. Axes count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from tvm import relax, te, tirx

from calumma.expressions.integers import index_value
from calumma.graph.build import expression, operator, reshape, scalar, transpose
from calumma.graph.nodes import CONSTANT, Node, constant

PAD_MODES = ("constant", "reflect", "edge", "wrap")
"""What stands outside of a tensor: a value; the tensor mirrored at its border elements; these; the tensor again."""


def sliced(x: Node, bounds: Mapping[int, slice]) -> Node:
    """Parts of some axes, in Python's sense: clamped to the axis, negative bounds from its end, any step but 0."""
    ranges = {axis: range(x.shape[axis])[bound] for axis, bound in bounds.items()}
    ranges = {axis: taken for axis, taken in ranges.items() if taken != range(x.shape[axis])}
    if not ranges:
        return x
    if x.op == CONSTANT:
        return constant(x.value[tuple(bounds.get(axis, slice(None)) for axis in range(x.value.ndim))], x.name)
    shape = [len(ranges.get(axis, range(size))) for axis, size in enumerate(x.shape)]
    if 0 in shape:
        return constant(np.zeros(shape, x.dtype), x.name)
    if all(taken.step > 0 for taken in ranges.values()):
        axes = sorted(ranges)
        begins, ends, steps = ([getattr(ranges[a], part) for a in axes] for part in ("start", "stop", "step"))
        return operator(relax.op.strided_slice, x, axes, begins, ends, steps)

    def element(t: te.Tensor, *i: tirx.Expr) -> tirx.Expr:
        return t(*(ranges[a].start + j * ranges[a].step if a in ranges else j for a, j in enumerate(i)))

    return expression(lambda t: te.compute(shape, lambda *i: element(t, *i), name="slice"), x, name="slice")


def split(x: Node, sizes: Sequence[int], axis: int) -> Sequence[Node]:
    """Neighbouring parts of an axis; `sizes` add up to its extent."""
    if len(sizes) == 1:
        return (x,)
    ends = np.cumsum(sizes).tolist()
    if x.op == CONSTANT or 0 in sizes:
        return [sliced(x, {axis: slice(end - size, end)}) for size, end in zip(sizes, ends, strict=True)]
    where = len(sizes) if len(set(sizes)) == 1 else ends[:-1]
    parts: Sequence[Node] = operator(relax.op.split, x, where, axis)
    return parts


def concatenated(parts: Sequence[Node], axis: int) -> Node:
    """Tensors side by side along an axis."""
    whole = [part for part in parts if part.shape[axis] > 0] or [parts[0]]
    if len(whole) == 1:
        return whole[0]
    return operator(relax.op.concat, whole, axis)


def broadcast(x: Node, shape: Sequence[int]) -> Node:
    """A tensor repeated along its axes of extent 1, and along new ones before them."""
    if x.shape == tuple(shape):
        return x
    if x.op == CONSTANT and 0 in shape:
        return constant(np.broadcast_to(x.value, tuple(shape)), x.name)
    return operator(relax.op.broadcast_to, x, tuple(shape))


def tiled(x: Node, repeats: Sequence[int]) -> Node:
    """A tensor repeated along every axis."""
    if all(count == 1 for count in repeats):
        return x
    shape = [size * count for size, count in zip(x.shape, repeats, strict=True)]
    if 0 in shape:
        return constant(np.zeros(shape, x.dtype), x.name)
    return operator(relax.op.tile, x, list(repeats))


def padded(
    x: Node, before: Sequence[int], after: Sequence[int], mode: str = "constant", value: Node | None = None
) -> Node:
    """A tensor with elements added around it.

    Args:
        before, after: elements per axis; negative ones are cut off, before anything is added.
        mode: one of `PAD_MODES`.
        value: of the constant mode: a scalar of x's type, 0 where it is left out.

    Raises:
        ValueError: nothing is left of an axis from which a mode takes its values.
    """
    x = sliced(x, {a: slice(max(-b, 0), max(n - max(-e, 0), 0)) for a, (n, b, e) in enumerate(_axes(x, before, after))})
    before, after = [max(count, 0) for count in before], [max(count, 0) for count in after]
    shape = [n + b + e for n, b, e in _axes(x, before, after)]
    if x.shape == tuple(shape):
        return x
    value = scalar(0, x.dtype) if value is None else reshape(value, ())
    if mode == "constant":
        return _surrounded(x, before, after, value)
    if any(n == 0 and b + e > 0 for n, b, e in _axes(x, before, after)):
        raise ValueError(f"mode {mode} takes its values from an axis without elements")
    if 0 in shape:
        return constant(np.zeros(shape, x.dtype), x.name)
    source = {"reflect": _mirrored, "edge": _nearest, "wrap": _repeated}[mode]

    def element(t: te.Tensor, *i: tirx.Expr) -> tirx.Expr:
        moved = (b or e for b, e in zip(before, after, strict=True))
        places = zip(i, before, x.shape, moved, strict=True)
        return t(*(source(j - b, n) if apart else j for j, b, n, apart in places))

    return expression(lambda t: te.compute(shape, lambda *i: element(t, *i), name="pad"), x, name="pad")


def padded_at_run_time(
    x: Node, amounts: Node, axes: Node, shape: Sequence[int], mode: str, value: Node | None = None
) -> Node:
    """`padded` by amounts that are computed, to a shape that is known.

    Args:
        amounts: (2 n,): elements before each of n axes, then those after.
        axes: (n,): integers, negative ones count from the end.
        shape: of the result, to which the amounts add up.
    """
    rank, count = len(x.shape), math.prod(axes.shape)
    if 0 in shape:
        return constant(np.zeros(tuple(shape), x.dtype), x.name)

    def of_every_axis(by: te.Tensor, axis: te.Tensor) -> te.Tensor:
        def amount(i: tirx.Expr) -> tirx.Expr:
            given = tirx.const(0, "int64")
            for c in range(count):
                there = tirx.any(axis(c) == i % rank, axis(c) + rank == i % rank)
                given = tirx.Select(there, by(tirx.Select(i < rank, c, c + count)).astype("int64"), given)
            return given

        return te.compute((2 * rank,), amount, name="pads")

    def element(t: te.Tensor, by: te.Tensor, fill: te.Tensor, *i: tirx.Expr) -> tirx.Expr:
        places, checks = [], []
        for axis, (j, n) in enumerate(zip(i, x.shape, strict=True)):
            before, after = by(axis), by(axis + rank)
            cut = tirx.max(tirx.min(-before, n), 0)
            left = tirx.max(n - cut - tirx.max(-after, 0), 1)
            place = j - tirx.max(before, 0)
            checks += [place >= 0, place < left]
            inside = {"reflect": _mirrored, "wrap": _repeated}.get(mode, _nearest)(place, left)
            places.append(tirx.max(tirx.min(cut + inside, n - 1), 0))
        return t(*places) if mode != "constant" else tirx.if_then_else(tirx.all(*checks), t(*places), fill())

    def function(t: te.Tensor, by: te.Tensor, fill: te.Tensor) -> te.Tensor:
        return te.compute(tuple(shape), lambda *i: element(t, by, fill, *i), name="pad")

    fill = scalar(0, x.dtype) if value is None else reshape(value, ())
    return expression(function, x, expression(of_every_axis, amounts, axes, name="pads"), fill, name="pad")


def counted(start: Node, step: Node, count: int) -> Node:
    """start, start + step, ...: so many numbers from two scalars."""
    if count == 0:
        return constant(np.zeros(0, start.dtype), start.name)

    def function(first: te.Tensor, width: te.Tensor) -> te.Tensor:
        return te.compute((count,), lambda i: first() + index_value(i).astype(start.dtype) * width(), name="range")

    return expression(function, reshape(start, ()), reshape(step, ()), name="range")


def triangle(x: Node, offset: Node, *, upper: bool) -> Node:
    """The upper or lower triangles of matrices, 0 elsewhere.

    Args:
        x: (.., rows, columns).
        offset: an integer: of the diagonal that still belongs to the triangle, counted to the right.
    """
    offset = reshape(offset, ())

    def masked(t: te.Tensor, k: te.Tensor | None) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            diagonal = (i[-1] - i[-2]).astype("int64")
            first = int(offset.value) if k is None else k().astype("int64")
            inside = diagonal >= first if upper else diagonal <= first
            return tirx.Select(inside, t(*i), tirx.const(0, t.dtype))

        return te.compute(x.shape, element, name="triangle")

    if offset.op == CONSTANT:
        return expression(lambda t: masked(t, None), x, name="triangle")
    return expression(masked, x, offset, name="triangle")


def folded_columns(
    x: Node, shape: Sequence[int], block: Node, dilations: Sequence[int], pads: Sequence[int], strides: Sequence[int]
) -> Node:
    """Images of which the columns are blocks, laid over each other and added up (ONNX's Col2Im).

    Args:
        x: (n, c * elements of a block, blocks).
        shape: of the result: (n, c, extents..), without padding.
        block: the extents of a block: integers, perhaps computed.
        dilations, strides: of a block's elements, and from block to block, per axis.
        pads: before every axis, then after every axis.
    """
    image = tuple(shape[2:])
    rank, elements = len(image), x.shape[1] // shape[1]

    def function(t: te.Tensor, sizes: te.Tensor) -> te.Tensor:
        size = [tirx.max(sizes(a).astype("int64"), 1) for a in range(rank)]
        counts = [
            tirx.max(
                tirx.floordiv(image[a] + pads[a] + pads[a + rank] - dilations[a] * (size[a] - 1) - 1, strides[a]) + 1, 1
            )
            for a in range(rank)
        ]
        k = te.reduce_axis((0, elements), "k")

        def element(n: tirx.Expr, c: tirx.Expr, *i: tirx.Expr) -> tirx.Expr:
            left, inside, column = k.var.astype("int64"), [], tirx.const(0, "int64")
            step: tirx.Expr = tirx.const(1, "int64")
            for a in reversed(range(rank)):
                offset = i[a] + pads[a] - dilations[a] * tirx.floormod(left, size[a])
                left = tirx.floordiv(left, size[a])
                place = tirx.floordiv(offset, strides[a])
                inside += [tirx.floormod(offset, strides[a]) == 0, place >= 0, place < counts[a]]
                column, step = column + step * place, step * counts[a]
            column = tirx.max(tirx.min(column, x.shape[2] - 1), 0)
            zero = tirx.const(0, x.dtype)
            return te.sum(tirx.if_then_else(tirx.all(*inside), t(n, c * elements + k.var, column), zero), axis=k)

        return te.compute(tuple(shape), element, name="fold")

    return expression(function, x, block, name="fold")


def reversed_rows(x: Node, lengths: Node, axis: int, batch_axis: int) -> Node:
    """The first elements of an axis in reverse order; lengths: (batch,), how many."""

    def element(t: te.Tensor, count: te.Tensor, *i: tirx.Expr) -> tirx.Expr:
        place, length = i[axis].astype("int64"), count(i[batch_axis]).astype("int64")
        length = tirx.min(tirx.max(length, 0), x.shape[axis])
        source = tirx.max(tirx.Select(place < length, length - 1 - place, place), 0)
        return t(*(source if a == axis else j for a, j in enumerate(i)))

    def function(t: te.Tensor, count: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: element(t, count, *i), name="reverse")

    return expression(function, x, lengths, name="reverse")


def depth_to_space(x: Node, block: int, *, depth_first: bool) -> Node:
    """Channels laid out as blocks of pixels: (n, block^2 c, h, w) to (n, c, block h, block w).

    Args:
        depth_first: whether the blocks are the outer part of the channels (ONNX's DCR), else the inner (CRD).
    """
    n, channels, h, w = x.shape
    c = channels // block**2
    if depth_first:
        x = transpose(reshape(x, (n, block, block, c, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        x = transpose(reshape(x, (n, c, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return reshape(x, (n, c, h * block, w * block))


def space_to_depth(x: Node, block: int, *, depth_first: bool) -> Node:
    """The inverse of `depth_to_space`."""
    n, c, height, width = x.shape
    h, w = height // block, width // block
    order = (0, 3, 5, 1, 2, 4) if depth_first else (0, 1, 3, 5, 2, 4)
    x = transpose(reshape(x, (n, c, h, block, w, block)), order)
    return reshape(x, (n, c * block**2, h, w))


def _axes(x: Node, before: Sequence[int], after: Sequence[int]) -> list[tuple[int, int, int]]:
    return list(zip(x.shape, before, after, strict=True))


def _surrounded(x: Node, before: Sequence[int], after: Sequence[int], value: Node) -> Node:
    """A tensor in a larger one that is `value` elsewhere."""
    shape = [n + b + e for n, b, e in _axes(x, before, after)]
    if 0 in x.shape:
        return broadcast(value, shape)
    known = value.value[()] if value.op == CONSTANT else None
    if known is not None and x.dtype == "float32" and math.isfinite(known):
        width = [count for pair in zip(before, after, strict=True) for count in pair]
        return operator(relax.op.nn.pad, x, width, "constant", float(known))

    def element(t: te.Tensor, outside: tirx.Expr, *i: tirx.Expr) -> tirx.Expr:
        places = [j - b for j, b in zip(i, before, strict=True)]
        checks = [
            check
            for place, (n, b, e) in zip(places, _axes(x, before, after), strict=True)
            for check in ([place >= 0] if b else []) + ([place < n] if e else [])
        ]
        return tirx.if_then_else(tirx.all(*checks), t(*places), outside)

    if known is not None:
        literal = tirx.const(known.item(), x.dtype)
        return expression(lambda t: te.compute(shape, lambda *i: element(t, literal, *i), name="pad"), x, name="pad")
    return expression(lambda t, v: te.compute(shape, lambda *i: element(t, v(), *i), name="pad"), x, value, name="pad")


def _mirrored(place: tirx.Expr, size: int | tirx.Expr) -> tirx.Expr:
    period = 2 * (size - 1)
    distance = tirx.floormod(place, max(period, 1) if isinstance(period, int) else tirx.max(period, 1))
    return tirx.min(distance, period - distance)


def _nearest(place: tirx.Expr, size: int | tirx.Expr) -> tirx.Expr:
    return tirx.max(tirx.min(place, size - 1), 0)


def _repeated(place: tirx.Expr, size: int | tirx.Expr) -> tirx.Expr:
    return tirx.floormod(place, size)
