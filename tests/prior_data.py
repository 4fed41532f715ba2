"""Small data sets to learn from: real workloads and design spaces, latencies from a formula."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.core.protocols import Indices, SearchSpace
from calumma.core.values import Candidate, Hardware, MeasureRecord, MeasureResult, Status

THREADS = 2
tvm_compat.set_threads(THREADS)
tvm = tvm_compat.load()

from calumma.operators import design_space  # noqa: E402  (after the threads are set)
from calumma.prior import dataset  # noqa: E402
from calumma.prior.dataset import Dataset  # noqa: E402
from calumma.prior.machines import Machine  # noqa: E402
from calumma.prior.training import TrainingSettings  # noqa: E402
from calumma.prior.workloads import TrainingWorkload, drawn_workloads  # noqa: E402
from calumma.target import Target  # noqa: E402
from calumma.tasks.roofline import typical_limits  # noqa: E402

WORKLOADS = 10
CONFIGS = 24
QUICK = TrainingSettings(members=3, trees=30)


OTHER = "x86-64-v3"
"""A CPU that is not this one, with vectors of 256 bits."""


@functools.cache
def other_cpu() -> Target:
    """One with half of this one's L2, of which nothing says what it can do."""
    target = tvm_compat.target_for(OTHER)
    return replace(target, cpu_model="Another CPU", l2_bytes=target.l2_bytes // 2)


@functools.cache
def workloads(count: int = WORKLOADS, mcpu: str | None = None) -> tuple[TrainingWorkload, ...]:
    """Matrix products of different shapes."""
    drawn = drawn_workloads(tvm_compat.target_for(mcpu), families=("dense",))
    return tuple(next(drawn) for _ in range(count))


def cost_of(space: SearchSpace, indices: Indices, unrolling: float = 0.3) -> NDArray[np.float64]:
    """Nanoseconds per operation of configurations (N, D) -> (N,)."""
    columns = dict(zip(space.feature_names, space.features(indices).T.astype(np.float64), strict=True))
    return (0.01 + 0.2 / columns["accumulators"]) * (1 + unrolling * np.log2(columns["k_unroll"]))


@functools.cache
def records(mcpu: str | None = None) -> tuple[MeasureRecord, ...]:
    """Measurements of all workloads: large register tiles are fast, unrolling is not, the order of loops is nothing; on
    the other CPU unrolling is no matter either."""
    target = other_cpu() if mcpu else tvm_compat.target_for()
    found = []
    for number, workload in enumerate(workloads(mcpu=mcpu)):
        space = design_space(workload.function, target, THREADS)
        drawn = space.sample(np.random.default_rng(number), CONFIGS - 1)
        indices = np.unique(np.concatenate([space.default()[None, :], drawn]), axis=0)
        for place, (row, cost) in enumerate(zip(indices, cost_of(space, indices, 0.0 if mcpu else 0.3), strict=True)):
            seconds = 1e-9 * workload.task.flops * float(cost)
            result = MeasureResult(Status.OK, (seconds, 1.01 * seconds, 1.02 * seconds) * 4)
            if place == 5:
                result = MeasureResult(Status.RUN_ERROR, reason="a worker said so")
            candidate = Candidate(workload.task.workload, space.template, space.version, space.decode(row))
            found.append(
                MeasureRecord(candidate, result, target.hardware, THREADS, "cold", tvm_compat.toolchain(), session="s")
            )
    return tuple(found)


def described(hardware: Hardware, threads: Collection[int]) -> Machine:
    """A CPU without a probe of it."""
    target = tvm_compat.target_of(hardware)
    return Machine(hardware, {count: typical_limits(target, count, "a test probes nothing") for count in threads})


def made(found: Iterable[MeasureRecord], **options: Any) -> Dataset:
    """Records as a data set."""
    return dataset.from_records(found, toolchain=tvm_compat.toolchain(), describe=described, **options)


@functools.cache
def small_dataset() -> Dataset:
    """The records as a data set."""
    return made(records())


@functools.cache
def of_both_cpus() -> Dataset:
    """Those of both CPUs."""
    return made([*records(), *records(OTHER)])
