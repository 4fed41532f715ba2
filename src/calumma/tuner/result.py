"""What a tuning session hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calumma.core.values import KnobValue, Status


@dataclass(frozen=True)
class TaskResult:
    """What was decided for one task."""

    workload: str
    """Workload hash."""
    name: str
    weight: int
    template: str
    template_version: int
    config: Mapping[str, KnobValue]
    """The configuration to use: a tuned one where it won, else the default."""
    tuned: bool
    """Whether `config` is another than the default."""
    checked: bool
    """Whether it was measured in alternation with the default at the end; otherwise the trials themselves decided."""
    latency_s: float | None
    """Latency of `config`; None if it was never measured."""
    default_latency_s: float | None
    """Latency of the default; None if it was never measured or failed."""
    bound_s: float | None
    """Roofline bound; None if unknown."""
    trials: int
    """Configurations measured in this session."""
    failures: Mapping[Status, int]
    """Failed trials of this session by status."""
    last_failure: str
    """Status and reason of the last one; empty if there was none."""

    @property
    def roofline_share(self) -> float | None:
        """Bound / latency, 1 = as fast as the hardware allows; None if either is unknown."""
        return self.bound_s / self.latency_s if self.bound_s and self.latency_s else None


@dataclass(frozen=True)
class ModelContest:
    """The tuned model and the one with default schedules, run whole in alternation."""

    tuned_s: float
    """Median latency of the tuned model."""
    default_s: float
    ratio: float
    """Median over the rounds of tuned / default."""
    rounds: int

    @property
    def tuned_wins(self) -> bool:
        """Whether the tuned model is at least as fast."""
        return self.ratio <= 1.0


@dataclass(frozen=True)
class TuningResult:
    """What a session decided, and what it spent."""

    session: str
    tasks: tuple[TaskResult, ...]
    trials: int
    seconds: float
    phases_s: Mapping[str, float]
    """Seconds by phase ("build", "run", "verify", "search", "model", "contest", "store", "other"); they sum to
    `seconds`."""
    interrupted: bool
    """Whether Ctrl-C ended it."""
    contest: ModelContest | None = None
    """How the tuned model did against the default one; None where nothing was tuned or nobody could run them."""

    @property
    def latency_s(self) -> float:
        """Sum of weight x latency over the tasks measured."""
        return sum(task.weight * task.latency_s for task in self.tasks if task.latency_s is not None)

    @property
    def default_latency_s(self) -> float:
        """The same for the defaults, over the tasks whose default was measured."""
        return sum(task.weight * task.default_latency_s for task in self.tasks if task.default_latency_s is not None)
