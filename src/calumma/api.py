"""What `import calumma` offers: compile, tune, load, InferenceSession; and the listing behind `calumma tasks`.

Latencies and durations are in seconds wherever a name ends in `_s`. Everything that can be the caller's doing raises an
`InputError` of one line; `calumma.CalummaError` is the base of all that calumma raises on purpose.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma import tvm_compat
from calumma.artifact import Artifact, Executable, InferenceSession, LoweredModel, build, load, save
from calumma.core import durations
from calumma.core.errors import InputError
from calumma.core.values import Budget, KnobValue

if TYPE_CHECKING:
    from calumma.core.protocols import Store
    from calumma.tuner import ModelContest, TaskResult
    from calumma.tuner.events import Listener
    from calumma.tuner.model import TunableModel

__all__ = [
    "CompileResult",
    "InferenceSession",
    "TaskListing",
    "TaskRow",
    "TuneResult",
    "compile",
    "load",
    "tasks",
    "tune",
]

Shapes = Mapping[str, tuple[int, ...]]
DEFAULT_BUDGET = Budget(seconds=60.0)
DEFAULT_STRATEGY = "evolutionary"


@dataclass(frozen=True)
class TaskRow:
    """One task of a model, before anything is measured."""

    name: str
    workload: str
    anchor: str
    """Template of its design space."""
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and dtype of every argument, outputs last."""
    weight: int
    """Calls per run of the model."""
    gflop: float
    """Of one call."""
    megabytes: float
    """Inputs and outputs of one call, each counted once."""
    intensity: float
    """flops per byte."""
    bound_ms: float
    """Roofline bound of one call."""
    space_size: int
    knobs: Mapping[str, int]
    """Knob -> number of its values."""
    default: Mapping[str, KnobValue]


@dataclass(frozen=True)
class TaskListing:
    """What would be tuned."""

    rows: tuple[TaskRow, ...]
    layout_transforms: int
    """Kernels left that only change the layout of an activation."""
    peak_gflop_per_s: float
    machine: str
    """How the probed peak agrees with flops per cycle x clock, one line."""
    import_s: float
    phases_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A model that has become an artifact."""

    path: Path | None
    """Where the artifact was saved."""
    phases_s: Mapping[str, float]
    """Seconds by what they were spent on, tuning included."""
    import_s: float
    """Seconds from the model file to fused tasks, without imports."""
    executable: Executable = field(repr=False)
    lowered: LoweredModel = field(repr=False)

    @functools.cached_property
    def artifact(self) -> Artifact:
        """The model ready to run in this process; needs no C compiler."""
        return Artifact.from_executable(self.executable, self.lowered.params, self.lowered.metadata)


@dataclass(frozen=True, kw_only=True)
class CompileResult(_Built):
    """A compiled model."""

    tasks: tuple[TaskRow, ...]
    recorded: int
    """Tasks whose schedule comes from the database instead of the defaults."""


@dataclass(frozen=True, kw_only=True)
class TuneResult(_Built):
    """A tuned and compiled model."""

    session: str
    """Id of the tuning session in the database."""
    tasks: tuple[TaskResult, ...]
    contest: ModelContest | None
    """How the tuned model did against the default one; the faster one is the result."""
    interrupted: bool
    """Ctrl-C ended the session; the artifact holds the best so far."""


def compile(
    model: Any,
    *,
    output: str | PathLike[str] | None = None,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
    database: str | PathLike[str] | Store | None = None,
    on_event: Listener | None = None,
) -> CompileResult:
    """Compile a model without measuring anything.

    Schedules come from the database where this machine has tuned the same workloads before, and from the templates'
    defaults otherwise.

    Args:
        model: path or bytes of an ONNX model, a `torch.nn.Module` (with `example_inputs`), or an ExportedProgram.
        output: where to save the artifact; nowhere by default.
        example_inputs: the tensors a torch module is called with, in order; their shapes and types become the model's.
        shapes: input name -> every dimension, for inputs with open dimensions.
        threads: threads the model will run on; all physical cores by default.
        mcpu: LLVM's name of the CPU to compile for; the host by default.
        database: records to use: a path, a URL, or an open store; the user's own by default.
        on_event: called with a `PhaseStarted` for every step.

    Returns:
        The compiled model: `artifact` runs it in this process, `path` is the file written.

    Raises:
        InputError: the model, a setting or the database cannot be used; says what to do.
    """
    destination = _destination(output)
    on_phase = _phase_listener(on_event)
    on_phase("load")
    prepared = _prepare(model, example_inputs, shapes, threads, mcpu, on_phase)
    from calumma.tuner.model import recorded_configs

    with prepared.phase("records"), _store(database) as store:
        records = store.records(
            workloads=[task.workload.hash for task in prepared.tasks],
            hardware=prepared.hardware.fingerprint,
            threads=prepared.threads,
            cache_state=prepared.cache_state,
            toolchain=tvm_compat.toolchain(),
        )
        configs = {} if _tuned_lost(prepared, store) else recorded_configs(prepared, records)
    executable, lowered = _build(prepared, configs, {}, destination)
    return CompileResult(
        path=destination,
        phases_s=dict(prepared.phases_s),
        import_s=prepared.import_s,
        executable=executable,
        lowered=lowered,
        tasks=_rows(prepared),
        recorded=len(configs),
    )


def tune(
    model: Any,
    *,
    output: str | PathLike[str] | None = None,
    budget: Budget | float | str = DEFAULT_BUDGET,
    strategy: str = DEFAULT_STRATEGY,
    database: str | PathLike[str] | Store | None = None,
    seed: int = 0,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
    on_event: Listener | None = None,
) -> TuneResult:
    """Tune a model by measurement within a budget, and compile it with the best schedules found.

    Ctrl-C ends the session early and keeps the best so far.

    Args:
        budget: seconds as a number or as text ("90s", "2m"), or seconds, trials or both as a `Budget`; importing and
            building the model come on top.
        strategy: how candidates are proposed; see `calumma.search.strategy_names`.
        database: where records go, and come from: a path, a URL, or an open store; the user's own by default.
        seed: decides everything random.
        on_event: called with every progress event (`calumma.events`), in this thread and on the budget's time. What it
            raises ends the session and is raised again; what was measured is in the database.
        model, output, example_inputs, shapes, threads, mcpu: as for `compile`.

    Returns:
        The tuned model, with what was decided per task and what the time was spent on.

    Raises:
        InputError: the model, a setting or the database cannot be used; says what to do.
    """
    from calumma.measure import LocalRunner
    from calumma.search import strategy_names
    from calumma.tuner import TuningSession
    from calumma.tuner.contest import Contest

    if strategy not in strategy_names():
        raise InputError(f"--strategy {strategy}: there is no such strategy; one of {', '.join(strategy_names())}")
    destination = _destination(output)
    budget = _budget(budget)
    count = tvm_compat.set_threads(threads)
    on_phase = _phase_listener(on_event)
    on_phase("load")
    hardware = tvm_compat.hardware_for(mcpu)
    if not tvm_compat.target_features(hardware.mcpu) <= tvm_compat.target_features(tvm_compat.host_mcpu()):
        raise InputError(f"--mcpu {mcpu}: this machine cannot run code for it, so nothing can be measured; use compile")
    with _store(database) as store, closing(LocalRunner(hardware, count)) as runner:
        prepared = _prepare(model, example_inputs, shapes, threads, mcpu, on_phase)
        runner.cache_state = prepared.cache_state
        contest = Contest(prepared)
        session = TuningSession(
            [(task, prepared.spaces[task.workload.hash]) for task in prepared.tasks],
            runner,
            store,
            budget,
            hardware=hardware,
            toolchain=tvm_compat.toolchain(),
            bounds=prepared.bounds,
            strategy=strategy,
            seed=seed,
            model=prepared.name,
            model_hash=prepared.model_hash,
            options={
                "source": Path(model).name if isinstance(model, (str, PathLike)) else None,
                "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
                "budget_s": budget.seconds,
                "trials": budget.trials,
                "threads": count,
                "mcpu": hardware.mcpu,
            },
            progress=on_event,
            contest=contest,
        )
        result = session.run()
    configs = {task.workload: task.config for task in result.tasks}
    latencies_s = {task.workload: task.latency_s for task in result.tasks if task.latency_s is not None}
    executable, lowered = _build(
        prepared, configs, latencies_s, destination, contest.winner if result.contest is not None else None
    )
    phases = dict(prepared.phases_s)
    for name, seconds in result.phases_s.items():
        phases[f"tune.{name}"] = seconds
    return TuneResult(
        path=destination,
        phases_s=phases,
        import_s=prepared.import_s,
        executable=executable,
        lowered=lowered,
        session=result.session,
        tasks=result.tasks,
        contest=result.contest,
        interrupted=result.interrupted,
    )


def tasks(
    model: Any,
    *,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
) -> TaskListing:
    """List what would be tuned, without building or measuring anything.

    Args:
        model, example_inputs, shapes, threads, mcpu: as for `compile`.

    Raises:
        InputError: the model or a setting cannot be used; says what to do.
    """
    prepared = _prepare(model, example_inputs, shapes, threads, mcpu)
    return TaskListing(
        _rows(prepared),
        prepared.graph.layout_transforms,
        prepared.limits.peak_flops / 1e9,
        prepared.limits.note,
        prepared.import_s,
        dict(prepared.phases_s),
    )


def _prepare(
    model: Any,
    example_inputs: Sequence[Any] | None,
    shapes: Shapes | None,
    threads: int | None,
    mcpu: str | None,
    on_phase: Callable[[str], None] = lambda name: None,
) -> TunableModel:
    count = tvm_compat.set_threads(threads)
    from calumma.tuner.model import prepare

    return prepare(model, example_inputs=example_inputs, shapes=shapes, threads=count, mcpu=mcpu, on_phase=on_phase)


def _phase_listener(on_event: Listener | None) -> Callable[[str], None]:
    """What to call with the name of a phase that begins."""
    from calumma.tuner.events import PhaseStarted

    return lambda name: None if on_event is None else on_event(PhaseStarted(name))


def _build(
    prepared: TunableModel,
    configs: Mapping[str, Mapping[str, KnobValue]],
    latencies_s: Mapping[str, float],
    destination: Path | None,
    built: tuple[Executable, LoweredModel] | None = None,
) -> tuple[Executable, LoweredModel]:
    """Schedule, build and save; what was `built` from these schedules before is not built again."""
    if built is not None:
        executable, lowered = built[0], replace(built[1], metadata=prepared.metadata(configs, latencies_s))
    else:
        with prepared.phase("schedule"):
            lowered = prepared.lowered(configs, latencies_s)
        with prepared.phase("build"):
            executable = build(lowered, prepared.hardware, prepared.threads)
    if destination is not None:
        with prepared.phase("save"):
            save(executable, lowered.params, lowered.metadata, destination)
    return executable, lowered


def _rows(prepared: TunableModel) -> tuple[TaskRow, ...]:
    rows = []
    for task in prepared.tasks:
        space = prepared.spaces[task.workload.hash]
        rows.append(
            TaskRow(
                name=task.name,
                workload=task.workload.hash,
                anchor=task.anchor,
                arguments=task.arguments,
                weight=task.weight,
                gflop=task.flops / 1e9,
                megabytes=task.size_bytes / 1e6,
                intensity=task.intensity,
                bound_ms=prepared.bounds[task.workload.hash] * 1e3,
                space_size=space.size,
                knobs={knob.name: len(knob.values) for knob in space.knobs},
                default=prepared.defaults[task.workload.hash],
            )
        )
    return tuple(rows)


def _tuned_lost(prepared: TunableModel, store: Store) -> bool:
    """Whether the tuned model lost against the default one when it was last tuned for so many threads on this CPU."""
    from calumma.tuner import ModelContest

    for session in reversed(store.sessions()):
        summary, options = session.summary or {}, session.options
        same = (options.get("threads"), options.get("mcpu")) == (prepared.threads, prepared.hardware.mcpu)
        if session.model_hash == prepared.model_hash and same and summary.get("contest") is not None:
            return not ModelContest(**summary["contest"]).tuned_wins
    return False


def _destination(output: str | PathLike[str] | None) -> Path | None:
    """The path to write, checked before any work is done."""
    if output is None:
        return None
    path = Path(output)
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"the artifact cannot be written to {path}: {reason}; give the path of a file, like model.so")
    return path


def _budget(budget: Budget | float | str) -> Budget:
    """The budget as limits that make sense."""
    limits = budget if isinstance(budget, Budget) else Budget(seconds=durations.seconds(budget))
    for name, limit in (("seconds", limits.seconds), ("trials", limits.trials)):
        if limit is not None and not 0 < limit < math.inf:
            raise InputError(f"budget: {name} is {limit!r}; give more than 0, or a Budget without that limit")
    return limits


def _store(database: str | PathLike[str] | Store | None) -> AbstractContextManager[Store]:
    """Open the store that the user named, to be closed again; a store that came open stays open."""
    from calumma.database import SqlStore

    if database is None or isinstance(database, (str, PathLike)):
        return SqlStore.open(Path(database) if isinstance(database, PathLike) else database)
    return nullcontext(database)
