"""Resizing: every axis by itself, each result a weighted sum of a few elements of that axis.

    y[.., j, ..] = sum over taps t of weights[j, t] * x[.., positions[j, t], ..]

Positions and weights are computed when the model is imported, in float32 as ONNX Runtime does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from calumma.graph.build import cast, expression
from calumma.graph.nodes import Node, constant

_F32 = np.float32
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """How one axis is resized."""

    size: int
    outputs: int
    scale: float
    """Outputs per element, as given: it need not be outputs / size."""
    roi: tuple[float, float] = (0.0, 1.0)
    """The part of the axis to be read, for `tf_crop_and_resize`."""
    length: float = 0.0
    """The length before it was rounded to `outputs`, which `align_corners` counts by; 0 where it was not."""

    @property
    def stays(self) -> bool:
        """Whether nothing changes: where it is not scaled ONNX Runtime does not read the region either."""
        return self.size == self.outputs and self.scale == 1


@dataclass(frozen=True)
class Taps:
    """What each result along an axis reads: (outputs, taps)."""

    positions: NDArray[np.int64]
    weights: Floats
    outside: NDArray[np.bool_] | None = None
    """(outputs,): results that the extrapolation value replaces; None for none."""


def _half_pixel(j: Floats, axis: Axis) -> Floats:
    return (j + _F32(0.5)) / _F32(axis.scale) - _F32(0.5)


def _align_corners(j: Floats, axis: Axis) -> Floats:
    length = axis.length or axis.outputs
    return j * _F32(axis.size - 1) / _F32(length - 1) if axis.outputs > 1 else j * _F32(0)


def _crop(j: Floats, axis: Axis) -> Floats:
    start, end = map(_F32, axis.roi)
    last = _F32(axis.size - 1)
    if axis.outputs == 1:
        return j + _F32(0.5) * (start + end) * last
    return start * last + j * ((end - start) * last / _F32(axis.outputs - 1))


def _symmetric(j: Floats, axis: Axis) -> Floats:
    adjustment = _F32(axis.outputs) / (_F32(axis.scale) * _F32(axis.size))
    start = _F32(axis.size) / _F32(2) * (_F32(1) - adjustment)
    return start + (j + _F32(0.5)) / _F32(axis.scale) - _F32(0.5)


WHOLE = 1e-5
"""Up to this share of it a length is a whole number: what the rounding of a scale to float32 leaves in doubt."""

COORDINATES: Mapping[str, Callable[[Floats, Axis], Floats]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda j, axis: _half_pixel(j, axis) if axis.outputs > 1 else j * _F32(0),
    "align_corners": _align_corners,
    "asymmetric": lambda j, axis: j / _F32(axis.scale),
    "tf_half_pixel_for_nn": lambda j, axis: (j + _F32(0.5)) / _F32(axis.scale),
    "tf_crop_and_resize": _crop,
}
"""Where results lie among the elements of an axis, by ONNX's name."""

ROUNDINGS: Mapping[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda x: np.ceil(x - _F32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + _F32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
"""How a position becomes the nearest element, by ONNX's name."""


@dataclass(frozen=True)
class Interpolation:
    """How elements are weighted.

    Attributes:
        mode: nearest, linear or cubic.
        coordinates: one of COORDINATES.
        rounding: one of ROUNDINGS, for nearest.
        antialias: where an axis shrinks, widen the filter by as much.
        cubic_a: the coefficient a of cubic convolution.
        exclude_outside: leave out what is outside the axis instead of repeating its ends.
    """

    mode: str
    coordinates: str
    rounding: str = "round_prefer_floor"
    antialias: bool = False
    cubic_a: float = -0.75
    exclude_outside: bool = False

    def taps(self, axis: Axis) -> Taps:
        """What the results along an axis read."""
        x = COORDINATES[self.coordinates](np.arange(axis.outputs, dtype=np.float32), axis)
        last = axis.size - 1
        outside = (x < 0) | (x > last) if self.coordinates == "tf_crop_and_resize" else None
        if self.mode == "nearest":
            positions, weights = ROUNDINGS[self.rounding](x)[:, None], np.ones((axis.outputs, 1), np.float32)
        elif self.antialias and axis.scale < 1:
            positions, weights = self._widened(x, axis)
        elif self.mode == "linear":
            x = np.clip(x, 0, last)
            first = np.minimum(np.floor(x), last)
            positions, weights = np.stack([first, first + 1], 1), np.stack([1 - (x - first), x - first], 1)
        else:
            positions, weights = self._windowed(x, np.floor(x), 4, 1.0)
        if self.mode != "nearest" and (self.exclude_outside or weights.shape[1] > 4):
            if self.exclude_outside:
                weights = np.where((positions < 0) | (positions > last), 0, weights)
            weights = weights / weights.sum(axis=1, keepdims=True)
        return Taps(np.clip(positions, 0, last).astype(np.int64), weights.astype(np.float32), outside)

    def _widened(self, x: Floats, axis: Axis) -> tuple[NDArray[Any], NDArray[Any]]:
        support = (1 if self.mode == "linear" else 2) / axis.scale
        return self._windowed(x, np.floor(x), 2 * math.ceil(support) + 2, axis.scale)

    def _windowed(self, x: Floats, middle: Floats, count: int, scale: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """`count` elements around each x, weighted by the filter stretched by 1 / scale."""
        positions = middle[:, None] + np.arange(1 - count // 2, 1 + count // 2, dtype=np.float32)
        distance = np.abs((positions - x[:, None]) * _F32(scale))
        if self.mode == "linear":
            return positions, np.maximum(1 - distance, 0)
        a, d = _F32(self.cubic_a), distance
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return positions, np.where(d <= 1, near, np.where(d < 2, far, 0))


def resize(
    x: Node, axes: Mapping[int, Axis], taps: Callable[[Axis], Taps], extrapolation: float = 0.0, rounds: bool = False
) -> Node:
    """`x` with some of its axes resized.

    Args:
        axes: axis -> how.
        taps: of each axis, such as `Interpolation.taps`.
        extrapolation: the value of results that lie outside of any axis.
        rounds: round integers after every axis, the last one first; else they lose what is behind the point.
    """
    steps = {index: taps(axis) for index, axis in axes.items() if not axis.stays}
    dtype, result = x.dtype, x
    is_integer = not dtype.startswith("float")
    gathers = {i: t for i, t in steps.items() if t.weights.shape[1] == 1 and (t.weights == 1).all()}
    if gathers:
        result = _gathered(result, gathers)
    summed = {i: t for i, t in steps.items() if i not in gathers}
    if summed and dtype != "float64":
        result = cast(result, "float32")
    last = -1 if rounds and is_integer else len(x.shape) - 1  # sums of rows are vector code: the last axis comes last
    for index, step in sorted(summed.items(), key=lambda entry: (entry[0] == last, -entry[0])):
        result = _weighted(result, index, step)
        if is_integer:
            result = _whole(result, dtype, rounds)
    outside = {i: t.outside for i, t in steps.items() if t.outside is not None and t.outside.any()}
    if outside:
        result = _extrapolated(result, outside, extrapolation)
    return cast(result, dtype)


def weighted(x: Node, steps: Mapping[int, Taps]) -> Node:
    """`x` with each of some axes replaced by weighted sums of its elements."""
    for index, step in sorted(steps.items(), key=lambda entry: (entry[0] == len(x.shape) - 1, -entry[0])):
        x = _weighted(x, index, step)
    return x


def even_windows(size: int, outputs: int) -> Taps:
    """Means of windows that cover an axis evenly, all elements of one weighing alike.

    Window j goes from floor(j * size / outputs) to before ceil((j + 1) * size / outputs); they may overlap.
    """
    starts, ends = _even_bounds(size, outputs)
    return _between(starts, ends, size, np.repeat((1 / (ends - starts))[:, None], size, 1))


def even_windows_transposed(size: int, outputs: int) -> Taps:
    """The transpose of `even_windows`, which takes values of windows to the elements that they cover."""
    starts, ends = _even_bounds(size, outputs)
    places = np.arange(size)
    first, last = np.searchsorted(ends, places, side="right"), np.searchsorted(starts, places, side="right")
    return _between(first, last, outputs, np.repeat((1 / (ends - starts))[None], size, 0))


def _even_bounds(size: int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    windows = np.arange(outputs)
    return windows * size // outputs, -(-(windows + 1) * size // outputs)


def _between(starts: NDArray[np.int64], ends: NDArray[np.int64], size: int, shares: NDArray[np.float64]) -> Taps:
    """Results that read positions from `starts` to before `ends` of an axis, with weights (outputs, size)."""
    positions = starts[:, None] + np.arange(int((ends - starts).max()))
    inside = positions < ends[:, None]
    positions = np.minimum(positions, size - 1)
    weights = np.where(inside, np.take_along_axis(shares, positions, 1), 0)
    return Taps(positions.astype(np.int64), weights.astype(np.float32))


def _whole(x: Node, dtype: str, rounds: bool) -> Node:
    """Floats rounded, and brought into the range of an integer type."""
    narrow = {"int8": (-128, 127), "uint8": (0, 255)}.get(dtype)

    def whole(x: te.Tensor) -> te.Tensor:
        def body(*i: tirx.Var) -> tirx.Expr:
            value = tirx.floor(x(*i) + tirx.const(0.5, x.dtype)) if rounds else x(*i)
            if narrow is None:
                return value
            low, high = (tirx.const(limit, x.dtype) for limit in narrow)
            return tirx.max(tirx.min(value, high), low)

        return te.compute(x.shape, body, name="whole")

    return expression(whole, x, name="whole") if rounds or narrow else x


def _gathered(x: Node, steps: Mapping[int, Taps]) -> Node:
    shape = [len(steps[i].positions) if i in steps else size for i, size in enumerate(x.shape)]
    readers = {i: _Positions(step.positions[:, 0], x.shape[i]) for i, step in steps.items()}
    tables = {i: reader.table for i, reader in readers.items() if reader.table is not None}

    def gathered(x: te.Tensor, *given: te.Tensor) -> te.Tensor:
        held = dict(zip(tables, given, strict=True))

        def body(*i: tirx.Var) -> tirx.Expr:
            return x(*(readers[a].read(j, held.get(a)) if a in readers else j for a, j in enumerate(i)))

        return te.compute(shape, body, name="resize")

    return expression(gathered, x, *(constant(table) for table in tables.values()), name="resize")


def _weighted(x: Node, axis: int, step: Taps) -> Node:
    """Weighted sums along one axis."""
    outputs, count = step.weights.shape
    shape = (*x.shape[:axis], outputs, *x.shape[axis + 1 :])
    first = _Positions(step.positions[:, 0], x.shape[axis])
    in_order = count == 2 and (step.positions[:, 1] == np.minimum(step.positions[:, 0] + 1, x.shape[axis] - 1)).all()
    last = x.shape[axis] - 1
    table = step.positions if not in_order else first.table

    def weighted(x: te.Tensor, weights: te.Tensor, *given: te.Tensor) -> te.Tensor:
        def element(i: Sequence[tirx.Expr], position: tirx.Expr) -> tirx.Expr:
            return x(*i[:axis], position, *i[axis + 1 :])

        def pair(*i: tirx.Var) -> tirx.Expr:
            low = first.read(i[axis], given[0] if given else None)
            values = element(i, low), element(i, tirx.min(low + 1, last))
            return values[0] * weights(i[axis], 0) + values[1] * weights(i[axis], 1)

        if in_order:
            return te.compute(shape, pair, name="resize")
        tap = te.reduce_axis((0, count), "tap")

        def total(*i: tirx.Var) -> tirx.Expr:
            position = tirx.min(tirx.max(given[0](i[axis], tap), 0), last)
            return te.sum(element(i, position) * weights(i[axis], tap), axis=tap)

        return te.compute(shape, total, name="resize")

    tables = [] if table is None else [constant(np.ascontiguousarray(table, np.int32))]
    return expression(weighted, x, constant(step.weights.astype(x.dtype)), *tables, name="resize")


def _extrapolated(x: Node, outside: Mapping[int, NDArray[np.bool_]], value: float) -> Node:
    def replaced(x: te.Tensor, *masks: te.Tensor) -> te.Tensor:
        def body(*i: tirx.Var) -> tirx.Expr:
            hit = [mask(i[axis]) != 0 for axis, mask in zip(outside, masks, strict=True)]
            return tirx.Select(tirx.any(*hit), tirx.const(value, x.dtype), x(*i))

        return te.compute(x.shape, body, name="extrapolated")

    return expression(replaced, x, *(constant(m.astype(np.int32)) for m in outside.values()), name="extrapolated")


class _Positions:
    """Positions along an axis: as a fraction (a * j + b) // c where they are one, else as a table."""

    def __init__(self, positions: NDArray[np.int64], size: int) -> None:
        self.size = size
        self.fraction = _fraction(positions, size)
        self.table = None if self.fraction else positions.astype(np.int32)

    def read(self, j: tirx.Expr, table: te.Tensor | None) -> tirx.Expr:
        """The position of result j, inside the axis whatever the table holds."""
        if self.fraction is None:
            assert table is not None
            return tirx.min(tirx.max(table(j), 0), self.size - 1)
        a, b, c = self.fraction
        if b < 0:
            position = tirx.max(j * a + b, 0)
        else:
            position = j * a + b
        position = position if c == 1 else tirx.floordiv(position, c)
        return tirx.min(position, self.size - 1)


def _fraction(positions: NDArray[np.int64], size: int) -> tuple[int, int, int] | None:
    """(a, b, c) with positions[j] = clip((a * j + b) // c); None where none of a few does."""
    j = np.arange(len(positions))
    common = math.gcd(size, len(positions))
    numerator, denominator = size // common, len(positions) // common
    if denominator > 16:
        return None
    for a, c in ((numerator, denominator), (2 * numerator, 2 * denominator)):
        for b in sorted(range(-c, c + 1), key=abs):
            if (np.clip(np.maximum(a * j + b, 0) // c, 0, size - 1) == positions).all():
                return a, b, c
    return None
