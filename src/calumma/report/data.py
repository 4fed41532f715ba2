"""What a report says, computed from a session and its records; no word here of how it looks.

The convergence of a task starts with the first measurement of its default, or with that of an earlier session's best
taken again, and from there on follows the fastest of what may count: the default and configurations whose outputs were
verified. The final check is no part of it: the least of many repeated measurements would be luck.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from calumma.core.contraction import FLOAT32
from calumma.core.errors import InputError
from calumma.core.protocols import Store
from calumma.core.values import COLLECTION, Hardware, KnobValue, MeasureRecord, Session, Status
from calumma.report.fields import Fields
from calumma.report.knobs import KnobEffect, knob_effects
from calumma.tuner import DEFAULT, REMEASURED
from calumma.tuner.state import VERIFIED


@dataclass(frozen=True)
class Measurement:
    """One record of a session, placed in time."""

    elapsed_s: float
    """Seconds from the start of the session."""
    trial: int
    """Trials of the session so far, this one included; measuring something again is none."""
    task_trial: int
    """The same, of its task alone."""
    origin: str
    """Who proposed it."""
    status: Status
    latency_s: float | None
    """None if it failed."""
    reason: str
    config: Mapping[str, KnobValue]
    may_be_best: bool
    """Whether it counts in the convergence."""


@dataclass(frozen=True)
class Point:
    """A step of a convergence curve: the best latency from here on."""

    elapsed_s: float
    trial: int
    """Of the session or of the task, whatever the curve is about."""
    latency_s: float


@dataclass(frozen=True)
class TaskReport:
    """One task of the session."""

    number: int
    """1 has the largest part of the model's time."""
    name: str
    workload: str
    template: str
    weight: int
    """Calls in one run of the model; 1 where that is unknown."""
    arguments: str
    """Shapes of inputs and output; empty if unknown."""
    flops: float | None
    size_bytes: float | None
    """Inputs and outputs of one call, each counted once."""
    latency_s: float | None
    """Of what the session decided for; of the best measured if it never ended. None if nothing was measured."""
    default_latency_s: float | None
    bound_s: float | None
    tuned: bool
    """Whether the decision is another configuration than the default."""
    checked: bool
    """Whether the final check decided."""
    changes: tuple[tuple[str, KnobValue, KnobValue], ...]
    """Where winner and default differ, as (knob, value of the default, value of the winner)."""
    trials: int
    failed: int
    finished: str
    """Why it got no more trials; empty if the budget ended first."""
    measurements: tuple[Measurement, ...]
    curve: tuple[Point, ...]

    @property
    def label(self) -> str:
        """Short name for plots."""
        return f"#{self.number} {self.template or self.name}"

    @property
    def time_s(self) -> float:
        """Seconds in one run of the model."""
        return self.weight * (self.latency_s or 0.0)

    @property
    def speedup(self) -> float | None:
        """Latency of the default over that of the decision."""
        return self.default_latency_s / self.latency_s if self.default_latency_s and self.latency_s else None

    @property
    def flops_per_s(self) -> float | None:
        return self.flops / self.latency_s if self.flops and self.latency_s else None

    @property
    def bytes_per_s(self) -> float | None:
        return self.size_bytes / self.latency_s if self.size_bytes and self.latency_s else None

    @property
    def roofline_share(self) -> float | None:
        """Roofline bound over latency."""
        return self.bound_s / self.latency_s if self.bound_s and self.latency_s else None


@dataclass(frozen=True)
class FailureGroup:
    """Candidates that failed in the same way."""

    status: Status
    reason: str
    count: int
    tasks: tuple[str, ...]
    """Labels of the tasks, most failures first."""
    config: Mapping[str, KnobValue]
    """Of the first."""


@dataclass(frozen=True)
class OriginCount:
    """What one source of proposals brought."""

    origin: str
    trials: int
    worked: int
    bests: int
    """How often it was faster than everything of its task before it."""


@dataclass(frozen=True)
class SessionReport:
    """Everything on the page but the peers."""

    session: Session
    complete: bool
    """False for a session without an end: it was killed, or still runs."""
    interrupted: bool
    seconds: float
    """Spent so far."""
    trials: int
    budget_s: float | None
    budget_trials: int | None
    strategy: str
    seed: int | None
    phases_s: Mapping[str, float]
    """By phase; empty for a session without an end."""
    tasks: tuple[TaskReport, ...]
    curve: tuple[Point, ...]
    """Sum of weight x best latency; a task counts with its first latency until it is measured."""
    failures: tuple[FailureGroup, ...]
    origins: tuple[OriginCount, ...]
    knobs: tuple[KnobEffect, ...]
    """Of those that separate fast from slow, the strongest first."""
    knobs_examined: int
    hardware: Hardware | None
    """None if nothing was measured."""
    threads: int | None
    cache_state: str
    toolchain: str
    versions: Mapping[str, str]
    """Of calumma, Python and the system at the end of the session; empty if unknown."""
    command: str
    """What repeats the session."""

    @property
    def compared(self) -> tuple[TaskReport, ...]:
        """Tasks whose default and decision are both measured: the sums before and after are over these."""
        return tuple(task for task in self.tasks if task.speedup is not None)

    @property
    def latency_s(self) -> float:
        return sum(task.time_s for task in self.compared)

    @property
    def default_latency_s(self) -> float:
        return sum(task.weight * (task.default_latency_s or 0.0) for task in self.compared)

    @property
    def speedup(self) -> float | None:
        return self.default_latency_s / self.latency_s if self.latency_s else None

    def share(self, task: TaskReport) -> float | None:
        """Part of a task in the time of all tasks measured."""
        total = sum(other.time_s for other in self.tasks)
        return task.time_s / total if task.latency_s and total else None


def collect(store: Store, session: str | None = None) -> SessionReport:
    """Gather what a report says about a session.

    Args:
        store: where the session and its records are.
        session: its id; the last one that was started if None.

    Raises:
        InputError: there is no such session, or what is stored of it is damaged.
        DatabaseError: the store cannot be read.
    """
    found = _find(store.sessions(), session)
    records = sorted(store.records(session=found.id), key=lambda record: record.time_s)
    options = Fields(found.options, f"session {found.id}: options")
    summary = Fields(found.summary or {}, f"session {found.id}: summary")
    measurements = _measurements(found, records)
    curves = {workload: _curve(of_task) for workload, of_task in measurements.items()}
    tasks = _tasks(summary.objects("tasks"), records, measurements, curves)
    effects, examined = knob_effects(records)
    first = records[0] if records else None
    last_s = max((m.elapsed_s for of_task in measurements.values() for m in of_task), default=0.0)
    trials = summary.count("trials")
    return SessionReport(
        session=found,
        complete=found.summary is not None,
        interrupted=bool(summary.flag("interrupted")),
        seconds=summary.number("seconds") or last_s,
        trials=sum(task.trials for task in tasks) if trials is None else trials,
        budget_s=options.number("budget_s"),
        budget_trials=options.count("trials"),
        strategy=options.text("strategy") or "",
        seed=first.seed if first else options.count("seed"),
        phases_s=summary.object("phases_s").numbers(),
        tasks=tasks,
        curve=_model_curve(tasks),
        failures=_failures(tasks),
        origins=_origins(tasks),
        knobs=effects,
        knobs_examined=examined,
        hardware=first.hardware if first else None,
        threads=first.threads if first else options.count("threads"),
        cache_state=first.cache_state if first else "",
        toolchain=first.toolchain if first else "",
        versions={
            name: version
            for name in ("calumma", "python", "system")
            if (version := summary.object("environment").text(name)) is not None
        },
        command=_command(found, options),
    )


def _find(sessions: Sequence[Session], wanted: str | None) -> Session:
    tuning = [session for session in sessions if session.options.get("kind") != COLLECTION]
    if wanted is None and tuning:
        return tuning[-1]
    if wanted is None:
        raise InputError(
            "the database holds no tuning session: tune a model first, or choose another database file "
            "(CALUMMA_DB names the default)"
        )
    for session in tuning:
        if session.id == wanted:
            return session
    if any(session.id == wanted for session in sessions):
        raise InputError(
            f"session {wanted!r} collected measurements and tuned no model: reports are of tuning sessions"
        )
    raise InputError(f"there is no session {wanted!r} in the database: `calumma records --sessions` lists them")


def _measurements(session: Session, records: Iterable[MeasureRecord]) -> dict[str, tuple[Measurement, ...]]:
    """Workload hash -> its measurements, oldest first."""
    by_task: defaultdict[str, list[Measurement]] = defaultdict(list)
    of_task: Counter[str] = Counter()
    trial = 0
    for record in records:
        workload, result = record.candidate.workload.hash, record.result
        again = record.strategy == REMEASURED
        if not again:
            trial += 1
            of_task[workload] += 1
        trusted = record.strategy == DEFAULT or result.phases_s.get(VERIFIED, 0.0) > 0
        by_task[workload].append(
            Measurement(
                # The system's clock may have been set back since the session began.
                elapsed_s=max(0.0, record.time_s - session.started_s),
                trial=trial,
                task_trial=of_task[workload],
                origin=record.strategy,
                status=result.status,
                latency_s=result.latency_s if result.status is Status.OK else None,
                reason=result.reason,
                config=record.candidate.config,
                may_be_best=not by_task[workload] if again else trusted,
            )
        )
    return {workload: tuple(found) for workload, found in by_task.items()}


def _curve(measurements: Iterable[Measurement]) -> tuple[Point, ...]:
    points: list[Point] = []
    for m in measurements:
        if m.may_be_best and m.latency_s is not None and (not points or m.latency_s < points[-1].latency_s):
            points.append(Point(m.elapsed_s, m.task_trial, m.latency_s))
    return tuple(points)


def _model_curve(tasks: Iterable[TaskReport]) -> tuple[Point, ...]:
    known = [task for task in tasks if task.curve]
    best = {task.workload: task.curve[0].latency_s for task in known}
    weights = {task.workload: task.weight for task in known}
    steps = sorted(
        (m.trial, m.elapsed_s, task.workload, m.latency_s)
        for task in known
        for m in task.measurements
        if m.may_be_best and m.latency_s is not None
    )
    points: list[Point] = []
    for trial, elapsed_s, workload, latency_s in steps:
        best[workload] = min(best[workload], latency_s)
        total = sum(weights[name] * value for name, value in best.items())
        if not points or total < points[-1].latency_s:
            points.append(Point(elapsed_s, trial, total))
    return tuple(points)


def _tasks(
    stored: Sequence[Fields],
    records: Iterable[MeasureRecord],
    measurements: Mapping[str, tuple[Measurement, ...]],
    curves: Mapping[str, tuple[Point, ...]],
) -> tuple[TaskReport, ...]:
    """The tasks of a session's summary, or of its records where it has none; the largest first."""
    templates = {record.candidate.workload.hash: record.candidate.template for record in records}
    described = [(str(task.required("workload", task.text("workload"))), task) for task in stored]
    if not described:
        described = [(workload, Fields({}, workload)) for workload in measurements]
    tasks = []
    for workload, task in described:
        own, curve = measurements.get(workload, ()), curves.get(workload, ())
        config, default = task.config("config") or {}, task.config("default_config")
        default_s = next((m.latency_s for m in own if m.origin == DEFAULT), None)
        failed = sum(m.latency_s is None and m.origin != REMEASURED for m in own)
        trials = task.count("trials")
        tasks.append(
            TaskReport(
                number=0,
                name=task.text("name") or workload,
                workload=workload,
                template=task.text("template") or templates.get(workload, ""),
                weight=1 if (weight := task.count("weight")) is None else weight,
                arguments=_shapes(task.items("arguments")),
                flops=task.number("flops"),
                size_bytes=task.number("size_bytes"),
                latency_s=task.number("latency_s") if stored else (curve[-1].latency_s if curve else None),
                default_latency_s=task.number("default_latency_s") if stored else default_s,
                bound_s=task.number("bound_s"),
                tuned=bool(task.flag("tuned")),
                checked=bool(task.flag("checked")),
                changes=tuple((k, default[k], v) for k, v in config.items() if k in default and default[k] != v)
                if default
                else (),
                trials=own[-1].task_trial if own and trials is None else trials or 0,
                failed=failed,
                finished=task.text("finished") or "",
                measurements=own,
                curve=curve,
            )
        )
    tasks.sort(key=lambda task: task.time_s, reverse=True)
    return tuple(replace(task, number=number) for number, task in enumerate(tasks, 1))


def _shapes(arguments: Sequence[object]) -> str:
    """[[[1, 64, 56, 56], "float32"], ...], outputs last -> "1×64×56×56, ... → 1×64×56×56"."""
    shapes = []
    for argument in arguments:
        shape = argument[0] if isinstance(argument, list) and argument else None
        if not isinstance(shape, list) or not all(type(d) is int for d in shape):
            return ""
        shapes.append("×".join(map(str, shape)) or "scalar")
    return f"{', '.join(shapes[:-1])} → {shapes[-1]}" if shapes else ""


def _failures(tasks: Iterable[TaskReport]) -> tuple[FailureGroup, ...]:
    failed: defaultdict[tuple[Status, str], list[tuple[TaskReport, Measurement]]] = defaultdict(list)
    for task in tasks:
        for m in task.measurements:
            if m.status is not Status.OK:
                failed[m.status, m.reason].append((task, m))
    groups = []
    for (status, reason), members in failed.items():
        labels = Counter(task.label for task, _ in members)
        groups.append(
            FailureGroup(
                status, reason, len(members), tuple(name for name, _ in labels.most_common()), members[0][1].config
            )
        )
    return tuple(sorted(groups, key=lambda group: (-group.count, group.status, group.reason)))


def _origins(tasks: Iterable[TaskReport]) -> tuple[OriginCount, ...]:
    trials: Counter[str] = Counter()
    worked: Counter[str] = Counter()
    bests: Counter[str] = Counter()
    for task in tasks:
        best_s: float | None = None
        for m in task.measurements:
            if m.origin != REMEASURED:
                trials[m.origin] += 1
                worked[m.origin] += m.latency_s is not None
            if m.may_be_best and m.latency_s is not None and (best_s is None or m.latency_s < best_s):
                bests[m.origin] += best_s is not None
                best_s = m.latency_s
    return tuple(OriginCount(name, n, worked[name], bests[name]) for name, n in trials.most_common())


def _command(session: Session, options: Fields) -> str:
    """The shell command of a session on a model file, the Python call for any other."""
    source = options.text("source")
    seconds, trials, threads = options.number("budget_s"), options.count("trials"), options.count("threads")
    strategy, seed, mcpu = options.text("strategy"), options.count("seed"), options.text("mcpu")
    tolerance, precision = options.number("tolerance"), options.text("precision")
    if precision == FLOAT32.name:
        precision = None
    shapes = {name: options.object("shapes").items(name) for name in options.object("shapes").names}
    if source is None:
        limits = [
            f"{name}={value!r}" for name, value in (("seconds", seconds), ("trials", trials)) if value is not None
        ]
        named = (
            ("strategy", strategy),
            ("seed", seed),
            ("threads", threads),
            ("mcpu", mcpu),
            ("tolerance", tolerance),
            ("precision", precision),
        )
        rest = "".join(f", {name}={value!r}" for name, value in named if value is not None)
        return f"calumma.tune(model, budget=calumma.Budget({', '.join(limits)}){rest})"
    words = ["calumma", "tune", source]
    for name, shape in shapes.items():
        words += ["--shape", f"{name}={','.join(map(str, shape))}"]
    for option, value in (
        ("--budget", None if seconds is None else f"{seconds:g}s"),
        ("--trials", trials),
        ("--strategy", strategy),
        ("--seed", seed),
        ("--threads", threads),
        ("--mcpu", mcpu),
        ("--tolerance", None if tolerance is None else f"{tolerance:g}"),
        ("--precision", precision),
    ):
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)
