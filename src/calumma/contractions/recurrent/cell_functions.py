"""Activation functions of recurrent cells, over scalar float32 expressions that LLVM turns into vector code."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from calumma.expressions import math
from calumma.graph.recurrence import Activation

_Function = Callable[..., tirx.Expr]


def apply(activation: Activation, x: tirx.Expr) -> tirx.Expr:
    """An activation of x, which is an element of a buffer: it may be used several times."""
    return _FUNCTIONS[activation.name](x, *(_f32(value) for value in activation.parameters))


def _f32(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")


def _leaky_relu(x: tirx.Expr, alpha: tirx.Expr) -> tirx.Expr:
    return tirx.Select(x >= _f32(0.0), x, alpha * x)


def _thresholded_relu(x: tirx.Expr, alpha: tirx.Expr) -> tirx.Expr:
    return tirx.Select(x >= alpha, x, _f32(0.0))


def _hard_sigmoid(x: tirx.Expr, alpha: tirx.Expr, beta: tirx.Expr) -> tirx.Expr:
    return tirx.min(_f32(1.0), tirx.max(_f32(0.0), alpha * x + beta))


def _elu(x: tirx.Expr, alpha: tirx.Expr) -> tirx.Expr:
    return tirx.Select(x >= _f32(0.0), x, alpha * (math.exp(tirx.min(_f32(0.0), x)) - _f32(1.0)))


def _softsign(x: tirx.Expr) -> tirx.Expr:
    return x / (_f32(1.0) + _absolute(x))


def _softplus(x: tirx.Expr) -> tirx.Expr:
    """log(1 + e^x) without overflow."""
    return tirx.max(_f32(0.0), x) + math.log(_f32(1.0) + math.exp(_f32(0.0) - _absolute(x)))


def _absolute(x: tirx.Expr) -> tirx.Expr:
    return tirx.max(x, _f32(0.0) - x)


_FUNCTIONS: dict[str, _Function] = {
    "sigmoid": math.sigmoid,
    "tanh": math.tanh,
    "relu": lambda x: tirx.max(_f32(0.0), x),
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "leakyrelu": _leaky_relu,
    "thresholdedrelu": _thresholded_relu,
    "scaledtanh": lambda x, alpha, beta: alpha * math.tanh(beta * x),
    "hardsigmoid": _hard_sigmoid,
    "elu": _elu,
    "softsign": _softsign,
    "softplus": _softplus,
}
"""Name -> function of x and of as many parameters as `graph.recurrence.PARAMETERS` has defaults for."""
