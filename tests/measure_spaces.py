"""The kit's toy kernels with more ways to go wrong, for tests of everything that measures.

Workers find the space by the name `SPACE_ENTRY`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import tvm
from tvm import te
from tvm.script import tirx as T

from calumma.target import Target
from calumma.testing.toy_kernels import TEMPLATE, VERSION, ToyKernelSpace, candidate, matmul, scale, workload_of

__all__ = ["FAULTS", "SPACE_ENTRY", "TEMPLATE", "VERSION", "candidate", "matmul", "scale", "workload_of"]

SPACE_ENTRY = "tests.measure_spaces:design_space"


def negative_logarithm(n: int = 64) -> Any:
    """C = -log(A): finite only on positive inputs."""
    a = te.placeholder((n,), name="A")
    return te.create_prim_func([a, te.compute(a.shape, lambda i: -te.log(a[i]), name="C")])


def zeros(n: int = 64) -> Any:
    """C = 0 * A: no input can tell whether a kernel is right."""
    a = te.placeholder((n,), name="A")
    return te.create_prim_func([a, te.compute(a.shape, lambda i: a[i] * 0.0, name="C")])


def _kill_self() -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


@T.prim_func(s_tir=True)
def _unwritten(
    A: T.Buffer((32, 64), "float32"),  # type: ignore[valid-type]
    B: T.Buffer((64,), "float32"),  # type: ignore[valid-type]
    C: T.Buffer((32, 64), "float32"),  # type: ignore[valid-type]
) -> None:
    """`scale` that leaves the second half of its rows as they are."""
    for i, j in T.grid(16, 64):
        with T.sblock("C"):
            v_i, v_j = T.axis.remap("SS", [i, j])
            C[v_i, v_j] = A[v_i, v_j] * B[v_j] + T.float32(1.0)


def _hungry() -> Any:
    """`scale` through 2 GB of memory that it asks for while it runs."""
    a, b = te.placeholder((32, 64), name="A"), te.placeholder((64,), name="B")
    wide = te.compute((32, 1 << 18, 64), lambda i, r, j: a[i, j] * b[j] + tvm.tirx.Cast("float32", r), name="wide")
    return te.create_prim_func([a, b, te.compute(a.shape, lambda i, j: wide[i, 0, j] + 1.0, name="C")])


def _extern(name: str, argument: int) -> Callable[[Any], Any]:
    return lambda i: tvm.tirx.call_extern("int32", name, tvm.tirx.IntImm("int32", argument) + 0 * i)


FAULTS: dict[str, Callable[[], Any]] = {
    **ToyKernelSpace.faults,
    "build_crash": _kill_self,
    "build_exit": lambda: os._exit(3),
    "build_hang": lambda: time.sleep(60),
    "build_memory": lambda: bytearray(2 << 30),
    "run_crash": lambda: scale(extern=_extern("raise", signal.SIGSEGV)),
    "run_hang": lambda: scale(extern=_extern("sleep", 60)),
    "run_error": lambda: scale(extern=lambda i: tvm.tirx.call_packed("tests.no_such_function", i)),
    "run_memory": lambda: _hungry(),
    "unwritten": lambda: _unwritten,
}


class ToySpace(ToyKernelSpace):
    """With every way to go wrong."""

    faults = FAULTS


def design_space(function: Any, target: Target, threads: int) -> ToySpace:
    assert threads >= 1 and target.lanes >= 4
    return ToySpace(function)
