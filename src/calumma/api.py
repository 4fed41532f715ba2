"""What `import calumma` offers: compile, tune, load, InferenceSession; and the listing behind `calumma tasks`.

Latencies and durations are in seconds wherever a name ends in `_s`. Everything that can be the caller's doing raises an
`InputError` of one line; `calumma.CalummaError` is the base of all that calumma raises on purpose.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma import tvm_compat
from calumma.artifact import Artifact, Executable, InferenceSession, LoweredModel, build, cpu, load, save
from calumma.core import durations
from calumma.core.errors import InputError
from calumma.core.rng import check_seed
from calumma.core.values import COLLECTION, PRECISIONS, Budget, KnobValue

if TYPE_CHECKING:
    from calumma.core.protocols import Store
    from calumma.prior.collect import CollectProgress, CollectResult
    from calumma.prior.weights import Prior
    from calumma.search import StrategyChoice
    from calumma.tuner import ModelContest, TaskResult
    from calumma.tuner.events import Listener
    from calumma.tuner.model import TunableModel

__all__ = [
    "CompileResult",
    "InferenceSession",
    "TaskListing",
    "TaskRow",
    "TuneResult",
    "collect",
    "compile",
    "learn",
    "load",
    "tasks",
    "tune",
]

Shapes = Mapping[str, tuple[int, ...]]
DEFAULT_BUDGET = Budget(seconds=60.0)
DEFAULT_STRATEGY = "evolutionary"
DEFAULT_COLLECTION = Budget(seconds=600.0)
CACHE_STATE = "cold"
"""In which workloads are measured that belong to no model: weights have usually left the caches when a kernel's turn
comes again."""


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
    """Tasks whose schedule comes from the database."""
    prior: str | None = None
    """Name of the prior that was asked about the others; None if there was none."""
    predicted: int = 0
    """Tasks whose schedule comes from the prior instead of the defaults."""
    note: str = ""
    """Why no prior was asked, one line; empty if one was, or none was wanted."""


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
    prior: str | None = None
    """Name of the prior whose best predictions were tried first; None if there was none."""
    note: str = ""
    """Why there was none, one line; empty if there was one, or none was wanted."""


@dataclass(frozen=True, kw_only=True)
class LearnResult:
    """A prior and what it was learnt from."""

    prior: Prior = field(repr=False)
    path: Path
    """Where it was saved."""
    rows: int
    """Configurations learnt from."""
    workloads: int
    left_out: Mapping[str, int]
    """Reason -> records that were not learnt from."""
    seconds: float


def compile(
    model: Any,
    *,
    output: str | PathLike[str] | None = None,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
    database: str | PathLike[str] | Store | None = None,
    prior: str = "auto",
    tolerance: float | None = None,
    precision: str = PRECISIONS[0],
    on_event: Listener | None = None,
) -> CompileResult:
    """Compile a model without measuring anything.

    Schedules come from the database where this machine has tuned the same workloads before, from a prior where that
    is sure of something better than the templates' defaults, and from these otherwise.

    Args:
        model: path or bytes of an ONNX model, a `torch.nn.Module` (with `example_inputs`), or an ExportedProgram.
        output: where to save the artifact; nowhere by default.
        example_inputs: the tensors a torch module is called with, in order; their shapes and types become the model's.
        shapes: input name -> every dimension, for inputs with open dimensions.
        threads: threads the model will run on; all physical cores by default.
        mcpu: LLVM's name of the CPU to compile for; the host by default.
        database: records to use: a path, a URL, or an open store; the user's own by default.
        prior: name or file of a prior; "auto" for the newest that fits this machine, "none" for none.
        tolerance: largest relative error that an algorithm may have by itself to be considered (docs/winograd.md), such
            as 1e-6 for no convolution by Winograd's F(4x4, 3x3); all are by default. Plain arithmetic always is.
        precision: "fp32", or "bf16" for convolutions and matrix products that read bfloat16 and add up float32, on CPUs
            with AVX512_BF16 (docs/precision.md).
        on_event: called with a `PhaseStarted` for every step.

    Returns:
        The compiled model: `artifact` runs it in this process, `path` is the file written.

    Raises:
        InputError: the model, a setting, the database or the prior cannot be used; says what to do.
    """
    destination = _destination(output)
    on_phase = _phase_listener(on_event)
    on_phase("load")
    from calumma.tuner import zero_shot
    from calumma.tuner.model import recorded_configs

    with _store(database) as store:
        prepared = _prepare(model, example_inputs, shapes, threads, mcpu, on_phase, tolerance, precision)
        with prepared.phase("records"):
            records = store.records(
                workloads=[task.workload.hash for task in prepared.tasks],
                hardware=prepared.hardware.fingerprint,
                threads=prepared.threads,
                cache_state=prepared.cache_state,
                toolchain=tvm_compat.toolchain(),
            )
            defaults_won = _tuned_lost(prepared, store)
            recorded = {} if defaults_won else recorded_configs(prepared, records)
    with prepared.phase("prior"):
        predictor, note = zero_shot.predictor_for(prepared, prior)
        measured = {record.candidate.workload.hash for record in records}
        predicted = {} if predictor is None or defaults_won else zero_shot.choices(prepared, predictor, measured)
    executable, lowered = _build(prepared, {**predicted, **recorded}, {}, destination)
    return CompileResult(
        path=destination,
        phases_s=dict(prepared.phases_s),
        import_s=prepared.import_s,
        executable=executable,
        lowered=lowered,
        tasks=_rows(prepared),
        recorded=len(recorded),
        prior=None if predictor is None else predictor.prior.name,
        predicted=len(predicted),
        note=note,
    )


def tune(
    model: Any,
    *,
    output: str | PathLike[str] | None = None,
    budget: Budget | float | str = DEFAULT_BUDGET,
    strategy: StrategyChoice = DEFAULT_STRATEGY,
    database: str | PathLike[str] | Store | None = None,
    seed: int = 0,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
    prior: str = "auto",
    tolerance: float | None = None,
    precision: str = PRECISIONS[0],
    on_event: Listener | None = None,
) -> TuneResult:
    """Tune a model by measurement within a budget, and compile it with the best schedules found.

    Ctrl-C ends the session early and keeps the best so far.

    Args:
        budget: seconds as a number or as text ("90s", "2m"), or seconds, trials or both as a `Budget`; importing and
            building the model come on top.
        strategy: how candidates are proposed: a name of `calumma.search.strategy_names`, or a function of
            `calumma.search.StrategyParts` that makes a strategy; of a model with one task also the strategy itself.
        database: where records go, and come from: a path, a URL, or an open store; the user's own by default.
        seed: decides everything random.
        prior: name or file of a prior whose best predictions are tried first and whose trees, refitted to what is
            measured, guide the search; "auto" for the newest that fits this machine, "none" for none.
        on_event: called with every progress event (`calumma.events`), in this thread and on the budget's time. What it
            raises ends the session and is raised again; what was measured is in the database.
        model, output, example_inputs, shapes, threads, mcpu, tolerance, precision: as for `compile`.

    Returns:
        The tuned model, with what was decided per task and what the time was spent on.

    Raises:
        InputError: the model, a setting, the database or the prior cannot be used; says what to do.
    """
    from calumma.measure import LocalRunner
    from calumma.search import check_strategy
    from calumma.tuner import TuningSession, zero_shot
    from calumma.tuner.contest import Contest

    check_seed(seed)
    destination = _destination(output)
    budget = _budget(budget)
    count = tvm_compat.set_threads(threads)
    check_strategy(strategy)
    on_phase = _phase_listener(on_event)
    on_phase("load")
    hardware = tvm_compat.hardware_for(mcpu)
    needed, present = (
        cpu.required_flags(tvm_compat.target_features(name)) for name in (hardware.mcpu, tvm_compat.host_mcpu())
    )
    missing = sorted(set(needed) - set(present))
    if missing:
        raise InputError(
            f"mcpu={mcpu!r}: this machine lacks {', '.join(missing)}, so nothing can be measured here; use compile"
        )
    with _store(database) as store, closing(LocalRunner(hardware, count)) as runner:
        prepared = _prepare(model, example_inputs, shapes, threads, mcpu, on_phase, tolerance, precision)
        runner.cache_state = prepared.cache_state
        contest = Contest(prepared)
        with prepared.phase("prior"):
            predictor, note = zero_shot.predictor_for(prepared, prior)
            views = {} if predictor is None else zero_shot.views(prepared, predictor)
            first = zero_shot.first_candidates(views)
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
                "tolerance": tolerance,
                "precision": precision,
                "prior": None if predictor is None else predictor.prior.name,
            },
            progress=on_event,
            contest=contest,
            first=first,
            known=views,
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
        prior=None if predictor is None else predictor.prior.name,
        note=note,
    )


def tasks(
    model: Any,
    *,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
    precision: str = PRECISIONS[0],
) -> TaskListing:
    """List what would be tuned, without building or measuring anything.

    Args:
        model, example_inputs, shapes, threads, mcpu, precision: as for `compile`.

    Raises:
        InputError: the model or a setting cannot be used; says what to do.
    """
    prepared = _prepare(model, example_inputs, shapes, threads, mcpu, precision=precision)
    return TaskListing(
        _rows(prepared),
        prepared.graph.layout_transforms,
        prepared.limits.peak_flops / 1e9,
        prepared.limits.note,
        prepared.import_s,
        dict(prepared.phases_s),
    )


def collect(
    models: Sequence[str | PathLike[str]] = (),
    *,
    budget: Budget | float | str = DEFAULT_COLLECTION,
    database: str | PathLike[str] | Store | None = None,
    seed: int = 0,
    threads: int | None = None,
    families: Sequence[str] = (),
    exclude: Sequence[str] = (),
    exclude_models: Sequence[str | PathLike[str]] = (),
    configs: int | None = None,
    cache_state: str = CACHE_STATE,
    on_progress: Callable[[CollectProgress], None] = lambda progress: None,
) -> CollectResult:
    """Measure configurations of many workloads, for prior knowledge to be learnt from.

    The same call with the same database goes on where the last one stopped. Ctrl-C ends the session early; whatever
    was measured is in the database.

    Args:
        models: ONNX files whose workloads are measured; without any, workloads are drawn from the distribution of the
            layers of published networks, without end.
        budget: seconds as a number or as text ("2h"), or seconds, trials or both as a `Budget`.
        database: where records go: a path, a URL, or an open store; the user's own by default.
        seed: decides which workloads and which of their configurations.
        threads: threads the kernels run on; all physical cores by default.
        families: kinds of layers to draw (`calumma.prior.sampling.SHARES`); all of them by default.
        exclude: networks (`calumma.prior.networks`) whose layers are held out.
        exclude_models: ONNX files whose workloads are held out.
        configs: configurations of every workload, those of earlier sessions included; 24 by default.
        cache_state: "cold", as in a model whose weights exceed the caches, or "warm", as in a small one.
        on_progress: called after every batch, in this thread and on the budget's time.

    Raises:
        InputError: a setting, a model or the database cannot be used; says what to do.
    """
    limits = _budget(budget)
    count = tvm_compat.set_threads(threads)
    hardware = tvm_compat.hardware_for(None)
    from calumma.measure import LocalRunner
    from calumma.prior import collect as collecting
    from calumma.prior import workloads
    from calumma.prior.sampling import SHARES

    check_seed(seed)
    settings = collecting.CollectSettings() if configs is None else collecting.CollectSettings(configs=configs)
    if models and (families or exclude):
        raise InputError("families and excluded networks belong to drawn workloads: leave them out, or the models")
    held_out = [w.task.workload.hash for w in workloads.model_workloads(exclude_models, hardware.lanes)]
    if models:
        stream = workloads.model_workloads(models, hardware.lanes, exclude_hashes=held_out)
    else:
        stream = workloads.drawn_workloads(
            hardware.lanes,
            seed=seed,
            families=tuple(families) or tuple(SHARES),
            exclude=exclude,
            exclude_hashes=held_out,
        )
    with (
        _store(database) as store,
        closing(
            LocalRunner(
                hardware,
                count,
                cache_state=cache_state,
                run_timeout_s=collecting.RUN_TIMEOUT_S,
                space_entry=collecting.SPACE_ENTRY,
            )
        ) as runner,
    ):
        collection = collecting.Collection(
            stream,
            runner,
            store,
            limits,
            hardware=hardware,
            toolchain=tvm_compat.toolchain(),
            settings=settings,
            seed=seed,
            options={
                "models": [Path(model).name for model in models],
                "families": list(families),
                "exclude": list(exclude),
                "exclude_models": [Path(model).name for model in exclude_models],
                "configs": settings.configs,
                "budget_s": limits.seconds,
                "trials": limits.trials,
                "threads": count,
                "cache_state": cache_state,
                "mcpu": hardware.mcpu,
            },
            progress=on_progress,
        )
        return collection.run()


def learn(
    databases: Sequence[str | PathLike[str] | Store] = (),
    *,
    name: str | None = None,
    data: str = "shipped",
    save_data: str | PathLike[str] | None = None,
    exclude: str | PathLike[str] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> LearnResult:
    """Train a prior on this machine's records; `compile` and `tune` use the newest one that fits.

    Args:
        databases: records: paths, URLs or open stores; the user's own by default.
        name: what the prior is called, or the .safetensors file to write; it goes to the user's data directory unless
            a file is named. A name made of date and time by default.
        data: a data set to learn from as well: a file, "shipped" for the one that calumma has for this machine, if
            any, or "none".
        save_data: file to write all that was learnt from to.
        exclude: JSON file of workloads to leave out: lists of their hashes, by name of the network.
        seed: of the training: the same data and seed give the same weights on the same machine.
        say: called with a line about what is going on.

    Raises:
        InputError: a file cannot be used, or there is too little to learn from.
    """
    from calumma.prior import dataset, learning, library, weights

    start = time.perf_counter()
    check_seed(seed)
    path = library.destination(name)
    hardware, toolchain = tvm_compat.hardware_for(), tvm_compat.toolchain()
    left_out = learning.excluded(Path(exclude)) if exclude is not None else frozenset()
    learnt = dataset.Dataset(hardware, toolchain, (), {})
    for database in databases or (None,):
        with _store(database, create=False) as store:
            found = dataset.from_records(
                store.records(),
                hardware=hardware,
                toolchain=toolchain,
                networks={s.id: s.model for s in store.sessions() if s.options.get("kind") != COLLECTION},
                exclude=left_out,
            )
        say(f"{found.rows} configurations of {len(found.workloads)} workloads in {database or 'your own database'}")
        learnt = learnt.merged(found)
    known = library.data_for(data, hardware, toolchain)
    if known is not None:
        say(f"{known.rows} configurations of {len(known.workloads)} workloads in the data set {data}")
        learnt = learnt.merged(known.without(left_out))
    prior = learning.learn(learnt, library.name_of(path), seed=seed, say=say)
    path.parent.mkdir(parents=True, exist_ok=True)
    if save_data is not None:
        dataset.save(learnt, Path(save_data))
    weights.save(prior, path)
    return LearnResult(
        prior=prior,
        path=path,
        rows=learnt.rows,
        workloads=len(learnt.workloads),
        left_out=learnt.left_out,
        seconds=time.perf_counter() - start,
    )


def _prepare(
    model: Any,
    example_inputs: Sequence[Any] | None,
    shapes: Shapes | None,
    threads: int | None,
    mcpu: str | None,
    on_phase: Callable[[str], None] = lambda name: None,
    tolerance: float | None = None,
    precision: str = PRECISIONS[0],
) -> TunableModel:
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance={tolerance!r}: give a relative error of 0 or more, or none at all for no limit")
    count = tvm_compat.set_threads(threads)
    from calumma.tuner.model import prepare

    return prepare(
        model,
        example_inputs=example_inputs,
        shapes=shapes,
        threads=count,
        mcpu=mcpu,
        tolerance=tolerance,
        precision=precision,
        on_phase=on_phase,
    )


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
    """Whether the tuned model lost against the default one when it was last tuned in the same way on this CPU."""
    from calumma.tuner import ModelContest

    for session in reversed(store.sessions()):
        summary, options = session.summary or {}, session.options
        same = (
            options.get("threads"),
            options.get("mcpu"),
            options.get("tolerance"),
            options.get("precision", PRECISIONS[0]),
        ) == (prepared.threads, prepared.hardware.mcpu, prepared.tolerance, prepared.precision)
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


def _store(database: str | PathLike[str] | Store | None, create: bool = True) -> AbstractContextManager[Store]:
    """Open the store that the user named, to be closed again; a store that came open stays open."""
    from calumma.database import SqlStore

    if database is None or isinstance(database, (str, PathLike)):
        return SqlStore.open(Path(database) if isinstance(database, PathLike) else database, create=create)
    return nullcontext(database)
