"""Candidates measured per second, beside MetaSchedule's own builder and runner on the same schedules.

    python -m benchmarks.measure_throughput [--quick] [--json FILE]

Each batch is 32 random configurations of one convolution of ResNet-50. Ours and MetaSchedule's measure it in
alternation, each with its own processes, weights cold; MetaSchedule gets its modules already scheduled and only ten
runs for each. Then they measure it once more, hot: the two flush different arguments (docs/measurement.md), so only
latencies of hot caches mean the same to both. Metrics:

    candidates_per_s         ours, cold, failed candidates included
    speedup_vs_metaschedule  seconds of MetaSchedule / ours, cold, over all batches
    remeasure_deviation      median |later / earlier - 1| of 32 candidates measured again at the end, cold
    rank_agreement           Spearman correlation of hot latencies within a batch, mean over batches
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks import output, suite
from calumma import tvm_compat
from calumma.core.errors import EnvironmentFault
from calumma.core.rng import generator
from calumma.core.values import Candidate, MeasureResult, Status, Task
from calumma.measure import LocalRunner
from calumma.prior.judging import correlation
from calumma.target import Target

BATCH = 32
REMEASURED = 32
_WORKERS = 2
_COLUMNS = ("convolution", "ours (s)", "MetaSchedule (s)", "speedup", "failed", "best (us)", "rank agreement")


@dataclass(frozen=True)
class Batch:
    """Random configurations of one task, as candidates for us and as scheduled modules for MetaSchedule."""

    task: Task
    candidates: tuple[Candidate, ...]
    modules: tuple[Any, ...]


def batches(target: Target, threads: int, n: int, seed: int) -> list[Batch]:
    """Draw batches from `n` of ResNet-50's convolutions, those with the most work first."""
    from calumma.operators import design_space
    from calumma.pipeline.extraction import extract_tasks

    found = extract_tasks(suite.path("resnet50"), target).parts
    convolutions = [task for task in found.tasks if task.anchor.startswith("conv2d")]
    convolutions.sort(key=lambda task: task.weight * task.flops, reverse=True)
    drawn = []
    for task in convolutions[:n]:
        space = design_space(found.functions[task.workload.hash], target, threads)
        rows = space.sample(generator(seed, "measure_throughput", task.workload.hash), BATCH)
        configs = [space.decode(row) for row in rows]
        candidates = tuple(Candidate(task.workload, space.template, space.version, config) for config in configs)
        drawn.append(Batch(task, candidates, tuple(_prefetching(space, config) for config in configs)))
    return drawn


def _prefetching(space: Any, config: Any) -> Any:
    """A scheduled module with the prefetches that our build puts in, so that both measure the same kernel."""
    from calumma.tvm_compat import prefetch

    return prefetch.insert(space.schedule(config).mod)


class MetaSchedule:
    """TVM's own local builder and runner.

    Their processes get glibc's huge pages, since our arguments lie on huge pages: the same kernel is up to three times
    slower on pages of 4 KB. Their threads are bound to cores, as TVM binds them by itself.
    """

    def __init__(self, target: Target, threads: int) -> None:
        from tvm.s_tir.meta_schedule.builder import LocalBuilder
        from tvm.s_tir.meta_schedule.runner import EvaluatorConfig
        from tvm.s_tir.meta_schedule.runner import LocalRunner as TheirRunner

        cold = EvaluatorConfig(number=1, repeat=10, min_repeat_ms=0, enable_cpu_cache_flush=True)
        # Its pool starts anew for every batch and imports for some 10 s: at its own 30 s a busy machine builds nothing.
        self._builder = LocalBuilder(max_workers=_WORKERS, timeout_sec=120)
        # Where caches stay hot, the settings are its own.
        self._runners = {"cold": TheirRunner(evaluator_config=cold), "hot": TheirRunner()}
        self._target = tvm_compat.tvm_target(target, threads)
        # Its processes start when they are first used; ours, which run already, leave their threads to the system.
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.environ["TVM_BIND_THREADS"] = "1"

    def measure(self, modules: Sequence[Any], cache_state: str) -> list[float]:
        """Latency of each scheduled module in seconds; NaN for one that failed.

        Args:
            modules: as scheduled.
            cache_state: "cold" (all arguments but the first are flushed before every run) or "hot".

        Raises:
            EnvironmentFault: all failed.
        """
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo
        from tvm.s_tir.meta_schedule.builder import BuilderInput
        from tvm.s_tir.meta_schedule.runner import RunnerInput

        built = self._builder.build([BuilderInput(module, self._target) for module in modules])
        latencies = [float("nan")] * len(modules)
        able = [index for index, result in enumerate(built) if result.artifact_path]
        failures = [str(result.error_msg) for result in built if not result.artifact_path]
        inputs = [RunnerInput(built[i].artifact_path, "cpu", ArgInfo.from_prim_func(modules[i]["main"])) for i in able]
        for index, future in zip(able, self._runners[cache_state].run(inputs), strict=True):
            result = future.result()
            if result.run_secs:
                latencies[index] = median(float(seconds) for seconds in result.run_secs)
            else:
                failures.append(str(result.error_msg))
            shutil.rmtree(Path(str(built[index].artifact_path)).parent)
        if len(failures) == len(modules):
            reason = failures[0].strip().splitlines()[-1]
            raise EnvironmentFault(f"MetaSchedule measured none of {len(modules)} candidates: {reason}")
        return latencies


def main() -> None:
    options = output.parser(__doc__ or "")
    options.add_argument("--batches", type=int, default=6, help="of 32 candidates, one convolution each")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    threads = tvm_compat.set_threads(arguments.threads)
    target = tvm_compat.target_for()

    with LocalRunner(target, threads, workers=_WORKERS) as runner:
        drawn = batches(target, threads, 1 if arguments.quick else arguments.batches, arguments.seed)
        runner.measure(drawn[0].candidates[:_WORKERS])  # the start of the workers is not a matter of throughput
        theirs = MetaSchedule(target, threads)
        rows = []
        measured: list[tuple[Candidate, MeasureResult]] = []
        for batch in drawn:
            runner.cache_state = "cold"
            start = time.perf_counter()
            results = runner.measure(batch.candidates)
            ours_s = time.perf_counter() - start
            start = time.perf_counter()
            their_latencies = theirs.measure(batch.modules, "cold")
            theirs_s = time.perf_counter() - start
            measured += zip(batch.candidates, results, strict=True)

            runner.cache_state = "hot"
            hot = [result.latency_s for result in runner.measure(batch.candidates)]
            pairs = np.array([hot, theirs.measure(batch.modules, "hot")])
            pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
            rows.append(
                {
                    "task": batch.task.name,
                    "ours_s": ours_s,
                    "metaschedule_s": theirs_s,
                    "failed": sum(result.status is not Status.OK for result in results),
                    "metaschedule_failed": int(np.isnan(their_latencies).sum()),
                    "best_s": min(result.latency_s for result in results),
                    "rank_agreement": correlation(*pairs),
                    "hot_latencies_s": pairs.T.tolist(),
                }
            )
        good = [(candidate, result) for candidate, result in measured if result.status is Status.OK]
        chosen = generator(arguments.seed, "remeasured").permutation(len(good))[:REMEASURED]
        runner.cache_state = "cold"
        again = runner.measure([good[i][0] for i in chosen])

    deviations = [abs(new.latency_s / good[i][1].latency_s - 1) for i, new in zip(chosen, again, strict=True)]
    ours_s, theirs_s = (sum(row[key] for row in rows) for key in ("ours_s", "metaschedule_s"))
    metrics = {
        "candidates_per_s": len(measured) / ours_s,
        "speedup_vs_metaschedule": theirs_s / ours_s,
        "remeasure_deviation": median(deviations),
        "rank_agreement": fmean(row["rank_agreement"] for row in rows),
    }
    print(output.markdown(_COLUMNS, [_cells(row) for row in rows]))
    print()
    for name, value in metrics.items():
        print(f"{name:<24} {value:.3f}")
    if arguments.json:
        output.write(arguments.json, metrics, rows, output.environment(threads))


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["task"],
        f"{row['ours_s']:.1f}",
        f"{row['metaschedule_s']:.1f}",
        f"{row['metaschedule_s'] / row['ours_s']:.1f}x",
        str(row["failed"]),
        f"{row['best_s'] * 1e6:.0f}",
        f"{row['rank_agreement']:.3f}",
    ]


if __name__ == "__main__":
    main()
