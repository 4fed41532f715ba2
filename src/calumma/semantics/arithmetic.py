"""Arithmetic of nodes as NumPy has it, where Relax has none or another: integer division, powers, shifts, signs.

Operands are broadcast. Integers wrap around. What no type can hold (a division by zero, a shift beyond the width) gives
0 for integers, and never ends the process.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax, tirx

from calumma.graph.build import cast, combined, mapped, operator, scalar
from calumma.graph.nodes import CONSTANT, Node

_LARGEST_UNROLLED = 8
"""Constant whole exponents from 3 to this are products, as all lower ones of integers are."""


def is_float(node: Node) -> bool:
    """Whether a node's elements are floating-point numbers."""
    return node.dtype.startswith(("float", "bfloat"))


def divided(left: Node, right: Node) -> Node:
    """left / right; integers are truncated towards zero."""
    if is_float(left):
        return operator(relax.op.divide, left, right)
    return combined(lambda x, y: _whole(x, y, tirx.truncdiv, _negated), left, right, name="divide")


def remainder(left: Node, right: Node, truncated: bool) -> Node:
    """What is left of a division.

    Args:
        truncated: it has the sign of `left`, as C's fmod, else that of `right`, as Python's %.
    """
    if is_float(left):
        return combined(_float_remainder(truncated), left, right, name="mod")
    function = tirx.truncmod if truncated else tirx.floormod
    return combined(lambda x, y: _whole(x, y, function, _zero), left, right, name="mod")


def _float_remainder(truncated: bool) -> Callable[[tirx.Expr, tirx.Expr], tirx.Expr]:
    def function(x: tirx.Expr, y: tirx.Expr) -> tirx.Expr:
        rest = tirx.call_pure_extern(str(x.ty), "fmodf" if str(x.ty) == "float32" else "fmod", x, y)
        if truncated:
            return rest
        zero = tirx.const(0, str(x.ty))
        differ = tirx.any(tirx.all(rest < zero, y > zero), tirx.all(rest > zero, y < zero))
        return tirx.Select(differ, rest + y, rest)

    return function


def _whole(x: tirx.Expr, y: tirx.Expr, function: Callable, by_minus_one: Callable) -> tirx.Expr:
    """A function of a quotient of integers that is safe from traps: by 0, and the lowest number by -1."""
    dtype = str(y.ty)
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)
    is_zero = y == zero
    if dtype.startswith("u"):
        return tirx.Select(is_zero, zero, function(x, tirx.Select(is_zero, one, y)))
    is_unit = y == tirx.const(-1, dtype)
    safe = tirx.Select(tirx.any(is_zero, is_unit), one, y)
    return tirx.Select(is_zero, zero, tirx.Select(is_unit, by_minus_one(x), function(x, safe)))


def _negated(x: tirx.Expr) -> tirx.Expr:
    return tirx.const(0, str(x.ty)) - x


def _zero(x: tirx.Expr) -> tirx.Expr:
    return tirx.const(0, str(x.ty))


def power(base: Node, exponent: Node) -> Node:
    """base to the power of exponent, in the type of the base; an integer base is truncated."""
    number = float(exponent.value.reshape(())) if exponent.op == CONSTANT and exponent.value.size == 1 else math.nan
    times = int(number) if number in range(_LARGEST_UNROLLED + 1) and len(exponent.shape) <= len(base.shape) else -1
    if times > 2 or (times >= 0 and not is_float(base) and not is_float(exponent)):
        return mapped(lambda x: _product([x] * times, base.dtype), base, "power", finite=False)
    if is_float(base):
        return operator(relax.op.power, base, cast(exponent, base.dtype))

    def function(x: tirx.Expr, y: tirx.Expr) -> tirx.Expr:
        value = tirx.pow(x.astype("float64"), y.astype("float64"))
        return truncated_float(value, str(x.ty))

    return combined(function, base, exponent, name="power")


def _product(factors: list[tirx.Expr], dtype: str) -> tirx.Expr:
    return functools.reduce(lambda a, b: a * b, factors) if factors else tirx.const(1, dtype)


def truncated_float(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """A floating-point number as an integer, truncated towards zero.

    NaN and what 32 bits (64 for wider types) do not hold is the lowest of these numbers; narrower types wrap around.
    So do NumPy and ONNX Runtime.
    """
    wide = dtype in ("int64", "uint32", "uint64")
    through, limit = ("int64", 2.0**63) if wide else ("int32", 2.0**31)
    source = str(value.ty)
    inside = tirx.all(value >= tirx.const(-limit, source), value < tirx.const(limit, source))
    whole = tirx.Select(inside, value, tirx.const(0, source)).astype(through)
    result = tirx.Select(inside, whole, tirx.min_value(through)).astype(dtype)
    if dtype != "uint64":
        return result
    upper = tirx.all(value >= tirx.const(limit, source), value < tirx.const(2 * limit, source))
    beyond = tirx.Select(upper, value - tirx.const(limit, source), tirx.const(0, source)).astype("int64")
    return tirx.Select(upper, beyond.astype(dtype) + tirx.const(1 << 63, dtype), result)


def shifted(value: Node, amount: Node, left: bool) -> Node:
    """value << amount or value >> amount; what is shifted by the type's width or more is 0, or all its sign."""
    width = int(re.sub(r"\D", "", value.dtype))

    def function(x: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        most = tirx.const(width - 1, str(n.ty))
        inside = tirx.min(n, most)
        moved = (x << inside) if left else (x >> inside)
        if not left and not value.dtype.startswith("u"):
            return moved
        return tirx.Select(n > most, tirx.const(0, str(x.ty)), moved)

    return combined(function, value, amount, name="shift")


def sign(node: Node) -> Node:
    """-1, 0 or 1; NaN stays NaN."""

    def function(x: tirx.Expr) -> tirx.Expr:
        zero, one = tirx.const(0, str(x.ty)), tirx.const(1, str(x.ty))
        if str(x.ty).startswith("u"):
            return tirx.Select(x > zero, one, zero)
        return tirx.Select(x > zero, one, tirx.Select(x < zero, zero - one, zero if not is_float(node) else x))

    return mapped(function, node, "sign")


def rounded(node: Node) -> Node:
    """The nearest integers; halves go to the even one."""
    return mapped(tirx.nearbyint, node, "round") if is_float(node) else node


def is_infinite(node: Node, positive: bool = True, negative: bool = True) -> Node:
    """Where elements are infinite with one of these signs, as bool."""
    signs = [math.inf] * positive + [-math.inf] * negative

    def function(x: tirx.Expr) -> tirx.Expr:
        found = [tirx.EQ(x, tirx.const(value, str(x.ty))) for value in signs]
        return functools.reduce(tirx.any, found) if found else tirx.const(False, "bool")

    return mapped(function, node, "is_infinite")


def is_nan(node: Node) -> Node:
    """Where elements are NaN, as bool."""
    return mapped(tirx.isnan, node, "is_nan")


def extremum(nodes: Sequence[Node], largest: bool) -> Node:
    """The largest or smallest of several tensors' elements, NaN where one is; bool counts as 0 and 1."""
    relax_operator = relax.op.maximum if largest else relax.op.minimum
    return functools.reduce(lambda a, b: operator(relax_operator, a, b), nodes)


def clipped(node: Node, low: Node | None, high: Node | None) -> Node:
    """Elements held between two scalars, each of which may be absent; where they cross, the upper one holds."""
    for bound, relax_operator in ((low, relax.op.maximum), (high, relax.op.minimum)):
        if bound is not None:
            node = operator(relax_operator, node, bound)
    return node


def total(nodes: Sequence[Node]) -> Node:
    """The sum of several tensors, broadcast."""
    return functools.reduce(lambda a, b: operator(relax.op.add, a, b), nodes)


def average(nodes: Sequence[Node]) -> Node:
    """The mean of several tensors, broadcast."""
    return operator(relax.op.divide, total(nodes), scalar(len(nodes), nodes[0].dtype)) if len(nodes) > 1 else nodes[0]


def aligned(node: Node, rank: int, axis: int) -> tuple[int, ...]:
    """The shape in which a tensor's axes stand from `axis` of a tensor of `rank` on, for broadcasting."""
    after = rank - axis - len(node.shape)
    return (1,) * axis + node.shape + (1,) * max(after, 0)


def as_numbers(node: Node) -> Node:
    """A node of bool as uint8; any other as it is."""
    return cast(node, "uint8") if node.dtype == str(np.dtype(bool)) else node
