"""Small kernels that are measured in milliseconds, some of whose configurations fail, for tests of what measures.

Workers find the design space by the name `SPACE_ENTRY`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import te

from calumma.core.protocols import Indices
from calumma.core.values import Candidate, Knob, KnobValue, Workload
from calumma.space import KnobSpace
from calumma.target import Target

SPACE_ENTRY = "calumma.testing.toy_kernels:design_space"
TEMPLATE, VERSION = "toy", 1


def workload_of(function: Any) -> Workload:
    """A function as text."""
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


def candidate(function: Any, **config: KnobValue) -> Candidate:
    """A configuration of a function, missing knobs at their neutral values."""
    return Candidate(workload_of(function), TEMPLATE, VERSION, config)


def _raise(error: Exception) -> Any:
    raise error


class ToyKernelSpace(KnobSpace):
    """Knobs: `split` and `parallel` of the outermost loop; `fault`, how scheduling, building or running goes wrong."""

    template, version = TEMPLATE, VERSION
    feature_names = ("split", "parallel", "fault")
    faults: ClassVar[Mapping[str, Callable[[], Any]]] = {
        "invalid": lambda: _raise(ValueError("this split does not fit")),
        "build_error": lambda: _raise(RuntimeError("LLVM has given up")),
        "wrong": lambda: scale(offset=1.01),
    }
    """Value of the last knob -> makes the function that is scheduled in the place of the right one."""

    def __init__(self, function: Any) -> None:
        knobs = Knob("split", (0, 2, 4, 8, 16, 32)), Knob("parallel", (False, True)), Knob("fault", ("", *self.faults))
        super().__init__(knobs)
        self._function = function

    def default(self) -> Indices:
        return self.encode({})

    def features(self, indices: Indices) -> NDArray[np.float32]:
        return indices.astype(np.float32)

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        fault = str(config.get("fault", ""))
        function = self.faults[fault]() if fault else self._function
        schedule = tvm.s_tir.Schedule(function)
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            outer = schedule.get_loops(block)[0]
            if config.get("split"):
                outer, _ = schedule.split(outer, [None, int(config["split"])])
            if config.get("parallel"):
                schedule.parallel(outer)
        return schedule


def design_space(function: Any, target: Target, threads: int) -> ToyKernelSpace:
    """What workers call; the space depends on neither target nor threads."""
    return ToyKernelSpace(function)
