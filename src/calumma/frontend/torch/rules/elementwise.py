"""Operators that compute every element from one element of each argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx

from calumma.frontend.torch.node import TorchNode
from calumma.frontend.torch.registry import aten_rule
from calumma.graph.build import cast, combined, mapped, operator, scalar
from calumma.graph.nodes import Node

Number = int | float | bool

_UNARY = {
    "abs": relax.op.abs,
    "ceil": relax.op.ceil,
    "erf": relax.op.erf,
    "exp": relax.op.exp,
    "floor": relax.op.floor,
    "log": relax.op.log,
    "neg": relax.op.negative,
    "relu": relax.op.nn.relu,
    "rsqrt": relax.op.rsqrt,
    "sigmoid": relax.op.sigmoid,
    "silu": relax.op.nn.silu,
    "sqrt": relax.op.sqrt,
    "tanh": relax.op.tanh,
    "bitwise_not": relax.op.bitwise_not,
}


@aten_rule(*(f"{name}.default" for name in _UNARY))
def unary(node: TorchNode, self: Node) -> Node:
    if self.dtype.startswith(("int", "uint", "bool")) and node.op in ("ceil", "floor"):
        return self
    if self.dtype == "bool" and node.op == "bitwise_not":
        return operator(relax.op.logical_not, self)
    return operator(_UNARY[node.op], cast(self, node.dtype))


def _real(name: str) -> Callable[[tirx.Expr], tirx.Expr]:
    return lambda x: getattr(tirx, name)(x)


_MAPS: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    **{
        name: _real(name)
        for name in ("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "sin", "sinh", "tan")
    },
    **{name: _real(name) for name in ("log10", "log1p", "log2", "trunc")},
    "expm1": lambda x: tirx.call_pure_extern(str(x.ty), "expm1" if str(x.ty) == "float64" else "expm1f", x),
    "round": lambda x: tirx.nearbyint(x),
    "reciprocal": lambda x: tirx.const(1, str(x.ty)) / x,
    "sign": lambda x: tirx.Select(
        tirx.isnan(x) if str(x.ty).startswith("float") else tirx.const(False, "bool"),
        tirx.const(0, str(x.ty)),
        (x > tirx.const(0, str(x.ty))).astype(str(x.ty)) - (x < tirx.const(0, str(x.ty))).astype(str(x.ty)),
    ),
}


@aten_rule(*(f"{name}.default" for name in _MAPS))
def mapped_function(node: TorchNode, self: Node) -> Node:
    if self.dtype.startswith(("int", "uint")) and node.op in ("round", "trunc"):
        return self
    return mapped(_MAPS[node.op], cast(self, node.dtype), node.op, finite=node.op not in _INFINITE)


_INFINITE = ("acosh", "atanh", "log10", "log1p", "log2", "reciprocal", "tan")


@aten_rule("isinf.default", "isnan.default")
def is_special(node: TorchNode, self: Node) -> Node:
    if not self.dtype.startswith("float"):
        return combined(lambda x: tirx.const(False, "bool"), self, name=node.op)
    function = tirx.isinf if node.op == "isinf" else tirx.isnan
    return combined(lambda x: function(x), self, name=node.op)


@aten_rule("logical_not.default")
def logical_not(node: TorchNode, self: Node) -> Node:
    return operator(relax.op.logical_not, cast(self, "bool"))


def _pair(node: TorchNode, left: Node | Number, right: Node | Number, dtype: str) -> tuple[Node, Node]:
    """Two arguments in one type, numbers as constants."""
    sides = [cast(side, dtype) if isinstance(side, Node) else scalar(side, dtype) for side in (left, right)]
    return sides[0], sides[1]


@aten_rule("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar")
def sum_or_difference(node: TorchNode, self: Node, other: Node | Number, alpha: Number = 1) -> Node:
    left, right = _pair(node, self, other, node.dtype)
    if node.op == "rsub":
        left, right = right, left
    if node.op == "rsub" and alpha != 1:
        left, right = right, left
        left = operator(relax.op.multiply, left, scalar(alpha, node.dtype))
        return operator(relax.op.subtract, right, left)
    if alpha != 1:
        right = operator(relax.op.multiply, right, scalar(alpha, node.dtype))
    if node.dtype == "bool":
        return operator(relax.op.logical_or, left, right)
    return operator(relax.op.add if node.op == "add" else relax.op.subtract, left, right)


@aten_rule("mul.Tensor", "mul.Scalar")
def product(node: TorchNode, self: Node, other: Node | Number) -> Node:
    left, right = _pair(node, self, other, node.dtype)
    return operator(relax.op.logical_and if node.dtype == "bool" else relax.op.multiply, left, right)


@aten_rule("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", "floor_divide.default")
def quotient(node: TorchNode, self: Node, other: Node | Number, rounding_mode: str | None = None) -> Node:
    mode = "floor" if node.op == "floor_divide" else rounding_mode
    left, right = _pair(node, self, other, node.dtype)
    if mode is None:
        return operator(relax.op.divide, left, right)
    if node.dtype.startswith("float"):
        return combined(lambda a, b: _floored(a, b) if mode == "floor" else tirx.trunc(a / b), left, right, name="div")
    return combined(lambda a, b: _whole_quotient(a, b, mode), left, right, name="div")


def _floored(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """floor(a / b) as torch computes it: from the remainder, so that rounding of the quotient does not show."""
    zero, one, half = (tirx.const(value, str(a.ty)) for value in (0, 1, 0.5))
    rest = tirx.call_pure_extern(str(a.ty), "fmod" if str(a.ty) == "float64" else "fmodf", a, b)
    whole = (a - rest) / b
    whole = tirx.Select(tirx.all(rest != zero, (b < zero) != (rest < zero)), whole - one, whole)
    down = tirx.floor(whole)
    nearest = tirx.Select(whole - down > half, down + one, down)
    return tirx.Select(b == zero, a / b, tirx.Select(whole == zero, zero * (a / b), nearest))


def _whole_quotient(a: tirx.Expr, b: tirx.Expr, mode: str) -> tirx.Expr:
    divisor = tirx.Select(b == tirx.const(0, str(b.ty)), tirx.const(1, str(b.ty)), b)  # torch raises, hardware traps
    return tirx.floordiv(a, divisor) if mode == "floor" else tirx.truncdiv(a, divisor)


@aten_rule("remainder.Tensor", "remainder.Scalar", "fmod.Tensor", "fmod.Scalar")
def remainder(node: TorchNode, self: Node, other: Node | Number) -> Node:
    """`remainder` has the sign of the divisor, `fmod` that of the dividend."""
    left, right = _pair(node, self, other, node.dtype)
    signed = node.op == "remainder"

    def real(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        zero = tirx.const(0, str(a.ty))
        rest = tirx.call_pure_extern(str(a.ty), "fmod" if str(a.ty) == "float64" else "fmodf", a, b)
        return tirx.Select(tirx.all(rest != zero, (b < zero) != (rest < zero)), rest + b, rest) if signed else rest

    def whole(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        divisor = tirx.Select(b == tirx.const(0, str(b.ty)), tirx.const(1, str(b.ty)), b)
        return tirx.floormod(a, divisor) if signed else tirx.truncmod(a, divisor)

    return combined(real if node.dtype.startswith("float") else whole, left, right, name=node.op)


@aten_rule("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar")
def power(node: TorchNode, self: Node | Number, exponent: Node | Number) -> Node:
    left, right = _pair(node, self, exponent, node.dtype)
    if node.dtype.startswith("float"):
        return operator(relax.op.power, left, right)
    return combined(_whole_power, left, right, name="pow")


def _whole_power(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """a ** b of integers by squaring; wraps around as torch does, negative exponents give 0 but for 1 and -1."""
    dtype = str(a.ty)
    zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
    result: Any = one
    base = a
    for bit in range(6):
        odd = (b >> tirx.const(bit, dtype)) & one
        result = tirx.Select(odd == one, result * base, result)
        base = base * base
    minus = tirx.const(-1, dtype) if dtype.startswith("int") else one
    sign = tirx.Select((b & one) == one, a, a * a)
    small = tirx.Select(tirx.any(a == one, a == minus), sign, zero)
    return tirx.Select(b < zero, small, result)


@aten_rule("maximum.default", "minimum.default")
def extreme(node: TorchNode, self: Node, other: Node) -> Node:
    left, right = _pair(node, self, other, node.dtype)
    return operator(relax.op.maximum if node.op == "maximum" else relax.op.minimum, left, right)


@aten_rule("atan2.default")
def atan2(node: TorchNode, self: Node, other: Node) -> Node:
    left, right = _pair(node, self, other, node.dtype)
    return combined(tirx.atan2, left, right, name="atan2")


_COMPARISONS = {
    "eq": relax.op.equal,
    "ne": relax.op.not_equal,
    "lt": relax.op.less,
    "le": relax.op.less_equal,
    "gt": relax.op.greater,
    "ge": relax.op.greater_equal,
}


@aten_rule(*(f"{name}.{kind}" for name in _COMPARISONS for kind in ("Tensor", "Scalar")))
def comparison(node: TorchNode, self: Node, other: Node | Number) -> Node:
    return operator(_COMPARISONS[node.op], *_pair(node, self, other, node.promoted_dtype("self", "other")))


_LOGICAL = {"and": relax.op.logical_and, "or": relax.op.logical_or, "xor": relax.op.logical_xor}
_BITWISE = {"and": relax.op.bitwise_and, "or": relax.op.bitwise_or, "xor": relax.op.bitwise_xor}


@aten_rule(*(f"logical_{name}.default" for name in _LOGICAL))
def logical(node: TorchNode, self: Node, other: Node) -> Node:
    return operator(_LOGICAL[node.op.removeprefix("logical_")], cast(self, "bool"), cast(other, "bool"))


@aten_rule(*(f"bitwise_{name}.{kind}" for name in _BITWISE for kind in ("Tensor", "Scalar")))
def bitwise(node: TorchNode, self: Node, other: Node | Number) -> Node:
    table = _LOGICAL if node.dtype == "bool" else _BITWISE
    return operator(table[node.op.removeprefix("bitwise_")], *_pair(node, self, other, node.dtype))


@aten_rule("bitwise_left_shift.Tensor", "bitwise_right_shift.Tensor")
def shift(node: TorchNode, self: Node, other: Node) -> Node:
    left, right = _pair(node, self, other, node.dtype)
    function = tirx.shift_left if node.op == "bitwise_left_shift" else tirx.shift_right
    return combined(lambda a, b: function(a, b), left, right, name=node.op)


@aten_rule("where.self")
def where(node: TorchNode, condition: Node, self: Node, other: Node) -> Node:
    return operator(relax.op.where, cast(condition, "bool"), *_pair(node, self, other, node.dtype))


@aten_rule("clamp.default", "hardtanh.default")
def clamp(
    node: TorchNode,
    self: Node,
    min: Number | None = None,  # noqa: A002 - the names are torch's
    max: Number | None = None,  # noqa: A002
    min_val: Number | None = None,
    max_val: Number | None = None,
) -> Node:
    low, high = (min, max) if node.op == "clamp" else (min_val, max_val)
    self = cast(self, node.dtype)
    if node.dtype.startswith("float"):
        return operator(relax.op.clip, self, -math.inf if low is None else low, math.inf if high is None else high)
    bounds = [None if bound is None else scalar(bound, node.dtype) for bound in (low, high)]
    return _clamped(self, bounds[0], bounds[1])


@aten_rule("clamp.Tensor")
def clamp_tensor(node: TorchNode, self: Node, min: Node | None = None, max: Node | None = None) -> Node:  # noqa: A002
    low, high = (None if bound is None else cast(bound, node.dtype) for bound in (min, max))
    return _clamped(cast(self, node.dtype), low, high)


def _clamped(x: Node, low: Node | None, high: Node | None) -> Node:
    if low is not None:
        x = operator(relax.op.maximum, x, low)
    return x if high is None else operator(relax.op.minimum, x, high)


@aten_rule("gelu.default")
def gelu(node: TorchNode, self: Node, approximate: str = "none") -> Node:
    return operator(relax.op.nn.gelu if approximate == "none" else relax.op.nn.gelu_tanh, self)


@aten_rule("leaky_relu.default")
def leaky_relu(node: TorchNode, self: Node, negative_slope: float = 0.01) -> Node:
    return operator(relax.op.nn.leakyrelu, self, negative_slope)


@aten_rule("elu.default")
def elu(node: TorchNode, self: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    from calumma.expressions.math import exp

    def function(x: tirx.Expr) -> tirx.Expr:
        dtype = str(x.ty)
        zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
        power = (exp if dtype == "float32" else tirx.exp)(x * tirx.const(input_scale, dtype))
        return tirx.Select(
            x > zero, x * tirx.const(scale, dtype), (power - one) * tirx.const(alpha * scale, dtype)
        )

    return mapped(function, self, "elu")
