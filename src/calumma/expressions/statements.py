"""Loops in TIR as tensor expressions: for what is computed in an order that depends on values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


def kernel(
    name: str,
    body: Callable[..., None],
    inputs: Sequence[te.Tensor],
    outputs: Sequence[tuple[tuple[int, ...], str]],
) -> list[te.Tensor]:
    """Tensors that statements write.

    Args:
        body: called with the inputs, then the outputs; emits the statements. A buffer reads as `x[i, j]` and is
            written by `x[i, j] = value`; a scalar has the index 0.
        outputs: shape and type of each.
    """

    def write(ins: Sequence[Any], outs: Sequence[Any]) -> Any:
        with IRBuilder() as builder, T.serial(0, 1):  # which makes one statement of several
            body(*(T.buffer_proxy(buffer) for buffer in (*ins, *outs)))
        return builder.get()

    tensors = te.extern(
        [shape for shape, _ in outputs], list(inputs), write, dtype=[dtype for _, dtype in outputs], name=name
    )
    return list(tensors) if len(outputs) > 1 else [tensors]


def counter(dtype: str) -> Any:
    """A variable, `x[0]`."""
    return T.buffer_proxy(T.alloc_buffer((1,), dtype, scope="local"))


def constant(value: float, dtype: str = "int64") -> tirx.Expr:
    """A number of a type."""
    return tirx.const(value, dtype)


def either(condition: tirx.Expr, yes: tirx.Expr, no: tirx.Expr) -> tirx.Expr:
    """`yes` where the condition holds, else `no`; both are computed."""
    return tirx.Select(condition, yes, no)
