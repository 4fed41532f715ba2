"""Elementwise operators as tensor expressions and as functions of scalars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx, topi

from calumma.expressions import math
from calumma.tvm_compat import floats

Scalar = Callable[[tirx.Expr], tirx.Expr]


def _const(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")


UNARY: dict[str, Scalar | None] = {
    "nn.relu": lambda x: tirx.max(x, _const(0)),
    "nn.gelu": math.gelu,
    "nn.gelu_tanh": math.gelu_tanh,
    "nn.silu": math.silu,
    "sigmoid": math.sigmoid,
    "tanh": math.tanh,
    "exp": math.exp,
    "erf": math.erf,
    "log": math.log,
    "sqrt": tirx.sqrt,
    "rsqrt": lambda x: _const(1) / tirx.sqrt(x),
    "negative": lambda x: -x,
    "abs": tirx.abs,
    "square": lambda x: x * x,
    "clip": None,
    "nn.leakyrelu": None,
}
"""Operators of one tensor by Relax name; None: the function depends on attributes (see `unary`)."""

BINARY: dict[str, Callable[[te.Tensor, te.Tensor], te.Tensor]] = {
    "add": topi.add,
    "subtract": topi.subtract,
    "multiply": topi.multiply,
    "divide": topi.divide,
    "power": topi.power,
    "maximum": topi.maximum,
    "minimum": topi.minimum,
}

UNSAFE_ON_HOLES = {"log", "sqrt", "rsqrt", "divide", "power"}
"""Operators that could make a hole of a blocked tensor infinite or NaN, and so poison what reads it: 0 * inf = NaN."""


def unary(op: str, attrs: Any, extra: Sequence[Any]) -> Scalar | None:
    """The scalar function of a unary operator with its attributes, or None where it cannot be given here."""
    if op == "clip":
        low, high = (float(v.value) for v in extra)
        return lambda x: tirx.min(tirx.max(x, _const(low)), _const(high))
    if op == "nn.leakyrelu":
        alpha = float(attrs.alpha)
        return lambda x: tirx.max(x, _const(0)) + _const(alpha) * tirx.min(x, _const(0))
    return UNARY[op]


def with_scalar(op: str, scalar: float, swapped: bool) -> Scalar:
    """The operator with one operand fixed to `scalar`: the right one, or the left one if `swapped`."""
    value = _const(scalar)
    if not scalar and op in ("multiply", "divide"):  # 0 times infinity is NaN: no constant that folds
        value = floats.opaque(value)
    match op, swapped:
        case "add", _:
            return lambda x: x + value
        case "multiply", _:
            return lambda x: x * value
        case "maximum", _:
            return lambda x: tirx.max(x, value)
        case "minimum", _:
            return lambda x: tirx.min(x, value)
        case "subtract", False:
            return lambda x: x - value
        case "subtract", True:
            return lambda x: value - x
        case "divide", False:
            return lambda x: x / value
        case "divide", True:
            return lambda x: value / x
        case "power", False if scalar == 2.0:
            return lambda x: x * x
        case "power", False if scalar == 0.5:
            return tirx.sqrt
        case "power", False:
            return lambda x: _power(x, value)
        case _:
            return lambda x: _power(value, x)


def _power(base: tirx.Expr, exponent: tirx.Expr) -> tirx.Expr:
    """base to the power of exponent; `tirx.power` makes the same and warns of large constants."""
    return tirx.call_intrin("float32", "tirx.pow", base, exponent)
