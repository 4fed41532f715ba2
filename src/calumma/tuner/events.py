"""What a session tells while it runs: frozen, complete in themselves, enough for a live table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calumma.core.values import KnobValue, MeasureRecord
from calumma.tuner.result import TuningResult


@dataclass(frozen=True)
class TaskProgress:
    """One row of the table."""

    workload: str
    name: str
    weight: int
    status: str
    """"waiting" (default not measured), "tuning", "near bound", "used up" (no configuration left) or "failing"."""
    latency_s: float | None
    """Of the best so far."""
    default_latency_s: float | None
    bound_s: float | None
    trials: int
    failures: int

    @property
    def roofline_share(self) -> float | None:
        """Bound / latency of the best so far; None if either is unknown."""
        return self.bound_s / self.latency_s if self.bound_s and self.latency_s else None


@dataclass(frozen=True)
class SessionProgress:
    """The whole table, and its footer."""

    tasks: tuple[TaskProgress, ...]
    trials: int
    elapsed_s: float
    seconds_left: float | None
    """Of the budget; None without a limit."""
    trials_left: int | None
    """Of the budget; None without a limit."""
    eta_s: float | None
    """Seconds until the budget is spent; None while that is unknown."""
    candidates_per_s: float | None
    """Recent speed; None before the first round is done."""

    @property
    def latency_s(self) -> float:
        """Sum of weight x best latency over the tasks measured."""
        return sum(task.weight * task.latency_s for task in self.tasks if task.latency_s is not None)

    @property
    def default_latency_s(self) -> float:
        """The same for the defaults."""
        return sum(task.weight * task.default_latency_s for task in self.tasks if task.default_latency_s is not None)


@dataclass(frozen=True)
class SessionStarted:
    session: str
    recalled: int
    """Configurations known from earlier sessions."""
    unreadable: int
    """Records of earlier sessions that the design spaces of today do not hold."""
    progress: SessionProgress


@dataclass(frozen=True)
class RoundStarted:
    number: int
    """0 holds the defaults."""
    shares: Mapping[str, int]
    """Workload hash -> candidates in this round."""
    progress: SessionProgress


@dataclass(frozen=True)
class TrialsDone:
    number: int
    records: tuple[MeasureRecord, ...]
    progress: SessionProgress


@dataclass(frozen=True)
class NewBest:
    workload: str
    name: str
    latency_s: float
    previous_s: float | None
    config: Mapping[str, KnobValue]


@dataclass(frozen=True)
class TaskFinished:
    workload: str
    name: str
    reason: str
    """"near bound", "used up" or "failing: ..."."""


@dataclass(frozen=True)
class FinalCheckStarted:
    tasks: int
    """Tasks whose winner is to be measured in alternation with the default."""
    progress: SessionProgress


@dataclass(frozen=True)
class SessionFinished:
    result: TuningResult
    progress: SessionProgress


Event = SessionStarted | RoundStarted | TrialsDone | NewBest | TaskFinished | FinalCheckStarted | SessionFinished
