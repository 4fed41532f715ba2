"""Rounding of float32 elements to narrower floats, whose values stay float32: nearest, halves to the even one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx


@dataclass(frozen=True)
class NarrowFloat:
    """A binary format of few bits that holds numbers of both signs."""

    fraction: int
    """Bits behind the leading one."""
    least: int
    """Exponent of the smallest normal numbers."""
    highest: float
    """The largest finite number."""
    has_infinity: bool = False
    has_nan: bool = True
    has_negative_zero: bool = True


E4M3FN = NarrowFloat(3, -6, 448.0)
E4M3FNUZ = NarrowFloat(3, -7, 240.0, has_negative_zero=False)
E5M2 = NarrowFloat(2, -14, 57344.0, has_infinity=True)
E5M2FNUZ = NarrowFloat(2, -15, 57344.0, has_negative_zero=False)
E2M1 = NarrowFloat(1, 0, 6.0, has_nan=False)


def nearest(x: tirx.Expr, form: NarrowFloat, saturate: bool = True) -> tirx.Expr:
    """The nearest number of a format.

    Args:
        saturate: what is beyond the largest number, infinity too, becomes that number. Otherwise it becomes infinity,
            or NaN in a format without.
    """
    magnitude = tirx.abs(x)
    exponent = tirx.max((tirx.reinterpret("int32", magnitude) >> 23) - _i32(127), _i32(form.least))
    # The distance of neighbours is a power of two, and so is its inverse: both products are exact.
    steps = tirx.nearbyint(magnitude * _power_of_two(_i32(form.fraction) - exponent))
    value = steps * _power_of_two(exponent - _i32(form.fraction))
    if saturate or not (form.has_infinity or form.has_nan):
        beyond = form.highest
    else:
        beyond = math.inf if form.has_infinity else math.nan
    highest = tirx.const(form.highest, "float32")
    value = tirx.Select(value > highest, tirx.const(beyond, "float32"), value)
    sign = tirx.reinterpret("uint32", x) & tirx.const(1 << 31, "uint32")
    signed = tirx.reinterpret("float32", tirx.reinterpret("uint32", value) | sign)
    zero = tirx.const(0, "float32")
    if not form.has_negative_zero:
        signed = tirx.Select(value == zero, zero, signed)
    return signed if form.has_nan else tirx.Select(tirx.isnan(x), zero, signed)


def nearest_float16(x: tirx.Expr) -> tirx.Expr:
    """The nearest float16."""
    return x.astype("float16").astype("float32")


def nearest_bfloat16(x: tirx.Expr) -> tirx.Expr:
    """The nearest bfloat16."""
    word = tirx.reinterpret("uint32", x)
    one, most, half = (tirx.const(number, "uint32") for number in (1, 0x7FFF, 16))
    upper = (word + most + ((word >> half) & one)) & tirx.const(0xFFFF0000, "uint32")
    return tirx.Select(tirx.isnan(x), x, tirx.reinterpret("float32", upper))


def power_of_two(x: tirx.Expr, mode: str, saturate: bool = True) -> tirx.Expr:
    """The power of two near a number's magnitude, as float8 E8M0 holds it: 2^-127 to 2^127, and NaN for infinity.

    Args:
        mode: "nearest" (halves go up), "up" or "down".
        saturate: what is above 2^127 becomes that, else NaN.
    """
    word = tirx.reinterpret("uint32", x)
    biased = ((word >> _u32(23)) & _u32(0xFF)).astype("int32")
    fraction = word & _u32(0x7FFFFF)
    if mode == "nearest":
        # Below the smallest normal number a half is a tie that goes to the even one, 2^-127.
        more = tirx.any(fraction > _u32(0x400000), tirx.all(fraction == _u32(0x400000), biased > 0))
    else:
        more = fraction > _u32(0) if mode == "up" else tirx.const(False, "bool")
    rounded = biased + tirx.Select(more, _i32(1), _i32(0))
    most = _i32(254)
    rounded = tirx.min(rounded, most) if saturate else rounded
    bits = tirx.Select(rounded == 0, _i32(0x00400000), rounded << 23)
    value = tirx.Select(rounded > most, tirx.const(math.nan, "float32"), tirx.reinterpret("float32", bits))
    return tirx.Select(biased == 255, tirx.const(math.nan, "float32"), value)


def _power_of_two(n: tirx.Expr) -> tirx.Expr:
    """2^n for int32 n in [-126, 127]."""
    return tirx.reinterpret("float32", (n + _i32(127)) << 23)


def _i32(value: int) -> tirx.Expr:
    return tirx.const(value, "int32")


def _u32(value: int) -> tirx.Expr:
    return tirx.const(value, "uint32")
