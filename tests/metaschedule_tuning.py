"""MetaSchedule's `tune_tir` in tests: kernels are built, checked and timed in this process."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from calumma import tvm_compat
from calumma.target import Target

THREADS = 2


def tune(
    func: tirx.PrimFunc,
    folder: Path,
    target: Target,
    strategy: Any,
    trials: int,
    *,
    per_round: int = 4,
    space: Any = "post-order-apply",
) -> tuple[ms.Database, list[int]]:
    """Tune a function of float32 tensors, outputs last, without a cost model.

    Args:
        folder: where MetaSchedule keeps its database.
        target: one without tensor intrinsics, as x86-64-v3.

    Returns:
        The database, and the number of candidates in each batch that was measured.
    """
    # Importing the intrinsics of all targets takes a quarter of a minute; plain AVX2 has rules that use none.
    sys.modules.setdefault("tvm.s_tir.tensor_intrin", types.ModuleType("tvm.s_tir.tensor_intrin"))
    tvm_target = tvm_compat.tvm_target(target, THREADS)
    expected = _outputs(tvm.compile(func, tvm_target).jit(), func)
    built: dict[str, Any] = {}
    batches: list[int] = []

    @derived_object
    class Builder(ms.builder.PyBuilder):
        def build(self, inputs: list[Any]) -> list[Any]:
            results = []
            for entry in inputs:
                path = str(folder / "built" / str(len(built)) / "library")
                Path(path).parent.mkdir(parents=True)
                built[path] = tvm.compile(entry.mod, entry.target).jit()
                results.append(ms.builder.BuilderResult(path, None))
            return results

    @derived_object
    class Runner(ms.runner.PyRunner):
        def run(self, inputs: list[Any]) -> list[Any]:
            batches.append(len(inputs))
            return [Finished(built[entry.artifact_path]) for entry in inputs]

    @derived_object
    class Finished(ms.runner.PyRunnerFuture):
        def __init__(self, library: Any) -> None:
            super().__init__()
            self._library = library

        def done(self) -> bool:
            return True

        def result(self) -> Any:
            np.testing.assert_allclose(_outputs(self._library, func), expected)
            timer = self._library.time_evaluator("main", tvm.cpu(), number=1, repeat=2)
            return ms.runner.RunnerResult(list(timer(*_ones(func)).results), None)

    _forget_logging()
    database = ms.tune_tir(
        func,
        tvm_target,
        str(folder),
        max_trials_global=trials,
        num_trials_per_iter=per_round,
        builder=Builder(),
        runner=Runner(),
        cost_model="random",
        strategy=strategy,
        space=space,
        num_tuning_cores=1,
        seed=1,
    )
    _forget_logging()
    return database, batches


def _ones(func: tirx.PrimFunc) -> list[Any]:
    return [tvm.runtime.tensor(np.ones([int(d) for d in p.ty.shape], "float32")) for p in func.params]


def _outputs(library: Any, func: tirx.PrimFunc) -> np.ndarray:
    tensors = _ones(func)
    library["main"](*tensors)
    return tensors[-1].numpy()


def _forget_logging() -> None:
    """`tune_tir` configures its logging by the names of the handlers it finds, and pytest adds some without any."""
    logger = logging.getLogger("tvm.s_tir.meta_schedule")
    logger.handlers.clear()
    logger.propagate = True
