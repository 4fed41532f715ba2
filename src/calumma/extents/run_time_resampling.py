"""What resized axes read where scales or regions are computed at run time: as `resampling.Interpolation`, in TE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import te, tirx

from calumma.graph.build import expression
from calumma.graph.nodes import Node
from calumma.semantics.resampling import WHOLE, Interpolation


@dataclass(frozen=True)
class OpenAxis:
    """An axis whose scale or region is known at run time alone.

    Attributes:
        size: its elements.
        outputs: of the result, which the model declares.
        place: among the scales; its region begins there in the regions, and ends behind the last axis' begin.
        count: how many scales there are.
    """

    size: int
    outputs: int
    place: int
    count: int


def resize_at_run_time(
    x: Node,
    axes: Mapping[int, OpenAxis],
    how: Interpolation,
    scales: Node | None,
    roi: Node | None,
    extrapolation: float,
) -> Node:
    """`x`, in float32, with some of its axes resized.

    Args:
        scales: of all axes; None for what the sizes give.
        roi: starts of all axes, then ends; read for `tf_crop_and_resize` alone.
        extrapolation: the value of results that lie outside of any axis.
    """
    masks = {}
    for index, axis in axes.items():
        positions, weights, masks[index] = _tables(how, axis, scales, roi)
        x = _weighted(x, index, positions, weights)
    if how.coordinates != "tf_crop_and_resize":
        return x

    def replaced(x: te.Tensor, *outside: te.Tensor) -> te.Tensor:
        def body(*i: tirx.Var) -> tirx.Expr:
            hit = [mask(i[axis]) != 0 for axis, mask in zip(masks, outside, strict=True)]
            return tirx.Select(tirx.any(*hit), _f32(extrapolation), x(*i))

        return te.compute(x.shape, body, name="extrapolated")

    return expression(replaced, x, *masks.values(), name="extrapolated")


def _weighted(x: Node, axis: int, positions: Node, weights: Node) -> Node:
    outputs, count = positions.shape
    last = x.shape[axis] - 1

    def weighted(x: te.Tensor, positions: te.Tensor, weights: te.Tensor) -> te.Tensor:
        t = te.reduce_axis((0, count), "t")

        def body(*i: tirx.Var) -> tirx.Expr:
            where = tirx.max(tirx.min(positions(i[axis], t), last), 0)
            return te.sum(x(*i[:axis], where, *i[axis + 1 :]) * weights(i[axis], t), axis=t)

        return te.compute((*x.shape[:axis], outputs, *x.shape[axis + 1 :]), body, name="resize")

    return expression(weighted, x, positions, weights, name="resize")


def _tables(how: Interpolation, axis: OpenAxis, scales: Node | None, roi: Node | None) -> tuple[Node, Node, Node]:
    """Positions and weights (outputs, taps) of what is read, and which results (outputs,) lie outside."""
    is_crop = how.coordinates == "tf_crop_and_resize"
    given = [node for node in (scales, roi if is_crop else None) if node is not None]
    count = _count(how, axis)

    def tables(*tensors: te.Tensor) -> list[te.Tensor]:
        scale = _f32(axis.outputs / axis.size) if scales is None else tensors[0](axis.place)
        whole, length = _f32(axis.outputs), scale * _f32(axis.size)
        length = whole if scales is None else tirx.Select(tirx.abs(length - whole) > whole * _f32(WHOLE), length, whole)
        ends = [tensors[-1](axis.place), tensors[-1](axis.place + axis.count)] if is_crop else []

        def coordinate(j: tirx.Var) -> tirx.Expr:
            place = _coordinate(how.coordinates, j.astype("float32"), axis, scale, length, ends)
            unscaled = scale == 1 if axis.size == axis.outputs else tirx.const(False, "bool")
            return tirx.Select(unscaled, j.astype("float32"), place)

        x = te.compute((axis.outputs,), coordinate, name="coordinate")
        position, weight = _taps(how, axis, count, x, scale)
        raw = te.compute((axis.outputs, count), weight, name="raw_weights")
        t = te.reduce_axis((0, count), "t")
        total = te.compute((axis.outputs,), lambda j: te.sum(raw(j, t), axis=t), name="total_weight")
        last = axis.size - 1

        def share(j: tirx.Var, tap: tirx.Var) -> tirx.Expr:
            return raw(j, tap) / total(j) if how.exclude_outside or count > 4 else raw(j, tap)

        def within(j: tirx.Var, tap: tirx.Var) -> tirx.Expr:
            return tirx.max(tirx.min(position(j, tap), last), 0).astype("int32")

        def outside(j: tirx.Var) -> tirx.Expr:
            return tirx.any(x(j) < 0, x(j) > last).astype("int32")

        shape = (axis.outputs, count)
        results = [te.compute(shape, within, name="positions"), te.compute(shape, share, name="weights")]
        return [*results, te.compute((axis.outputs,), outside, name="outside")]

    positions, weights, outside = expression(tables, *given, name="resize_taps")
    return positions, weights, outside


def _count(how: Interpolation, axis: OpenAxis) -> int:
    if how.mode == "nearest":
        return 1
    if how.antialias and axis.outputs < axis.size:  # the scale is at least outputs / size
        return 2 * math.ceil((1 if how.mode == "linear" else 2) * axis.size / axis.outputs) + 2
    return 2 if how.mode == "linear" else 4


def _coordinate(
    name: str, j: tirx.Expr, axis: OpenAxis, scale: tirx.Expr, length: tirx.Expr, ends: list[tirx.Expr]
) -> tirx.Expr:
    half, last = _f32(0.5), _f32(axis.size - 1)
    centred = (j + half) / scale - half
    if name == "half_pixel" or (name == "pytorch_half_pixel" and axis.outputs > 1):
        return centred
    if name == "half_pixel_symmetric":
        return _f32(axis.size / 2) * (_f32(1) - _f32(axis.outputs) / (scale * _f32(axis.size))) + centred
    if name == "asymmetric":
        return j / scale
    if name == "tf_half_pixel_for_nn":
        return (j + half) / scale
    if name == "tf_crop_and_resize":
        start, end = ends
        if axis.outputs == 1:
            return half * (start + end) * last
        return start * last + j * ((end - start) * last / _f32(axis.outputs - 1))
    return j * last / (length - _f32(1)) if axis.outputs > 1 else j * _f32(0)


def _taps(
    how: Interpolation, axis: OpenAxis, count: int, x: te.Tensor, scale: tirx.Expr
) -> tuple[Callable[..., tirx.Expr], Callable[..., tirx.Expr]]:
    """Position and weight of a result's tap."""
    last = _f32(axis.size - 1)
    if how.mode == "nearest":
        rounding = {
            "round_prefer_floor": lambda v: tirx.ceil(v - _f32(0.5)),
            "round_prefer_ceil": lambda v: tirx.floor(v + _f32(0.5)),
            "floor": tirx.floor,
            "ceil": tirx.ceil,
        }[how.rounding]
        return lambda j, tap: rounding(x(j)), lambda j, tap: _f32(1)
    if count == 2:

        def inside(j: tirx.Expr) -> tirx.Expr:
            return tirx.max(tirx.min(x(j), last), _f32(0))

        def part(j: tirx.Expr) -> tirx.Expr:
            return inside(j) - tirx.floor(inside(j))

        return (
            lambda j, tap: tirx.floor(inside(j)) + tap.astype("float32"),
            lambda j, tap: tirx.Select(tap == 0, _f32(1) - part(j), part(j)),
        )

    def position(j: tirx.Expr, tap: tirx.Expr) -> tirx.Expr:
        return tirx.floor(x(j)) + (tap + (1 - count // 2)).astype("float32")

    def weight(j: tirx.Expr, tap: tirx.Expr) -> tirx.Expr:
        d = tirx.abs(position(j, tap) - x(j)) * (scale if how.antialias and axis.outputs < axis.size else _f32(1))
        if how.mode == "linear":
            value = tirx.max(_f32(1) - d, _f32(0))
        else:
            a = _f32(how.cubic_a)
            near = ((a + 2) * d - (a + 3)) * d * d + 1
            far = ((a * d - a * 5) * d + a * 8) * d - a * 4
            value = tirx.Select(d <= 1, near, tirx.Select(d < 2, far, _f32(0)))
        if not how.exclude_outside:
            return value
        return tirx.Select(tirx.all(position(j, tap) >= 0, position(j, tap) <= last), value, _f32(0))

    return position, weight


def _f32(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")
