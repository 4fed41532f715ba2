"""What a session knows of one task while it runs."""

from __future__ import annotations

import math
from collections import Counter

from calumma.core.keys import Key, indices_of, key_of
from calumma.core.protocols import Strategy, Template
from calumma.core.values import Candidate, MeasureResult, Status, Task
from calumma.tuner.events import TaskProgress

VERIFIED = "verify"
"""Phase that only the record of a verified configuration has; later sessions need not verify it again."""


class TaskState:
    """One task: its strategy, its outcomes, its best.

    Attributes:
        latencies: latency in seconds of every configuration that worked; what is measured again replaces the old value.
        verified: configurations whose outputs were compared with the unscheduled function's.
        seen: every configuration with an outcome, failures and those of earlier sessions included.
        wrong: configurations whose outputs were wrong once: whatever else is said of them, they never count again.
        best: the incumbent: the default, or a verified configuration. None while nothing has worked.
        first: configurations to try before the strategy's, in this order; emptied as they are.
        finished: why no more trials go here; empty while some do.
    """

    def __init__(self, task: Task, space: Template, strategy: Strategy, bound_s: float | None) -> None:
        self.task = task
        self.space = space
        self.strategy = strategy
        self.bound_s = bound_s
        self.default = key_of(space.default())
        self.latencies: dict[Key, float] = {}
        self.seen: set[Key] = set()
        self.verified: set[Key] = set()
        self.wrong: set[Key] = set()
        self.best: Key | None = None
        self.trials = 0
        self.failures: Counter[Status] = Counter()
        self.last_failure = ""
        self.first: list[Key] = []
        self.hints = 0
        self.finished = ""
        self._reference_s = 0.0

    @property
    def hash(self) -> str:
        return self.task.workload.hash

    @property
    def best_s(self) -> float | None:
        """Latency of the incumbent."""
        return None if self.best is None else self.latencies[self.best]

    @property
    def default_s(self) -> float | None:
        """Latency of the default; None if it is unknown or failed."""
        return self.latencies.get(self.default)

    def candidate(self, key: Key) -> Candidate:
        """Return the configuration as something to measure."""
        config = self.space.decode(indices_of(key))
        return Candidate(self.task.workload, self.space.template, self.space.version, config)

    def note(self, key: Key, result: MeasureResult) -> None:
        """Remember an outcome."""
        self.seen.add(key)
        if result.status is Status.WRONG_OUTPUT:
            self.wrong.add(key)
        if result.status is Status.OK and key not in self.wrong:
            self.latencies[key] = result.latency_s
            if result.phases_s.get(VERIFIED, 0.0) > 0:
                self.verified.add(key)
        else:
            self.latencies.pop(key, None)

    def choose_best(self) -> None:
        """Make the fastest of what may count the incumbent; of equals, the one that already was."""
        eligible = [key for key in self.ranked() if key == self.default or key in self.verified]
        if self.best not in eligible or self.latencies[eligible[0]] < self.latencies[self.best]:
            self.best = eligible[0] if eligible else None

    def score(self, key: Key) -> float:
        """Throughput relative to the default's, 0 = failed. (Relative to the first known if the default failed.)"""
        if key not in self.latencies:
            return 0.0
        if not self._reference_s:
            self._reference_s = self.default_s or self.latencies[key]
        return self._reference_s / self.latencies[key]

    def ranked(self) -> list[Key]:
        """Return all configurations that worked, fastest first."""
        return sorted(self.latencies, key=lambda key: (self.latencies[key], key))

    def progress(self) -> TaskProgress:
        """Return the row of the live table."""
        status = self.finished.split(":")[0] or ("tuning" if self.default in self.seen else "waiting")
        return TaskProgress(
            workload=self.hash,
            name=self.task.name,
            weight=self.task.weight,
            status=status,
            latency_s=self.best_s,
            default_latency_s=self.default_s,
            bound_s=self.bound_s,
            trials=self.trials,
            failures=self.failures.total(),
        )


def distance(a: Task, b: Task) -> float:
    """How far apart two tasks' shapes are: sum of |log ratio| over all dimensions; infinite for different ranks."""
    if [(len(shape), dtype) for shape, dtype in a.arguments] != [(len(shape), dtype) for shape, dtype in b.arguments]:
        return math.inf
    pairs = zip(a.arguments, b.arguments, strict=True)
    return sum(abs(math.log(x / y)) for (p, _), (q, _) in pairs for x, y in zip(p, q, strict=True) if x != y)
