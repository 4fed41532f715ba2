"""TVM's MetaSchedule on one workload, unmodified, in a process of its own: for `benchmarks.live`.

    python -m benchmarks.metaschedule_baseline REQUEST.json ANSWER.json

Evolutionary search, XGBoost cost model, local builder and runner, all as `ms.tune_tir` makes them, for a target with
the given number of cores and a thread pool of that size in every process. Three things are ours: a callback that notes
when a batch's results are known; a longer time limit of the builder, whose processes import TVM and torch anew for
every batch and would run into 30 s on a slow disk; and that these processes do without the tensor intrinsics of all
targets, which `ms.builder` imports in each of them for 20 seconds or more, though a schedule for a processor that is
built there uses none: that is time which the baseline gains. Imports are over before the clock starts.

Request: workload (a function as TVM's JSON), space ("own" or "ours"), trials, batch, seed, threads.
Answer: trials ([latency or null, seconds, trace] each), seconds, phases_s.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from calumma import tvm_compat
from calumma.core.rng import generator

POOL = 512
"""Schedules of our space that MetaSchedule gets as design spaces; making them is part of its time."""
_BUILD_TIMEOUT_S = 120.0


def main(arguments: Sequence[str]) -> None:
    """Read the request, tune, write the answer."""
    request, answer = map(Path, arguments)
    document = tune(json.loads(request.read_text()))
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps(document))
    os.replace(partial, answer)


def tune(request: Mapping[str, Any]) -> dict[str, Any]:
    """One run of `ms.tune_tir`."""
    threads = tvm_compat.set_threads(int(request["threads"]))
    tvm = tvm_compat.load()
    importlib.import_module("tvm.s_tir.tensor_intrin")  # takes long, and is no part of tuning
    from tvm.ir.utils import derived_object
    from tvm.s_tir import meta_schedule as ms

    from calumma.space.generated import plain

    target = tvm_compat.target_for()
    func = tvm.ir.load_json(request["workload"])
    for attribute in dict(func.attrs or {}):
        if str(attribute).startswith("calumma."):
            func = func.without_attr(attribute)
    func = func.with_attrs({"global_symbol": "main", "tirx.noalias": True})
    trials: list[tuple[float | None, float, str]] = []
    start = 0.0

    @derived_object
    class Note(ms.measure_callback.PyMeasureCallback):
        def apply(
            self, task_scheduler: Any, task_id: int, measure_candidates: Any, builder_results: Any, runner_results: Any
        ) -> None:
            seconds = time.perf_counter() - start
            for candidate, result in zip(measure_candidates, runner_results, strict=True):
                times = [float(value) for value in result.run_secs or ()]
                latency_s = None if result.error_msg is not None or not times else fmean(times)
                trace = json.dumps(plain(candidate.sch.trace.as_json()))
                trials.append((latency_s, seconds, trace))

    space: Any = "post-order-apply"
    if request["space"] == "ours":
        space = _pool(request, target, threads)
    with tempfile.TemporaryDirectory(prefix="calumma-metaschedule-") as folder, ms.Profiler() as profiler:
        start = time.perf_counter()
        ms.tune_tir(
            tvm.IRModule({"main": func}),
            tvm_compat.tvm_target(target, threads),
            folder,
            max_trials_global=int(request["trials"]),
            num_trials_per_iter=int(request["batch"]),
            builder=ms.builder.LocalBuilder(
                max_workers=threads, timeout_sec=_BUILD_TIMEOUT_S, initializer=without_intrinsics
            ),
            measure_callbacks=[Note(), *ms.measure_callback.MeasureCallback.create("default")],
            space=space,
            num_tuning_cores=threads,
            seed=int(request["seed"]) + 1,  # MetaSchedule takes 0 for no seed
        )
        seconds = time.perf_counter() - start
        spent = {str(name): float(value) for name, value in profiler.get().items()}
    return {"trials": trials, "seconds": seconds, "phases_s": phases(spent)}


def without_intrinsics() -> None:
    """Let this process take the module of tensor intrinsics for imported."""
    sys.modules.setdefault("tvm.s_tir.tensor_intrin", types.ModuleType("tvm.s_tir.tensor_intrin"))


def phases(spent: Mapping[str, float]) -> dict[str, float]:
    """Seconds of MetaSchedule's own profiler by the phases of the benchmark; what is in none of them is "other"."""
    model = ("MeasureCallback/UpdateCostModel", "EvoSearch/Evolve/PredictNormalizedScore")
    search = sum(value for name, value in spent.items() if name.startswith("EvoSearch/") and name not in model)
    return {
        "build": spent.get("SendToBuilder", 0.0),
        "run": spent.get("SendToRunner", 0.0) + spent.get("JoinRunnerFutures", 0.0),
        "search": search,
        "model": sum(spent.get(name, 0.0) for name in model),
    }


def _pool(request: Mapping[str, Any], target: Any, threads: int) -> Any:
    """A space generator whose design spaces are schedules drawn from our own space, the default among them."""
    tvm = tvm_compat.load()
    from tvm.s_tir import meta_schedule as ms

    from calumma.operators import design_space

    def schedules(untouched: Any) -> list[Any]:
        space = design_space(tvm.ir.load_json(request["workload"]), target, threads)
        rng = generator(int(request["seed"]), "metaschedule", "pool")
        made = [space.schedule(space.decode(space.default()))]
        made += [space.schedule(space.decode(row)) for row in space.sample(rng, POOL - 1)]
        result = []
        for schedule in made:
            # On MetaSchedule's own copy of the function, which lacks the attributes that only calumma reads.
            copy = tvm.s_tir.Schedule(untouched.mod)
            schedule.trace.apply_to_schedule(copy, remove_postproc=False)
            result.append(copy)
        return result

    return ms.space_generator.ScheduleFn(schedules, sch_rules=[], postprocs=[], mutator_probs={})


if __name__ == "__main__":
    main(sys.argv[1:])
