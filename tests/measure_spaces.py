"""Small workloads, and a design space that misbehaves on demand, for tests of everything that measures.

Workers find the space by the name `SPACE_ENTRY`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import te
from tvm.script import tirx as T

from calumma.core.values import Candidate, KnobValue, Workload
from calumma.target import Target

SPACE_ENTRY = "tests.measure_spaces:design_space"
TEMPLATE, VERSION = "toy", 1


def workload_of(function: Any) -> Workload:
    text = str(tvm.ir.save_json(function))
    return Workload(hashlib.sha256(text.encode()).hexdigest()[:16], text)


def scale(rows: int = 32, *, offset: float = 1.0, extern: Callable[[Any], Any] | None = None) -> Any:
    """C[i, j] = A[i, j] * B[j] + offset over (rows, 64); `extern` is added to every element."""
    a = te.placeholder((rows, 64), name="A")
    b = te.placeholder((64,), name="B")

    def element(i: Any, j: Any) -> Any:
        value = a[i, j] * b[j] + offset
        return value if extern is None else value + tvm.tirx.Cast("float32", extern(i))

    return te.create_prim_func([a, b, te.compute(a.shape, element, name="C")])


def matmul(n: int = 64) -> Any:
    """C = max(A @ B, 0), all (n, n)."""
    a, b = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B")
    k = te.reduce_axis((0, n), name="k")
    product = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="product")
    return te.create_prim_func([a, b, te.compute((n, n), lambda i, j: te.max(product[i, j], 0.0), name="C")])


def negative_logarithm(n: int = 64) -> Any:
    """C = -log(A): finite only on positive inputs."""
    a = te.placeholder((n,), name="A")
    return te.create_prim_func([a, te.compute(a.shape, lambda i: -te.log(a[i]), name="C")])


def zeros(n: int = 64) -> Any:
    """C = 0 * A: no input can tell whether a kernel is right."""
    a = te.placeholder((n,), name="A")
    return te.create_prim_func([a, te.compute(a.shape, lambda i: a[i] * 0.0, name="C")])


def candidate(function: Any, **config: KnobValue) -> Candidate:
    return Candidate(workload_of(function), TEMPLATE, VERSION, config)


class ToySpace:
    """Knobs: `split`, `parallel`, and `fault`: how scheduling, building or running goes wrong."""

    template, version = TEMPLATE, VERSION

    def __init__(self, function: Any) -> None:
        self._function = function

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        fault = str(config.get("fault", ""))
        function = FAULTS[fault]() if fault else self._function
        schedule = tvm.s_tir.Schedule(function)
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            outer = schedule.get_loops(block)[0]
            if config.get("split"):
                outer, _ = schedule.split(outer, [None, int(config["split"])])
            if config.get("parallel"):
                schedule.parallel(outer)
        return schedule

    def repacking(self, config: Mapping[str, KnobValue]) -> Mapping[int, Any]:
        return {}


def design_space(function: Any, target: Target, threads: int) -> ToySpace:
    assert threads >= 1 and target.lanes >= 4
    return ToySpace(function)


def _raise(error: Exception) -> Any:
    raise error


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
    "invalid": lambda: _raise(ValueError("this split does not fit")),
    "build_error": lambda: _raise(RuntimeError("LLVM has given up")),
    "build_crash": _kill_self,
    "build_exit": lambda: os._exit(3),
    "build_hang": lambda: time.sleep(60),
    "build_memory": lambda: bytearray(2 << 30),
    "run_crash": lambda: scale(extern=_extern("raise", signal.SIGSEGV)),
    "run_hang": lambda: scale(extern=_extern("sleep", 60)),
    "run_error": lambda: scale(extern=lambda i: tvm.tirx.call_packed("tests.no_such_function", i)),
    "run_memory": lambda: _hungry(),
    "wrong": lambda: scale(offset=1.01),
    "unwritten": lambda: _unwritten,
}
