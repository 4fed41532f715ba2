"""What a search run was, and every metric of the search benchmark, as functions of runs.

Notation: w a workload, s a strategy, r a seed. A *trial* is one candidate sent to the runner, failed or not; a *step*
is one configuration scored by a cost model; seconds count from the first question to a strategy. Throughput is one
over latency. The baseline is `autotvm`.

    F_w        median over seeds of the baseline's final throughput on w
    level      share a of F_w (0.99 unless said otherwise): the same throughput for every strategy and seed
    T, N, S    seconds, trials and steps until a run's best so far first reaches the level; a run that never does
               counts all its seconds and steps, and its whole budget of trials
    ratio of A over B by a quantity X:
               exp( mean over w of ( mean over r of ln X_A - mean over r of ln X_B ) ), a geometric mean
    interval   95 %, percentile bootstrap: 10,000 times, draw as many workloads as there are, with replacement, and
               for each of them as many seeds of A, and of B, as there are, with replacement, and take the ratio again;
               so it covers other workloads of this kind as well as other seeds. "A beats B": its lower end is above 1

Latencies of a replay come from one recording, so equal configurations are equal; latencies of a live session are those
of the final race (`live.py`), where all winners of a task are measured again in turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.rng import generator

RESAMPLES = 10_000
LEVEL = 0.99
PHASES = ("build", "run", "search", "model", "other")
"""Where a second can go: "search" explores and samples (the learning of a policy included), "model" fits and asks the
cost model, "other" is the rest of the session."""


@dataclass(frozen=True)
class Improvement:
    """A trial that was better than all before it."""

    trial: int
    """From 1 on."""
    seconds: float
    """Elapsed when its latency was known."""
    steps: int
    """Taken by then."""
    latency_s: float


RunKey = tuple[str, str, str, int]
"""Start, workload, strategy and seed of a run."""


@dataclass(frozen=True)
class Run:
    """One strategy on one workload with one seed, to the end of its budget."""

    workload: str
    strategy: str
    seed: int
    budget: int
    """Trials allowed."""
    trials: int
    """Trials made: fewer than allowed where the space was used up."""
    failed: int
    seconds: float
    steps: int
    phases_s: Mapping[str, float]
    """Seconds by `PHASES`; they add up to `seconds`."""
    improvements: tuple[Improvement, ...]
    """Ascending by trial; latencies fall."""
    start: str = "default"
    """Where it began: the space's "default" or a "random" configuration; "own" for who has none of the two."""

    @property
    def key(self) -> RunKey:
        return self.start, self.workload, self.strategy, self.seed

    @property
    def throughput(self) -> float:
        """Of the best configuration, 0 if none worked."""
        return 1 / self.improvements[-1].latency_s if self.improvements else 0.0

    def reached(self, throughput: float) -> Improvement | None:
        """The first trial at least as fast as `throughput`; None if there was none."""
        return next((found for found in self.improvements if 1 / found.latency_s >= throughput), None)

    def cost(self, quantity: str, throughput: float) -> float:
        """Seconds, trials or steps until `throughput` was reached, or the whole budget."""
        found = self.reached(throughput)
        if quantity == "trials":
            return float(found.trial if found else max(self.budget, self.trials))
        if quantity == "seconds":
            return found.seconds if found else self.seconds
        return float(found.steps if found else self.steps)

    def best_after(self, *, trials: float = math.inf, seconds: float = math.inf) -> float:
        """Throughput of the best so far after so many trials and seconds; 0 before anything worked."""
        known = [found for found in self.improvements if found.trial <= trials and found.seconds <= seconds]
        return 1 / known[-1].latency_s if known else 0.0

    def to_json(self) -> dict[str, Any]:
        """The run as a JSON object."""
        document = asdict(self)
        document["improvements"] = [list(asdict(found).values()) for found in self.improvements]
        return document

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Run:
        """Read what `to_json` gave. Raises InputError."""
        try:
            values = {entry.name: document[entry.name] for entry in fields(Run) if entry.name in document}
            found = tuple(Improvement(*entry) for entry in values.pop("improvements"))
            return Run(**values, improvements=found)
        except (KeyError, TypeError) as error:
            raise InputError(f"not a run of the search benchmark ({error!r}): remove the line or the file") from error


@dataclass
class Recorder:
    """Collects a run while it happens."""

    workload: str
    strategy: str
    seed: int
    budget: int
    trials: int = 0
    failed: int = 0
    improvements: list[Improvement] = field(default_factory=list)

    def add(self, latency_s: float, seconds: float, steps: int) -> None:
        """One more trial; an infinite latency is a failure."""
        self.trials += 1
        if not math.isfinite(latency_s):
            self.failed += 1
        elif not self.improvements or latency_s < self.improvements[-1].latency_s:
            self.improvements.append(Improvement(self.trials, seconds, steps, latency_s))

    def finish(self, seconds: float, steps: int, phases_s: Mapping[str, float]) -> Run:
        """The run, now that it is over; seconds that no phase has are "other"."""
        phases = {phase: phases_s.get(phase, 0.0) for phase in PHASES}
        phases["other"] += seconds - sum(phases.values())
        return Run(
            self.workload,
            self.strategy,
            self.seed,
            self.budget,
            self.trials,
            self.failed,
            seconds,
            steps,
            phases,
            tuple(self.improvements),
        )


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def beats(self) -> bool:
        return self.low > 1

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


Table = Mapping[str, Sequence[float]]
"""Workload -> a quantity, one value per seed."""


def ratio(above: Table, below: Table, resamples: int = RESAMPLES) -> Ratio:
    """Ratio of two strategies by a quantity, over the workloads that both have; see the module.

    Raises:
        InputError: they share no workload, or a value is not positive.
    """
    shared = [workload for workload in above if workload in below]
    if not shared:
        raise InputError("two strategies share no workload: run both of them on the same ones")
    logs = []
    for workload in shared:
        pair = [np.asarray(table[workload], dtype=np.float64) for table in (above, below)]
        if any(len(values) == 0 or (values <= 0).any() for values in pair):
            raise InputError(f"workload {workload}: a ratio needs positive values for every seed: run it again")
        logs.append([np.log(values) for values in pair])
    value = np.mean([a.mean() - b.mean() for a, b in logs])
    rng = generator(0, "bootstrap")
    # (resamples, workloads): differences of means of resampled seeds, for every workload as often as it may be drawn.
    drawn = rng.integers(0, len(logs), (resamples, len(logs)))
    means = np.empty((resamples, len(logs)))
    for position in range(len(logs)):
        for index, (a, b) in enumerate(logs):
            rows = np.flatnonzero(drawn[:, position] == index)
            means[rows, position] = _resampled(a, len(rows), rng) - _resampled(b, len(rows), rng)
    low, high = np.percentile(means.mean(axis=1), [2.5, 97.5])
    return Ratio(float(np.exp(value)), float(np.exp(low)), float(np.exp(high)))


def _resampled(values: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means (n,) of as many values drawn with replacement."""
    return values[rng.integers(0, len(values), (n, len(values)))].mean(axis=1)


class Comparison:
    """Runs of several strategies, by what they are asked."""

    def __init__(self, runs: Sequence[Run], baseline: str) -> None:
        """Group the runs.

        Args:
            runs: any order; workloads the baseline has not run are left out.
            baseline: the strategy that sets the level.

        Raises:
            InputError: the baseline has no run that found anything.
        """
        self.baseline = baseline
        levels = [run for run in runs if run.strategy == baseline and run.throughput > 0]
        if not levels:
            raise InputError(f"no run of {baseline!r}, which the others are compared with: add it to --strategies")
        self.final = {
            workload: median(run.throughput for run in levels if run.workload == workload)
            for workload in dict.fromkeys(run.workload for run in levels)
        }
        """F_w by workload."""
        self.runs = [run for run in runs if run.workload in self.final]
        self.strategies = list(dict.fromkeys(run.strategy for run in self.runs))

    def of(self, strategy: str) -> list[Run]:
        """The runs of a strategy."""
        return [run for run in self.runs if run.strategy == strategy]

    def table(self, strategy: str, measure: Callable[[Run], float]) -> dict[str, list[float]]:
        """A quantity of every run of a strategy, by workload."""
        found: dict[str, list[float]] = {}
        for run in self.of(strategy):
            found.setdefault(run.workload, []).append(measure(run))
        return found

    def fewer(self, quantity: str, strategy: str, other: str | None = None, level: float = LEVEL) -> Ratio:
        """How many times less of "seconds", "trials" or "steps" than `other` (the baseline) to the level."""

        def cost(run: Run) -> float:
            # A run may reach the level before its first step; half a unit keeps the ratio finite and fair to none.
            return max(run.cost(quantity, level * self.final[run.workload]), 0.5 if quantity == "steps" else 1e-9)

        return ratio(self.table(other or self.baseline, cost), self.table(strategy, cost))

    def faster(self, strategy: str, other: str | None = None, *, trials: float = math.inf, share: float = 0) -> Ratio:
        """Throughput of the best over `other`'s (the baseline), both after so many trials.

        With `share`, after equal wall-clock instead: that share of the median seconds of the baseline's whole session
        on the workload; who was done before keeps what it had found.
        """
        sessions = self.table(self.baseline, lambda run: run.seconds)

        def best(run: Run) -> float:
            seconds = share * median(sessions[run.workload]) if share else math.inf
            first = run.improvements[0].latency_s if run.improvements else math.inf
            # Before its first result a run has the schedule it started from; nothing slower would be kept.
            return max(run.best_after(trials=trials, seconds=seconds), 1 / first)

        return ratio(self.table(strategy, best), self.table(other or self.baseline, best))

    def missed(self, strategy: str, level: float = LEVEL) -> float:
        """Share of runs that never reached the level."""
        runs = self.of(strategy)
        return sum(run.reached(level * self.final[run.workload]) is None for run in runs) / len(runs)

    def overhead(self, strategy: str) -> float:
        """Share of all seconds of a strategy's runs that went neither into building nor into running candidates."""
        runs = self.of(strategy)
        measuring = sum(run.phases_s["build"] + run.phases_s["run"] for run in runs)
        return 1 - measuring / sum(run.seconds for run in runs)

    def phases_s(self, strategy: str) -> dict[str, float]:
        """Mean seconds of a session by phase."""
        runs = self.of(strategy)
        return {phase: sum(run.phases_s[phase] for run in runs) / len(runs) for phase in PHASES}


def metrics(comparison: Comparison, subject: str, rivals: Mapping[str, str]) -> dict[str, float]:
    """The flat metrics of the benchmark; those of strategies that did not run are missing.

        time_speedup_vs_B          T of B over T of the subject, to the same level
        measurement_reduction_vs_B N of B over N of the subject
        step_reduction_vs_B        S of B over S of the subject
        throughput_vs_B            final throughput of the subject over that of B, at equal trials
        throughput_at_equal_time_vs_B   the same at equal wall-clock: the baseline's whole session
            each with _low and _high: the 95 % interval
        never_reached_share        of the subject's runs; never_reached_share_B of B's
        search_overhead_share      of the subject's seconds

    Args:
        comparison: the runs.
        subject: the strategy that the metrics are about.
        rivals: suffix of a metric's name -> strategy B.
    """
    found: dict[str, float] = {}

    def put(name: str, value: Ratio) -> None:
        found.update({name: value.value, f"{name}_low": value.low, f"{name}_high": value.high})

    for suffix, rival in rivals.items():
        if rival not in comparison.strategies or rival == subject:
            continue
        put(f"time_speedup_vs_{suffix}", comparison.fewer("seconds", subject, rival))
        put(f"measurement_reduction_vs_{suffix}", comparison.fewer("trials", subject, rival))
        if all(run.steps > 0 for run in comparison.of(rival)):
            put(f"step_reduction_vs_{suffix}", comparison.fewer("steps", subject, rival))
        put(f"throughput_vs_{suffix}", comparison.faster(subject, rival))
        put(f"throughput_at_equal_time_vs_{suffix}", comparison.faster(subject, rival, share=1.0))
        found[f"never_reached_share_{suffix}"] = comparison.missed(rival)
    found["never_reached_share"] = comparison.missed(subject)
    found["search_overhead_share"] = comparison.overhead(subject)
    return found
