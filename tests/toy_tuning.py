"""Whole tuning sessions on toy spaces and a fake clock, without TVM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calumma.core.values import Budget, Candidate, Hardware, MeasureResult, Status, Task, Workload, config_text
from calumma.database import MemoryStore
from calumma.testing import SimulatedRunner, ToySpace
from calumma.tuner import (
    REMEASURED,
    TuningResult,
)
from calumma.tuner.tuning_session import TuningSession

HARDWARE = Hardware("Toy CPU", "generic", 512, 32 << 10, 1 << 20, 32 << 20, 2)
ORDERS = ("xck", "xkc", "cxk", "kxc")


@dataclass(frozen=True)
class Landscape:
    """How fast the configurations of one task are: a share of its bound that depends on all knobs."""

    bound_s: float
    accumulators: float = 24.0
    split: float = 8.0
    order: str = "kxc"
    top: float = 0.97
    """Roofline share of the best imaginable configuration."""

    def latency_s(self, config: Mapping[str, int | str | bool]) -> float:
        accumulators = int(config["tile_x"]) * int(config["tile_c"])
        share = self.top * np.exp(-0.25 * abs(np.log2(accumulators / self.accumulators)))
        share *= np.exp(-0.12 * abs(np.log2(int(config["split_k"]) / self.split)))
        share *= (1.0 if config["order"] == self.order else 0.75) * (1.0 if config["unroll"] else 0.9)
        return self.bound_s / float(share)


class LandscapeRunner(SimulatedRunner):
    """Answers from landscapes. `fault` may replace a result."""

    def __init__(self, landscapes: Mapping[str, Landscape]) -> None:
        super().__init__()
        self.landscapes = landscapes
        self.fault: Callable[[Candidate, MeasureResult], MeasureResult] = lambda candidate, result: result
        self.noise = 0.005
        self.rng = np.random.default_rng(0)
        self.wrong: set[str] = set()

    def outcome(self, candidate: Candidate) -> MeasureResult:
        latency_s = self.landscapes[candidate.workload.hash].latency_s(candidate.config)
        latencies_s = tuple(latency_s * (1 + self.noise * abs(self.rng.standard_normal(3))))
        return self.fault(candidate, MeasureResult(Status.OK, latencies_s, phases_s={"build": 0.1, "run": 0.05}))

    def verdict(self, candidate: Candidate) -> MeasureResult:
        if candidate.key in self.wrong:
            return MeasureResult(Status.WRONG_OUTPUT, reason="off by 0.3", phases_s={"verify": 0.1})
        return MeasureResult(Status.OK, phases_s={"verify": 0.1})


def task(name: str, weight: int = 1, width: int = 28) -> Task:
    arguments = (((1, 64, width, width), "float32"), ((1, 64, width, width), "float32"))
    return Task(Workload(f"hash of {name}", "text"), name, weight, "conv2d", 1e9, 1e6, arguments)


class World:
    """Some tasks with their spaces, landscapes, store and runner."""

    def __init__(self, tasks: Sequence[Task], landscapes: Sequence[Landscape], extra: int = 0) -> None:
        self.tasks = [(t, ToySpace(width=t.arguments[0][0][-1], extra=extra)) for t in tasks]
        self.landscapes = {t.workload.hash: scape for t, scape in zip(tasks, landscapes, strict=True)}
        self.runner = LandscapeRunner(self.landscapes)
        self.store = MemoryStore()
        self.events: list = []

    def session(self, budget: Budget, **more) -> TuningSession:
        return TuningSession(
            self.tasks,
            self.runner,
            self.store,
            budget,
            **{
                "hardware": HARDWARE,
                "toolchain": "toy 1",
                "bounds": {name: scape.bound_s for name, scape in self.landscapes.items()},
                "progress": self.events.append,
                "clock": self.runner.clock,
                **more,
            },
        )

    def run(self, budget: Budget, **more) -> TuningResult:
        return self.session(budget, **more).run()

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def true_latency_s(self, result: TuningResult) -> float:
        return sum(t.weight * self.landscapes[t.workload].latency_s(t.config) for t in result.tasks)


def three() -> World:
    tasks = [task("big", weight=4), task("medium", weight=2, width=14), task("small")]
    return World(tasks, [Landscape(1e-3), Landscape(1e-3, split=16), Landscape(1e-4, order="cxk")])


def proposals(store: MemoryStore) -> list[tuple[str, str]]:
    """Everything proposed, by workload and configuration; what was measured again is not a proposal."""
    return [
        (record.candidate.workload.hash, config_text(record.candidate.config))
        for record in store.records()
        if record.strategy != REMEASURED
    ]
