"""Operators that compute every element from one element of each argument: arithmetic, comparisons, logic, bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, tirx

from calumma.graph.build import cast, combined, operator, reshape, scalar
from calumma.graph.nodes import CONSTANT, Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics import arithmetic
from calumma.semantics.activations import trigonometric

_UNARY = {
    "Abs": relax.op.abs,
    "BitwiseNot": relax.op.bitwise_not,
    "Ceil": relax.op.ceil,
    "Erf": relax.op.erf,
    "Exp": relax.op.exp,
    "Floor": relax.op.floor,
    "Log": relax.op.log,
    "Neg": relax.op.negative,
    "Not": relax.op.logical_not,
    "Sqrt": relax.op.sqrt,
    "Tanh": relax.op.tanh,
    "Sigmoid": relax.op.sigmoid,
    "Relu": relax.op.nn.relu,
}
_MAPPED: dict[str, Callable[[Node], Node]] = {
    "Acos": trigonometric("arccos"),
    "Acosh": trigonometric("arccosh"),
    "Asin": trigonometric("arcsin"),
    "Asinh": trigonometric("arcsinh"),
    "Atan": trigonometric("arctan"),
    "Atanh": trigonometric("arctanh"),
    "Cos": trigonometric("cos"),
    "Cosh": trigonometric("cosh"),
    "Sin": trigonometric("sin"),
    "Sinh": trigonometric("sinh"),
    "Tan": trigonometric("tan"),
    "IsNaN": arithmetic.is_nan,
    "Round": arithmetic.rounded,
    "Sign": arithmetic.sign,
}


@onnx_rule(*_UNARY)
def unary(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    return operator(_UNARY[node.op], node.input(0))


@onnx_rule(*_MAPPED)
def mapped(node: OnnxNode) -> Node:
    return _MAPPED[node.op](node.input(0))


@onnx_rule("Reciprocal")
def reciprocal(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    x = node.input(0)
    return operator(relax.op.divide, scalar(1, x.dtype), x)


@onnx_rule("IsInf")
def is_infinite(node: OnnxNode) -> Node:
    positive, negative = node.flag("detect_positive", 1), node.flag("detect_negative", 1)
    return arithmetic.is_infinite(node.input(0), positive, negative)


_BINARY: dict[str, Callable[[Node, Node], Node]] = {
    "Add": lambda a, b: operator(relax.op.add, a, b),
    "Mul": lambda a, b: operator(relax.op.multiply, a, b),
    "Sub": lambda a, b: operator(relax.op.subtract, a, b),
    "Div": arithmetic.divided,
    "Pow": arithmetic.power,
    "And": lambda a, b: operator(relax.op.logical_and, a, b),
    "Or": lambda a, b: operator(relax.op.logical_or, a, b),
    "Xor": lambda a, b: operator(relax.op.logical_xor, a, b),
    "Equal": lambda a, b: operator(relax.op.equal, arithmetic.as_numbers(a), arithmetic.as_numbers(b)),
    "Greater": lambda a, b: operator(relax.op.greater, a, b),
    "GreaterOrEqual": lambda a, b: operator(relax.op.greater_equal, a, b),
    "Less": lambda a, b: operator(relax.op.less, a, b),
    "LessOrEqual": lambda a, b: operator(relax.op.less_equal, a, b),
    "BitwiseAnd": lambda a, b: operator(relax.op.bitwise_and, a, b),
    "BitwiseOr": lambda a, b: operator(relax.op.bitwise_or, a, b),
    "BitwiseXor": lambda a, b: operator(relax.op.bitwise_xor, a, b),
}
_AXIS_VERSIONS = 7
"""Before this version the right operand was broadcast only if an attribute said so, from an axis on."""


@onnx_rule(*_BINARY)
def binary(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    left, right = node.input(0), node.input(1)
    if node.version < _AXIS_VERSIONS and node.op in _OLD_BROADCAST:
        right = _old_broadcast(node, left, right)
    return _BINARY[node.op](left, right)


_OLD_BROADCAST = ("Add", "Mul", "Sub", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")


def _old_broadcast(node: OnnxNode, left: Node, right: Node) -> Node:
    """The right operand as `broadcast` and `axis` of opsets before 7 place it."""
    broadcast = node.attribute("broadcast", 0)
    rank, own = len(left.shape), len(right.shape)
    axis = node.attribute("axis", None) if node.has_attribute("axis") else rank - own
    if not broadcast:
        if left.shape != right.shape:
            raise node.refused(f"shapes {left.shape} and {right.shape} differ without broadcast", "export it again")
        return right
    axis = axis if axis >= 0 else axis + rank
    if not 0 <= axis <= rank - own:
        raise node.refused(f"axis {axis} of {rank} dimensions for an operand with {own}", "export it again")
    return reshape(right, arithmetic.aligned(right, rank, axis))


@onnx_rule("Mod")
def mod(node: OnnxNode) -> Node:
    """Of floats it has a meaning without `fmod` from version 28 on; a zero then has the sign of the divisor."""
    left, right = node.input(0), node.input(1)
    truncated = node.flag("fmod", 0)
    if truncated or not arithmetic.is_float(left):
        return arithmetic.remainder(left, right, truncated)
    if node.version < 28:
        raise node.refused("of floats it wants fmod=1", "export it with fmod=1")
    rest = arithmetic.remainder(left, right, truncated)
    copysign = "copysign" if rest.dtype == "float64" else "copysignf"

    def signed(x: tirx.Expr, y: tirx.Expr) -> tirx.Expr:
        return tirx.Select(x == tirx.const(0, x.ty), tirx.call_pure_extern(str(x.ty), copysign, x, y), x)

    return combined(signed, rest, right, name="mod_zero")


@onnx_rule("BitShift")
def bit_shift(node: OnnxNode) -> Node:
    direction = node.choice("direction", ("LEFT", "RIGHT"))
    return arithmetic.shifted(node.input(0), node.input(1), left=direction == "LEFT")


@onnx_rule("Max", "Min")
def extremum(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    return arithmetic.extremum(node.inputs(), largest=node.op == "Max")


@onnx_rule("Sum", "Mean")
def total(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    return (arithmetic.total if node.op == "Sum" else arithmetic.average)(node.inputs())


@onnx_rule("Where")
def where(node: OnnxNode) -> Node:
    condition, left, right = node.input(0), node.input(1), node.input(2)
    if left.dtype == "bool":
        return combined(
            lambda c, a, b: tirx.any(tirx.all(c, a), tirx.all(tirx.Not(c), b)), condition, left, right, name="where"
        )
    return operator(relax.op.where, condition, left, right)


@onnx_rule("Clip")
def clip_by_attributes(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    x = node.input(0)
    bounds = [node.attribute(name, None) for name in ("min", "max")]
    return arithmetic.clipped(x, *(None if bound is None else scalar(bound, x.dtype) for bound in bounds))


@onnx_rule("Clip", since=11)
def clip(node: OnnxNode) -> Node:
    bounds = [_bound(node, index) for index in (1, 2)]
    return arithmetic.clipped(node.input(0), *bounds)


def _bound(node: OnnxNode, index: int) -> Node | None:
    """A bound of Clip, by default the type's own: an infinite number is clipped, too."""
    bound, dtype = node.optional(index), node.input(0).dtype
    if bound is None:
        own = tirx.min_value(dtype) if index == 1 else tirx.max_value(dtype)
        return scalar(own.value, dtype) if dtype.startswith("float") else None
    if bound.op == CONSTANT and bound.dtype.startswith("float") and np.isnan(bound.value).any():
        return None  # as ONNX Runtime has it
    if len(bound.shape) and bound.shape != (1,):
        raise node.refused(f"a bound has shape {bound.shape}", "give a scalar")
    return cast(reshape(bound, ()), dtype)
