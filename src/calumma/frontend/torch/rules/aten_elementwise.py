"""Operators that compute every element from one element of each argument."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, tirx

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, combined, mapped, operator, scalar
from calumma.graph.nodes import Node, constant
from calumma.semantics import activations, arithmetic

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


_TRIGONOMETRIC = {
    **{f"{a}{name}": f"{long}{name}" for a, long in (("", ""), ("a", "arc")) for name in ("sin", "cos", "tan")},
    **{f"{a}{name}h": f"{long}{name}h" for a, long in (("", ""), ("a", "arc")) for name in ("sin", "cos", "tan")},
}
"""torch's names -> NumPy's."""
del _TRIGONOMETRIC["tanh"]


@aten_rule(*(f"{name}.default" for name in _TRIGONOMETRIC))
def trigonometric(node: TorchNode, self: Node) -> Node:
    return activations.trigonometric(_TRIGONOMETRIC[node.op])(cast(self, node.dtype))


_EXTERNAL = ("log10", "log1p", "log2", "expm1", "lgamma")


@aten_rule(*(f"{name}.default" for name in _EXTERNAL))
def external(node: TorchNode, self: Node) -> Node:
    """A function of C's mathematical library."""

    def function(x: tirx.Expr) -> tirx.Expr:
        return tirx.call_pure_extern(str(x.ty), node.op + ("f" if str(x.ty) == "float32" else ""), x)

    return mapped(function, cast(self, node.dtype), node.op, finite=node.op in ("expm1",))


@aten_rule("round.default", "trunc.default", "sign.default", "reciprocal.default")
def rounding(node: TorchNode, self: Node) -> Node:
    x = cast(self, node.dtype)
    if node.op == "sign":
        if x.dtype == "bool":
            return x
        found = arithmetic.sign(x)
        if not arithmetic.is_float(x):
            return found
        return operator(relax.op.where, arithmetic.is_nan(x), scalar(0, x.dtype), found)  # torch: sign of NaN is 0
    if node.op == "reciprocal":
        return operator(relax.op.divide, scalar(1, x.dtype), x)
    if not arithmetic.is_float(x):
        return x
    return arithmetic.rounded(x) if node.op == "round" else mapped(tirx.trunc, x, "trunc")


@aten_rule("round.decimals")
def round_decimals(node: TorchNode, self: Node, decimals: int = 0) -> Node:
    if not arithmetic.is_float(self):
        raise node.refused("decimals of whole numbers are not supported")
    factor = scalar(10.0 ** abs(decimals), self.dtype)
    scale, back = (relax.op.multiply, relax.op.divide) if decimals >= 0 else (relax.op.divide, relax.op.multiply)
    return operator(back, arithmetic.rounded(operator(scale, self, factor)), factor)


@aten_rule("isinf.default", "isnan.default")
def is_special(node: TorchNode, self: Node) -> Node:
    if not arithmetic.is_float(self):
        return constant(np.zeros(self.shape, bool), node.name)
    return arithmetic.is_infinite(self) if node.op == "isinf" else arithmetic.is_nan(self)


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
    if mode is None or (mode == "trunc" and not arithmetic.is_float(left)):
        return arithmetic.divided(left, right)
    if mode == "trunc":
        return mapped(tirx.trunc, operator(relax.op.divide, left, right), "trunc")
    if not arithmetic.is_float(left):
        rest = arithmetic.remainder(left, right, truncated=False)
        return arithmetic.divided(operator(relax.op.subtract, left, rest), right)
    return combined(_floored, left, right, name="floor_divide")


def _floored(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """floor(a / b) as torch computes it: from the remainder, so that rounding of the quotient does not show."""
    zero, one, half = (tirx.const(value, str(a.ty)) for value in (0, 1, 0.5))
    rest = tirx.call_pure_extern(str(a.ty), "fmodf" if str(a.ty) == "float32" else "fmod", a, b)
    whole = (a - rest) / b
    differ = tirx.any(tirx.all(b < zero, rest > zero), tirx.all(b > zero, rest < zero))
    whole = tirx.Select(differ, whole - one, whole)
    down = tirx.floor(whole)
    nearest = tirx.Select(whole - down > half, down + one, down)
    return tirx.Select(b == zero, a / b, tirx.Select(whole == zero, zero, nearest))


@aten_rule("remainder.Tensor", "remainder.Scalar", "fmod.Tensor", "fmod.Scalar")
def remainder(node: TorchNode, self: Node, other: Node | Number) -> Node:
    """`remainder` has the sign of the divisor, `fmod` that of the dividend."""
    left, right = _pair(node, self, other, node.dtype)
    return arithmetic.remainder(left, right, truncated=node.op == "fmod")


@aten_rule("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar")
def power(node: TorchNode, self: Node | Number, exponent: Node | Number) -> Node:
    return arithmetic.power(*_pair(node, self, exponent, node.dtype))


@aten_rule("maximum.default", "minimum.default")
def extreme(node: TorchNode, self: Node, other: Node) -> Node:
    left, right = _pair(node, self, other, node.dtype)
    return operator(relax.op.maximum if node.op == "maximum" else relax.op.minimum, left, right)


@aten_rule("fmax.default", "fmin.default")
def extreme_number(node: TorchNode, self: Node, other: Node) -> Node:
    """The larger or smaller one, and of a number and NaN the number."""
    left, right = _pair(node, self, other, node.dtype)
    if not arithmetic.is_float(left):
        return operator(relax.op.maximum if node.op == "fmax" else relax.op.minimum, left, right)
    name = node.op + ("f" if node.dtype == "float32" else "")
    return combined(lambda a, b: tirx.call_pure_extern(node.dtype, name, a, b), left, right, name=node.op)


@aten_rule("frexp.Tensor")
def mantissa_and_exponent(node: TorchNode, self: Node) -> tuple[Node, Node]:
    """x = mantissa * 2 ** exponent, the mantissa at least 1/2 and below 1; of what is not finite, itself and 0."""

    def logarithm(x: tirx.Expr) -> tirx.Expr:
        return tirx.call_pure_extern("float64", "logb", tirx.abs(x).astype("float64")) + tirx.const(1, "float64")

    def is_plain(x: tirx.Expr) -> tirx.Expr:
        return tirx.all(tirx.abs(x) > tirx.const(0, str(x.ty)), tirx.abs(x) < tirx.const(math.inf, str(x.ty)))

    zero = tirx.const(0, "float64")
    x = self
    power = mapped(lambda v: tirx.Select(is_plain(v), logarithm(v), zero), x, "exponent")
    scale = combined(
        lambda v, p: (v.astype("float64") * tirx.call_pure_extern("float64", "exp2", zero - p)).astype(x.dtype),
        x,
        power,
        name="mantissa",
    )
    return scale, cast(power, "int32")


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
    if not node.dtype.startswith("uint"):
        raise node.refused(f"shifts of {node.dtype} are not supported")
    return arithmetic.shifted(left, right, left=node.op == "bitwise_left_shift")


@aten_rule("where.self")
def where(node: TorchNode, condition: Node, self: Node, other: Node) -> Node:
    return operator(relax.op.where, cast(condition, "bool"), *_pair(node, self, other, node.dtype))


@aten_rule("clamp.default", "hardtanh.default")
def clamp(
    node: TorchNode,
    self: Node,
    min: Number | None = None,
    max: Number | None = None,
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
def clamp_tensor(node: TorchNode, self: Node, min: Node | None = None, max: Node | None = None) -> Node:
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


@aten_rule("rrelu_with_noise_functional.default")
def randomised_relu(
    node: TorchNode, self: Node, noise: Node, lower: float = 0.125, upper: float = 1 / 3, training: bool = False
) -> tuple[Node, None]:
    """A leaky ReLU of the mean slope, in inference."""
    if training:
        raise node.refused("slopes of training are random; call .eval() on the module before exporting it")
    return operator(relax.op.nn.leakyrelu, self, (lower + upper) / 2), None


@aten_rule("elu.default")
def elu(node: TorchNode, self: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    if input_scale != 1:
        raise node.refused(f"input_scale {input_scale} is not supported")
    return activations.elu(self, alpha, scale)
