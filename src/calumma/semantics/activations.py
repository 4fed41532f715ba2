"""Activations of neural networks as functions of nodes, composed of Relax operators or mapped element by element.

Those that are composed keep their form: workloads, and so records of measurements, are known by it. They are floats.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, tirx

from calumma.expressions import math as scalars
from calumma.graph.build import combined, mapped, operator, scalar
from calumma.graph.nodes import CONSTANT, Node


def elu(x: Node, alpha: float, gamma: float = 1.0) -> Node:
    """gamma * (x, or alpha * (e^x - 1) below 0)."""
    one = scalar(1.0, x.dtype)
    rest = operator(relax.op.nn.relu, operator(relax.op.subtract, one, operator(relax.op.exp, x)))
    scaled = operator(relax.op.multiply, scalar(-alpha, x.dtype), rest)
    result = operator(relax.op.add, scaled, operator(relax.op.nn.relu, x))
    return result if gamma == 1.0 else operator(relax.op.multiply, scalar(gamma, x.dtype), result)


def celu(x: Node, alpha: float) -> Node:
    """max(0, x) + min(0, alpha * (e^(x / alpha) - 1))."""

    def function(value: tirx.Expr) -> tirx.Expr:
        a, zero = tirx.const(alpha, x.dtype), tirx.const(0, x.dtype)
        below = tirx.min(zero, a * (_exp(value / a) - tirx.const(1, x.dtype)))
        return tirx.max(zero, value) + below

    return mapped(function, x, "celu", finite=alpha > 0)


def hard_sigmoid(x: Node, alpha: float, beta: float) -> Node:
    """alpha * x + beta, held between 0 and 1."""
    line = operator(relax.op.add, operator(relax.op.multiply, scalar(alpha, x.dtype), x), scalar(beta, x.dtype))
    return operator(relax.op.clip, line, min=0, max=1)


def hard_swish(x: Node) -> Node:
    """x * min(max(x + 3, 0), 6) / 6."""
    gate = operator(relax.op.clip, operator(relax.op.add, x, scalar(3, x.dtype)), min=0, max=6)
    return operator(relax.op.multiply, x, operator(relax.op.divide, gate, scalar(6, x.dtype)))


def leaky_relu(x: Node, alpha: float) -> Node:
    """x, or alpha * x below 0."""
    return operator(relax.op.nn.leakyrelu, x, alpha)


def mish(x: Node) -> Node:
    """x * tanh(log(1 + e^x))."""
    raised = operator(relax.op.add, scalar(1.0, x.dtype), operator(relax.op.exp, x))
    return operator(relax.op.multiply, x, operator(relax.op.tanh, operator(relax.op.log, raised)))


def prelu(x: Node, slope: Node) -> Node:
    """x, or slope * x below 0; slope is broadcast."""
    zero = scalar(0, x.dtype)
    if slope.op != CONSTANT or not x.dtype.startswith("float") or not np.isfinite(slope.value).all():
        bound = tirx.const(0, x.dtype)
        return combined(lambda v, s: tirx.Select(v < bound, v * s, v), x, slope, name="prelu")
    below = operator(relax.op.multiply, operator(relax.op.minimum, x, zero), slope)
    return operator(relax.op.add, operator(relax.op.maximum, x, zero), below)


def shrink(x: Node, bias: float, lambd: float) -> Node:
    """x - bias above lambd, x + bias below -lambd, else 0."""

    def function(value: tirx.Expr) -> tirx.Expr:
        bound, offset, zero = (tirx.const(number, x.dtype) for number in (lambd, bias, 0))
        below = tirx.Select(value < zero - bound, value + offset, zero)
        return tirx.Select(value > bound, value - offset, below)

    return mapped(function, x, "shrink")


def softplus(x: Node) -> Node:
    """log(1 + e^x)."""
    tail = operator(relax.op.exp, operator(relax.op.negative, operator(relax.op.abs, x)))
    logarithm = operator(relax.op.log, operator(relax.op.add, scalar(1, x.dtype), tail))
    return operator(relax.op.add, operator(relax.op.maximum, x, scalar(0, x.dtype)), logarithm)


def softsign(x: Node) -> Node:
    """x / (1 + |x|)."""
    return operator(relax.op.divide, x, operator(relax.op.add, operator(relax.op.abs, x), scalar(1, x.dtype)))


def swish(x: Node, alpha: float) -> Node:
    """x * sigmoid(alpha * x)."""
    if alpha == 1.0:
        return operator(relax.op.nn.silu, x)
    gate = operator(relax.op.sigmoid, operator(relax.op.multiply, x, scalar(alpha, x.dtype)))
    return operator(relax.op.multiply, x, gate)


def thresholded_relu(x: Node, alpha: float) -> Node:
    """x above alpha, else 0."""
    bound, zero = tirx.const(alpha, x.dtype), tirx.const(0, x.dtype)
    return mapped(lambda value: tirx.Select(value > bound, value, zero), x, "thresholded_relu")


def gelu(x: Node, approximate: bool) -> Node:
    """x * Phi(x), Phi the normal distribution function, or its approximation by tanh."""
    return operator(relax.op.nn.gelu_tanh if approximate else relax.op.nn.gelu, x)


def trigonometric(name: str) -> Callable[[Node], Node]:
    """A trigonometric or hyperbolic function, or an inverse of one, by NumPy's name."""
    function, finite = _TRIGONOMETRIC[name]
    return lambda x: mapped(function, x, name, finite)


def _exp(x: tirx.Expr) -> tirx.Expr:
    return scalars.exp(x) if str(x.ty) == "float32" else tirx.exp(x)


def _external(name: str) -> Callable[[tirx.Expr], tirx.Expr]:
    """A function of C's mathematical library."""

    def function(x: tirx.Expr) -> tirx.Expr:
        return tirx.call_pure_extern(str(x.ty), name + ("f" if str(x.ty) == "float32" else ""), x)

    return function


_TRIGONOMETRIC: dict[str, tuple[Callable[[tirx.Expr], tirx.Expr], bool]] = {
    "sin": (_external("sin"), True),
    "cos": (_external("cos"), True),
    "tan": (_external("tan"), True),
    "arcsin": (_external("asin"), False),
    "arccos": (_external("acos"), False),
    "arctan": (_external("atan"), True),
    "sinh": (_external("sinh"), False),
    "cosh": (_external("cosh"), False),
    "arcsinh": (_external("asinh"), True),
    "arccosh": (_external("acosh"), False),
    "arctanh": (_external("atanh"), False),
}
"""Name -> the function, and whether it is finite of every finite number."""
