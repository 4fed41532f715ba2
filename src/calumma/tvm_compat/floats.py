"""Floats as IEEE 754 has them, where TVM takes them for real numbers.

NaN goes through maxima and minima. TVM's `max(a, b)` becomes the instruction for `a > b ? a : b`, and that is b
wherever one of them is NaN. A constant in front therefore costs nothing. Of two variables the second is tested, which
of an accumulator and an element is the element: `b == b ? max(b, a) : b`, one comparison and a mask more.

TVM's simplifier knows neither NaN nor infinity nor rounding: it makes 1 of (x + 1) - x, 0 of x - x, y <= x of
!(x < y). What it would rewrite so is written in a form that it has no rule for, and that LLVM sees through.

Both happen when a function is built: workloads, and with them records, do not depend on it.
"""

from __future__ import annotations

import math
from typing import Any

import tvm_ffi
from tvm import ir, tirx

_IDENTITIES = ((tirx.Max, -math.inf, tirx.min_value), (tirx.Min, math.inf, tirx.max_value))
"""Operation, what it leaves as it is, and what TVM starts from instead: the lowest and the highest finite value."""
_PLAIN = "softmax_max"
"""In the name of tensors whose maxima need no NaN: the exponential of the element itself is one."""
_COMPARISONS = (tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE)
_BITS = {"float16": "int16", "bfloat16": "int16", "float32": "int32", "float64": "int64"}


def guard(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A scheduled function that TVM's simplifier leaves its meaning, and whose maxima and minima can be infinite."""
    starts: dict[Any, tuple[float, float]] = {}

    def find(store: tirx.BufferStore) -> None:
        dtype = str(store.buffer.dtype)
        for operation, identity, start in _IDENTITIES:
            if isinstance(store.value, operation) and dtype in _BITS and _reads(store.value, store.buffer):
                starts[store.buffer] = identity, start(dtype).value

    def stored(store: tirx.BufferStore) -> Any:
        value = store.value
        identity, start = starts.get(store.buffer, (0.0, 0.0))
        if isinstance(value, tirx.FloatImm) and value.value == start and start:
            value = tirx.const(identity, str(store.buffer.dtype))
        elif _PLAIN in store.buffer.name:
            value = tvm_ffi.structural_map(value, (tirx.Max, _untested))
        return store if value is store.value else tirx.BufferStore(store.buffer, value, store.indices)

    tvm_ffi.structural_walk(func.body, (tirx.BufferStore, find))
    changes: list[tuple[Any, Any]] = [(tirx.BufferStore, stored)] if starts else []
    changes += [(tirx.Sub, _difference), (tirx.EQ, _equality), (tirx.NE, _equality)]
    changes += [(tirx.Mul, _product), (tirx.Div, _with_zero), (tirx.Not, _negation), (tirx.Or, _either)]
    return func.with_body(tvm_ffi.structural_map(func.body, changes))


def finish(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A lowered function, of vectors and with all simplification behind it, with NaN in mind."""
    changes = [(tirx.Max, _extremum), (tirx.Min, _extremum), (tirx.NE, _unequal)]
    return func.with_body(tvm_ffi.structural_map(func.body, changes))


def opaque(value: tirx.Expr) -> tirx.Expr:
    """The same float, of which the simplifier knows nothing."""
    dtype = str(value.ty)
    return tirx.reinterpret(dtype, tirx.reinterpret(_BITS[dtype], value))


def _untested(node: tirx.Max) -> Any:
    return tirx.Max(opaque(node.a), node.b) if str(node.ty) in _BITS else node


def _is_opaque(value: Any) -> bool:
    return _is_reinterpreted(value) and _is_reinterpreted(value.args[0])


def _is_reinterpreted(value: Any) -> bool:
    return isinstance(value, ir.Call) and getattr(value.op, "name", "") == "tirx.reinterpret"


def _difference(node: tirx.Sub) -> Any:
    if str(node.ty) not in _BITS:
        return node
    left, right = ((side.a, side.b, side) if isinstance(side, tirx.Add) else (side,) for side in (node.a, node.b))
    cancels = any(_same(part, node.b) for part in left) or any(_same(part, node.a) for part in right)
    return tirx.Sub(node.a, opaque(node.b)) if cancels else node


def _equality(node: Any) -> Any:
    cancels = str(node.a.ty) in _BITS and _same(node.a, node.b)
    return type(node)(node.a, opaque(node.b)) if cancels else node


def _product(node: tirx.Mul) -> Any:
    # Of truth values there is no code for it; the simplifier hid that where one of them was x == x.
    return tirx.And(node.a, node.b) if str(node.ty) == "bool" else _with_zero(node)


def _with_zero(node: Any) -> Any:
    if str(node.ty) not in _BITS:
        return node
    a, b = (opaque(side) if isinstance(side, tirx.FloatImm) and not side.value else side for side in (node.a, node.b))
    return node if a is node.a and b is node.b else type(node)(a, b)


def _negation(node: tirx.Not) -> Any:
    return tirx.Select(node.a, _truth(False), _truth(True)) if _compares(node.a) else node


def _either(node: tirx.Or) -> Any:
    return tirx.Select(node.a, _truth(True), node.b) if _compares(node.a) and _compares(node.b) else node


def _extremum(node: Any) -> Any:
    if _scalar(node) not in _BITS or _is_opaque(node.a):
        return node
    operation, left, right = type(node), node.a, node.b
    for constant, other in ((left, right), (right, left)):
        if (value := _constant(constant)) is not None:
            return constant if math.isnan(value) else operation(constant, other)
    if isinstance(left, tirx.Var | ir.TensorLoad) and isinstance(right, tirx.Var | ir.TensorLoad):
        return tirx.Select(tirx.EQ(right, right), operation(right, left), right)
    # TVM cannot build code that binds a variable inside of what a statement binds another to.
    a, b = tirx.Var("a", left.ty), tirx.Var("b", right.ty)
    return tirx.Let(a, left, tirx.Let(b, right, tirx.Select(tirx.EQ(b, b), operation(b, a), b)))


def _unequal(node: tirx.NE) -> Any:
    # TVM's own is false where one of them is NaN.
    return tirx.Not(tirx.EQ(node.a, node.b)) if _scalar(node.a) in _BITS else node


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(tvm_ffi.structural_equal(a, b))


def _compares(value: Any) -> bool:
    """Whether a truth value is made of comparisons of floats."""
    if isinstance(value, tirx.And | tirx.Or):
        return _compares(value.a) or _compares(value.b)
    if isinstance(value, tirx.Not):
        return _compares(value.a)
    if isinstance(value, tirx.Select):  # what a guard has become
        return _compares(value.condition)
    return isinstance(value, _COMPARISONS) and str(value.a.ty) in _BITS


def _reads(value: Any, buffer: Any) -> bool:
    return any(isinstance(side, ir.TensorLoad) and side.source == buffer for side in (value.a, value.b))


def _constant(value: Any) -> float | None:
    scalar = value.value if isinstance(value, tirx.Broadcast) else value
    return float(scalar.value) if isinstance(scalar, tirx.FloatImm) else None


def _scalar(value: Any) -> str:
    """The type of an element of a scalar or a vector."""
    return str(value.ty).partition("x")[0]


def _truth(value: bool) -> tirx.Expr:
    return tirx.IntImm("bool", int(value))
