"""MetaSchedule's `tune_tir` in tests: kernels are built, checked and timed in this process."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Mapping
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

    _forget_logging()
    database = ms.tune_tir(
        func,
        tvm_target,
        str(folder),
        max_trials_global=trials,
        num_trials_per_iter=per_round,
        builder=_Builder(folder, built),
        runner=_Runner(built, func, expected, batches),
        cost_model="random",
        strategy=strategy,
        space=space,
        num_tuning_cores=1,
        seed=1,
    )
    _forget_logging()
    return database, batches


@derived_object
class _Builder(ms.builder.PyBuilder):
    """Compiles in this process, and keeps the libraries by the paths it gives out."""

    def __init__(self, folder: Path, built: dict[str, Any]) -> None:
        super().__init__()
        self._folder = folder
        self._built = built

    def build(self, inputs: list[Any]) -> list[Any]:
        results = []
        for entry in inputs:
            path = str(self._folder / "built" / str(len(self._built)) / "library")
            Path(path).parent.mkdir(parents=True)
            self._built[path] = tvm.compile(entry.mod, entry.target).jit()
            results.append(ms.builder.BuilderResult(path, None))
        return results


@derived_object
class _Runner(ms.runner.PyRunner):
    """Runs what was built in this process, and notes how many come at a time."""

    def __init__(self, built: Mapping[str, Any], func: tirx.PrimFunc, expected: np.ndarray, batches: list[int]) -> None:
        super().__init__()
        self._built = built
        self._func = func
        self._expected = expected
        self._batches = batches

    def run(self, inputs: list[Any]) -> list[Any]:
        self._batches.append(len(inputs))
        return [_Finished(self._built[entry.artifact_path], self._func, self._expected) for entry in inputs]


@derived_object
class _Finished(ms.runner.PyRunnerFuture):
    """Checks the outputs of one candidate, and times it, when its result is asked for."""

    def __init__(self, library: Any, func: tirx.PrimFunc, expected: np.ndarray) -> None:
        super().__init__()
        self._library = library
        self._func = func
        self._expected = expected

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        np.testing.assert_allclose(_outputs(self._library, self._func), self._expected)
        timer = self._library.time_evaluator("main", tvm.cpu(), number=1, repeat=2)
        return ms.runner.RunnerResult(list(timer(*_ones(self._func)).results), None)


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
