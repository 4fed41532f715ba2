"""Maxima, minima and inequality of floats as IEEE 754 has them: NaN goes through, and is not equal to itself.

TVM's `max(a, b)` becomes the instruction for `a > b ? a : b`, and that is b wherever one of them is NaN. A constant in
front therefore costs nothing. Of two variables the second is tested, which of an accumulator and an element is the
element: `b == b ? max(b, a) : b`, one comparison and a mask more. TVM's `a != b` is false of NaN.

This is done last, on vectors and after all simplification: workloads, and with them records, do not depend on it.
"""

from __future__ import annotations

import math
from typing import Any

import tvm_ffi
from tvm import ir, tirx

_IDENTITIES = ((tirx.Max, -math.inf, tirx.min_value), (tirx.Min, math.inf, tirx.max_value))
"""Operation, what it leaves as it is, and what TVM starts from instead: the lowest and the highest finite value."""


def start_infinite(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A scheduled function whose maxima and minima of floats start from infinity, so that they can be infinite."""
    starts: dict[Any, tuple[float, float]] = {}

    def find(store: tirx.BufferStore) -> None:
        dtype = str(store.buffer.dtype)
        for operation, identity, start in _IDENTITIES:
            if isinstance(store.value, operation) and _is_float(dtype) and _reads(store.value, store.buffer):
                starts[store.buffer] = identity, start(dtype).value

    def change(store: tirx.BufferStore) -> Any:
        identity, start = starts.get(store.buffer, (0.0, 0.0))
        if not isinstance(store.value, tirx.FloatImm) or store.value.value != start or not start:
            return store
        return tirx.BufferStore(store.buffer, tirx.const(identity, str(store.buffer.dtype)), store.indices)

    tvm_ffi.structural_walk(func.body, (tirx.BufferStore, find))
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.BufferStore, change))) if starts else func


def finish(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A lowered function with NaN in mind."""
    changes = [(tirx.Max, _propagating), (tirx.Min, _propagating), (tirx.NE, _unequal)]
    return func.with_body(tvm_ffi.structural_map(func.body, changes))


def _propagating(node: Any) -> Any:
    if not _is_float(str(node.ty)):
        return node
    operation, left, right = type(node), node.a, node.b
    for constant, other in ((left, right), (right, left)):
        if (value := _constant(constant)) is not None:
            return constant if math.isnan(value) else operation(constant, other)
    a, b = tirx.Var("a", left.ty), tirx.Var("b", right.ty)
    return tirx.Let(a, left, tirx.Let(b, right, tirx.Select(tirx.EQ(b, b), operation(b, a), b)))


def _unequal(node: tirx.NE) -> Any:
    return tirx.Not(tirx.EQ(node.a, node.b)) if _is_float(str(node.a.ty)) else node


def _reads(value: Any, buffer: Any) -> bool:
    return any(isinstance(side, ir.TensorLoad) and side.source == buffer for side in (value.a, value.b))


def _constant(value: Any) -> float | None:
    scalar = value.value if isinstance(value, tirx.Broadcast) else value
    return float(scalar.value) if isinstance(scalar, tirx.FloatImm) else None


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
