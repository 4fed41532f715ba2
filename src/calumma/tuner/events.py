"""What `tune` and `compile` tell while they run: frozen, complete in themselves, enough for a live table.

The order of a session, with what repeats in brackets:

    PhaseStarted ...              the model is imported and split into tasks
    SessionStarted
    [RoundStarted, NewBest ..., TaskFinished ..., TrialsDone]
    FinalCheckStarted             only if some task has a winner to check
    [WinnersMeasured]             while time is left
    ModelsCompared                only if some task was tuned
    SessionFinished               also after Ctrl-C
    PhaseStarted ...              the winners are scheduled, built and saved

`to_json` is their form in the `--json` stream of `calumma tune`; docs/tuning.md has its schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

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
class PhaseStarted:
    """A step outside the session begins: the last one is over."""

    phase: str
    """"load" (TVM), "import", "lower", "tasks", "spaces", "roofline", "records", "schedule", "build" or "save"; the
    names of `phases_s` in a result."""


@dataclass(frozen=True)
class SessionStarted:
    """Tuning begins; seconds of the budget count from here."""

    session: str
    """Id of the session in the database."""
    recalled: int
    """Configurations known from earlier sessions."""
    unreadable: int
    """Records of earlier sessions that the design spaces of today do not hold."""
    progress: SessionProgress


@dataclass(frozen=True)
class RoundStarted:
    """Candidates go to the workers."""

    number: int
    """0 holds the defaults."""
    shares: Mapping[str, int]
    """Workload hash -> candidates in this round."""
    progress: SessionProgress


@dataclass(frozen=True)
class TrialsDone:
    """The candidates of a round are measured, verified where they would win, and stored."""

    number: int
    """Of the round."""
    records: tuple[MeasureRecord, ...]
    """Failures included."""
    progress: SessionProgress


@dataclass(frozen=True)
class NewBest:
    """A task has a new incumbent: verified, and faster than the last by more than noise."""

    workload: str
    name: str
    """Of the task."""
    latency_s: float
    previous_s: float | None
    """Latency of the last incumbent; None if this is the first."""
    config: Mapping[str, KnobValue]


@dataclass(frozen=True)
class TaskFinished:
    """A task gets no more trials."""

    workload: str
    name: str
    reason: str
    """"near bound", "used up" or "failing: ..."."""


@dataclass(frozen=True)
class FinalCheckStarted:
    """The search is over; winners are measured once more."""

    tasks: int
    """Tasks whose winner is to be measured in alternation with the default."""
    progress: SessionProgress


@dataclass(frozen=True)
class WinnersMeasured:
    """Winners of some tasks, their rivals and the defaults have run in alternation once more."""

    number: int
    """Of the alternation, from 0."""
    records: tuple[MeasureRecord, ...]
    progress: SessionProgress


@dataclass(frozen=True)
class ModelsCompared:
    """The tuned model and the default one have run whole, in alternation; the faster one is kept."""

    tuned_s: float
    default_s: float
    ratio: float
    """Median over the rounds of tuned / default."""
    tuned_wins: bool


@dataclass(frozen=True)
class SessionFinished:
    """Tuning is over, by budget, by Ctrl-C, or because every task is finished."""

    result: TuningResult
    progress: SessionProgress


Event = (
    PhaseStarted
    | SessionStarted
    | RoundStarted
    | TrialsDone
    | NewBest
    | TaskFinished
    | FinalCheckStarted
    | WinnersMeasured
    | ModelsCompared
    | SessionFinished
)
Listener = Callable[[Event], None]
"""Called in the thread that tunes: what it does takes time from the budget. What it raises ends the session."""


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as JSON values, its kind under "event"; rows of tasks only where they may have changed.

    A record becomes what was measured, without what is the same for the whole session or lies in the database.
    """
    document: dict[str, Any] = {"event": re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()}
    changed: set[str] | None = set()
    match event:
        case TrialsDone() | WinnersMeasured():
            names = {task.workload: task.name for task in event.progress.tasks}
            document["number"] = event.number
            document["trials"] = [_trial(record, names[record.candidate.workload.hash]) for record in event.records]
            changed = {record.candidate.workload.hash for record in event.records}
        case SessionFinished():
            result = event.result
            document |= {
                "session": result.session,
                "interrupted": result.interrupted,
                "phases_s": dict(result.phases_s),
            }
            changed = None
        case _:
            document |= {f.name: getattr(event, f.name) for f in fields(event) if f.name != "progress"}
            changed = None if isinstance(event, SessionStarted) else set()
    progress = getattr(event, "progress", None)
    if progress is not None:
        document["progress"] = _progress(progress)
        if changed is None or changed:
            document["rows"] = [_task(task) for task in progress.tasks if changed is None or task.workload in changed]
    return document


def _trial(record: MeasureRecord, name: str) -> dict[str, Any]:
    result = record.result
    return {
        "workload": record.candidate.workload.hash,
        "name": name,
        "config": dict(record.candidate.config),
        "strategy": record.strategy,
        "status": result.status.value,
        "latency_s": result.latency_s if result.latencies_s else None,
        "reason": result.reason,
        "phases_s": dict(result.phases_s),
    }


def _task(task: TaskProgress) -> dict[str, Any]:
    return {**asdict(task), "roofline_share": task.roofline_share}


def _progress(progress: SessionProgress) -> dict[str, Any]:
    values = {f.name: getattr(progress, f.name) for f in fields(progress) if f.name != "tasks"}
    return {**values, "latency_s": progress.latency_s, "default_latency_s": progress.default_latency_s}
