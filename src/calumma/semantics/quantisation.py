"""Quantised numbers: q = round(x / scale) + zero point, held in the range of an integer type or in a small float.

Scales and zero points are one for the tensor, one per position of an axis, or one per block of positions of an axis.
Contractions of integers add up in int32, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax, te, tirx

from calumma.expressions import rounding
from calumma.graph.build import cast, expression, operator, reshape, scalar
from calumma.graph.nodes import Node
from calumma.semantics.element_casts import SMALL_FLOATS

RANGES = {
    f"{sign}int{bits}": (0, 2**bits - 1) if sign else (-(2**bits) // 2, 2**bits // 2 - 1)
    for sign in ("", "u")
    for bits in (2, 4, 8, 16)
}
"""Type -> its lowest and its highest number."""


@dataclass(frozen=True)
class Parameters:
    """Scales and zero points, and which elements of a tensor they are for."""

    scale: Node
    """A scalar, a vector, or in the tensor's shape but for `axis`."""
    zero_point: Node | None
    """In the shape of `scale`; None for 0."""
    axis: int = 0
    """From 0; of a vector's positions, or of the blocks."""
    block: int = 0
    """Positions of a block; 0 for none."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.scale,) if self.zero_point is None else (self.scale, self.zero_point)

    def place(self, index: Sequence[tirx.Expr]) -> tuple[tirx.Expr, ...]:
        """Where the parameters of an element are."""
        if self.block:
            return tuple(i // self.block if axis == self.axis else i for axis, i in enumerate(index))
        if not self.scale.shape:
            return ()
        return (0,) if self.scale.shape == (1,) else (index[self.axis],)


def quantized(x: Node, parameters: Parameters, target: str, saturate: bool = True) -> Node:
    """Numbers as `target` holds them: an integer type of 2 to 16 bits, or a small float, for which zero points are 0.

    Halves go to the even number. NaN is the lowest integer.
    """

    def integer(value: tirx.Expr, scale: tirx.Expr, zero: tirx.Expr | None) -> tirx.Expr:
        low, high = RANGES[target]
        shift = tirx.const(0, "float32") if zero is None else zero.astype("float32")
        steps = tirx.nearbyint(value / scale) + shift
        lowest, highest = tirx.const(low, "float32"), tirx.const(high, "float32")
        steps = tirx.Select(tirx.isnan(steps), lowest, steps)
        return tirx.max(lowest, tirx.min(highest, steps)).astype("int32").astype(holder(target))

    def small_float(value: tirx.Expr, scale: tirx.Expr, zero: tirx.Expr | None) -> tirx.Expr:
        return rounding.nearest(value / scale, SMALL_FLOATS[target], saturate)

    function = integer if target in RANGES else small_float
    return _by_parameters(function, cast(x, "float32"), parameters, "quantize")


def dequantized(q: Node, parameters: Parameters) -> Node:
    """(q - zero point) * scale, in the type of the scale."""
    dtype = parameters.scale.dtype

    def function(value: tirx.Expr, scale: tirx.Expr, zero: tirx.Expr | None) -> tirx.Expr:
        if q.dtype.startswith("float") or q.dtype == "int32":
            number = value if zero is None or q.dtype.startswith("float") else value - zero
            return number.astype(dtype) * scale
        number = value.astype("int32")
        return (number if zero is None else number - zero.astype("int32")).astype(dtype) * scale

    return _by_parameters(function, q, parameters, "dequantize")


def holder(target: str) -> str:
    """The type that holds an integer type."""
    return target if target.endswith(("8", "16", "32")) else f"{target.rstrip('24')}8"


def _by_parameters(function: Callable[..., tirx.Expr], x: Node, parameters: Parameters, name: str) -> Node:
    def body(data: te.Tensor, scale: te.Tensor, *zero: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            place = parameters.place(i)
            return function(data(*i), scale(*place), *(z(*place) for z in zero), *([None] * (not zero)))

        return te.compute(x.shape, element, name=name)

    return expression(body, x, *parameters.nodes, name=name)


def centred(q: Node, zero_point: Node | None) -> Node:
    """Quantised integers less their zero point, which is broadcast, as int32."""
    q = cast(q, "int32")
    return q if zero_point is None else operator(relax.op.subtract, q, cast(zero_point, "int32"))


def requantized(total: Node, scale: Node, zero_point: Node | None, target: str) -> Node:
    """int32 sums times a scale, which is broadcast, quantised with scale 1."""
    value = operator(relax.op.multiply, cast(total, "float32"), scale)
    shift = None if zero_point is None else reshape(zero_point, ())
    return quantized(value, Parameters(scalar(1, "float32"), shift), target)
