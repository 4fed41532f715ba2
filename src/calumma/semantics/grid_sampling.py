"""Elements of images between the pixels, at positions that are computed at run time.

    x (N, C, *sizes)    positions per axis, in pixels, the first pixel's centre at 0

A kernel finds for each position the pixels around it and their weights, once for all channels; a second one adds up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax, te, tirx

from calumma.graph.build import cast, expression, operator, reshape, transpose
from calumma.graph.nodes import Node, constant
from calumma.operators.pooling.expression import AxisWindow
from calumma.semantics.convolution import convolution

MODES = ("nearest", "linear", "cubic")
PADDINGS = ("zeros", "border", "reflection")
_CUBIC_A = -0.75
_OUTSIDE = -1
"""Stands for a pixel outside the image, which is zero."""
_FAR = 3
"""Pixels beyond the image where no tap is inside any more."""


def affine_grid(theta: Node, sizes: Sequence[int], *, align_corners: bool) -> Node:
    """Where an affine map takes the points of a regular grid between -1 and 1.

    Args:
        theta: (N, d, d + 1), the maps; d is 2 or 3.
        sizes: of the d spatial axes.
        align_corners: whether -1 and 1 are the centres of the outer pixels, or their outer borders.

    Returns:
        (N, *sizes, d), the coordinate of the last axis first.
    """
    axes = []
    for size in sizes:
        points = np.arange(size, dtype=np.float64)
        axes.append(points * 2 / max(size - 1, 1) - 1 if align_corners else (2 * points + 1) / size - 1)
    mesh = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(tuple(sizes))], axis=-1)
    base = constant(mesh.reshape(-1, len(sizes) + 1).astype(theta.dtype))
    grid = operator(relax.op.matmul, base, transpose(theta, (0, 2, 1)))
    return reshape(grid, (theta.shape[0], *sizes, len(sizes)))


def grid_sample(x: Node, grid: Node, mode: str, padding: str, *, align_corners: bool) -> Node:
    """Samples of `x` (N, C, *sizes) at the points of a grid.

    Args:
        grid: (N, *outputs, k) for k spatial axes, the last axis first; -1 and 1 are the ends of the image.
        mode: one of MODES.
        padding: one of PADDINGS: what is outside the image.
        align_corners: whether the ends are the centres of the outermost pixels, instead of their outer edges.
    """
    dtype = x.dtype if x.dtype.startswith("float") else grid.dtype
    sizes, outputs = x.shape[2:], grid.shape[1:-1]
    plan = _Plan(sizes, mode, padding, align_corners)
    flat = reshape(cast(grid, dtype), (grid.shape[0], math.prod(outputs), len(sizes)))

    def taps(grid: te.Tensor) -> list[te.Tensor]:
        def point(n: tirx.Expr, p: tirx.Expr) -> list[tirx.Expr]:
            return [plan.in_pixels(grid(n, p, len(sizes) - 1 - axis), axis) for axis in range(len(sizes))]

        return plan.tensors((grid.shape[0], flat.shape[1]), point, dtype)

    index, weight = expression(taps, flat, name="grid_sample_taps")
    source = cast(reshape(x, (*x.shape[:2], math.prod(sizes))), dtype)

    def sampled(x: te.Tensor, index: te.Tensor, weight: te.Tensor) -> te.Tensor:
        t = te.reduce_axis((0, plan.count), "t")
        return te.compute(
            (*x.shape[:2], flat.shape[1]),
            lambda n, c, p: te.sum(_pixel(x, (n, c), index(n, t, p)) * weight(n, t, p), axis=t),
            name="grid_sample",
        )

    result = expression(sampled, source, index, weight, name="grid_sample")
    return cast(reshape(result, (*x.shape[:2], *outputs)), x.dtype)


def deformable_convolution(
    x: Node, weight: Node, offset: Node, mask: Node | None, windows: Sequence[AxisWindow], groups: int, parts: int
) -> Node:
    """A two-dimensional convolution whose taps are moved (Dai et al., 2017, arXiv 1703.06211).

    Args:
        offset: (N, parts * taps * 2, *outputs), how far each tap is moved down and right.
        mask: (N, parts * taps, *outputs), by which what each tap reads is multiplied; None for none.
        parts: groups of channels with offsets of their own.
    """
    batch, channels, *sizes = x.shape
    taps = math.prod(w.kernel for w in windows)
    outputs = offset.shape[2:]
    points = math.prod(outputs)
    plan = _Plan(sizes, "linear", "zeros", align_corners=True)
    moves = reshape(offset, (batch, parts * taps, 2, points))

    def find(offset: te.Tensor) -> list[te.Tensor]:
        def point(row: tirx.Expr, p: tirx.Expr) -> list[tirx.Expr]:
            n, tap = row // (parts * taps), row % (parts * taps)
            steps = tap % taps // windows[1].kernel, tap % windows[1].kernel
            where = p // outputs[1], p % outputs[1]
            return [
                (i * w.stride + k * w.dilation - w.before).astype(x.dtype) + offset(n, tap, axis, p)
                for axis, (i, k, w) in enumerate(zip(where, steps, windows, strict=True))
            ]

        return plan.tensors((batch * parts * taps, points), point, x.dtype)

    index, share = expression(find, moves, name="deform_conv_taps")
    factors = [] if mask is None else [reshape(mask, (batch, parts * taps, points))]

    def stacked(x: te.Tensor, index: te.Tensor, share: te.Tensor, *mask: te.Tensor) -> te.Tensor:
        t = te.reduce_axis((0, plan.count), "t")

        def body(n: tirx.Var, k: tirx.Var, p: tirx.Var) -> tirx.Expr:
            c = k // taps
            tap = c // (channels // parts) * taps + k % taps
            row = n * (parts * taps) + tap
            value = _pixel(x, (n, c), index(row, t, p)) * share(row, t, p)
            return te.sum(value * mask[0](n, tap, p) if mask else value, axis=t)

        return te.compute((batch, channels * taps, points), body, name="deform_conv_columns")

    flat = reshape(x, (batch, channels, math.prod(sizes)))
    columns = expression(stacked, flat, index, share, *factors, name="deform_conv_columns")
    kernel = reshape(weight, (weight.shape[0], weight.shape[1] * taps, 1, 1))
    return convolution(reshape(columns, (batch, channels * taps, *outputs)), kernel, [AxisWindow(1)] * 2, groups)


def _pixel(x: te.Tensor, where: tuple[tirx.Expr, ...], index: tirx.Expr) -> tirx.Expr:
    """The pixel of an index into the flat image, zero for one outside."""
    last = int(x.shape[-1]) - 1
    return tirx.Select(index >= 0, x(*where, tirx.min(tirx.max(index, 0), last)), tirx.const(0, x.dtype))


class _Plan:
    """Which pixels a position reads, and their weights.

    Attributes:
        count: pixels per position.
    """

    def __init__(self, sizes: Sequence[int], mode: str, padding: str, align_corners: bool) -> None:
        self.sizes = sizes
        self.mode = mode
        self.padding = padding
        self.align_corners = align_corners
        self.taps = {"nearest": 1, "linear": 2, "cubic": 4}[mode]
        self.count = self.taps ** len(sizes)

    def in_pixels(self, x: tirx.Expr, axis: int) -> tirx.Expr:
        """A coordinate from -1 to 1 in pixels."""
        one, size = tirx.const(1, x.ty), self.sizes[axis]
        if self.align_corners:
            return (x + one) / 2 * tirx.const(size - 1, x.ty)
        return ((x + one) * tirx.const(size, x.ty) - one) / 2

    def tensors(
        self, shape: tuple[int, int], point: Callable[[tirx.Expr, tirx.Expr], list[tirx.Expr]], dtype: str
    ) -> list[te.Tensor]:
        """Indices into the flat image and weights, each (rows, count, points), for `point(row, p)`."""
        axes = len(self.sizes)
        rows, points = (int(extent) for extent in shape)
        places = te.compute(
            (rows, axes, points),
            lambda n, axis, p: _chosen(axis, self._placed(point(n, p))),
            name="position",
        )
        steps = list(itertools.product(range(self.taps), repeat=axes))

        def index(n: tirx.Var, t: tirx.Var, p: tirx.Var) -> tirx.Expr:
            return _chosen(t, [self._index([places(n, a, p) for a in range(axes)], step) for step in steps])

        def weight(n: tirx.Var, t: tirx.Var, p: tirx.Var) -> tirx.Expr:
            return _chosen(t, [self._weight([places(n, a, p) for a in range(axes)], step, dtype) for step in steps])

        whole = (rows, self.count, points)
        return [te.compute(whole, index, name="index"), te.compute(whole, weight, name="weight")]

    def _placed(self, position: list[tirx.Expr]) -> list[tirx.Expr]:
        """Positions where they are read: rounded, and brought into the image, or not further from it than matters."""
        if self.mode == "nearest":
            position = [tirx.nearbyint(x) for x in position]
        bounds = [self._bounds(axis) for axis in range(len(self.sizes))]
        if self.padding == "reflection":
            return [_reflected(x, *bound) for x, bound in zip(position, bounds, strict=True)]
        return [_clip(x, -_FAR, size + _FAR) for x, size in zip(position, self.sizes, strict=True)]

    def _bounds(self, axis: int) -> tuple[float, float]:
        size = self.sizes[axis]
        return (0.0, size - 1.0) if self.align_corners else (-0.5, size - 0.5)

    def _first(self, x: tirx.Expr) -> tirx.Expr:
        return tirx.floor(x).astype("int32") - (1 if self.mode == "cubic" else 0)

    def _index(self, position: list[tirx.Expr], step: Sequence[int]) -> tirx.Expr:
        flat, inside = tirx.const(0, "int32"), []
        for x, offset, size in zip(position, step, self.sizes, strict=True):
            i = self._first(x) + offset
            if self.padding == "reflection":
                i = self._mirrored(i, size)
            elif self.padding == "zeros":
                inside.append(tirx.all(i >= 0, i < size))
            flat = flat * size + tirx.min(tirx.max(i, 0), size - 1)
        return tirx.Select(tirx.all(*inside), flat, tirx.const(_OUTSIDE, "int32")) if inside else flat

    def _mirrored(self, i: tirx.Expr, size: int) -> tirx.Expr:
        period = 2 * (size - 1) if self.align_corners else 2 * size
        if period == 0:
            return tirx.const(0, "int32")
        i = tirx.floormod(i, period)
        return tirx.min(i, period - i) if self.align_corners else tirx.min(i, period - 1 - i)

    def _weight(self, position: list[tirx.Expr], step: Sequence[int], dtype: str) -> tirx.Expr:
        result = tirx.const(1, dtype)
        for x, tap in zip(position, step, strict=True):
            if self.mode == "linear":
                part = x - tirx.floor(x)
                result = result * (part if tap else 1 - part)
            elif self.mode == "cubic":
                result = result * _cubic(x - tirx.floor(x), tap)
        return result


def _cubic(part: tirx.Expr, tap: int) -> tirx.Expr:
    """The weight of one of four pixels by cubic convolution (Keys, 1981); `part` is how far behind the second."""
    a, one = _CUBIC_A, tirx.const(1, part.ty)
    d = (part + one, part, one - part, one + one - part)[tap]
    if tap in (1, 2):
        return ((a + 2) * d - (a + 3)) * d * d + one
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def _clip(x: tirx.Expr, low: float, high: float) -> tirx.Expr:
    return tirx.max(tirx.min(x, tirx.const(high, x.ty)), tirx.const(low, x.ty))


def _reflected(x: tirx.Expr, low: float, high: float) -> tirx.Expr:
    """A position between two mirrors."""
    if high == low:
        return tirx.const(low, x.ty)
    span = tirx.const(high - low, x.ty)
    distance = tirx.abs(x - tirx.const(low, x.ty))
    turns = tirx.floor(distance / span)
    rest = distance - turns * span
    odd = turns - 2 * tirx.floor(turns / 2) > 0
    return tirx.Select(odd, span - rest, rest) + tirx.const(low, x.ty)


def _chosen(number: tirx.Expr, values: Sequence[tirx.Expr]) -> tirx.Expr:
    """The value of a number."""
    result = values[-1]
    for i in range(len(values) - 2, -1, -1):
        result = tirx.Select(number == i, values[i], result)
    return result
