"""What `import calumma` offers: compile, tune, load, InferenceSession; and the listing behind `calumma tasks`.

Latencies and durations are in seconds wherever a name ends in `_s`. Everything that can be the caller's doing raises an
`InputError` of one line; `calumma.CalummaError` is the base of all that calumma raises on purpose.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma import compilation, tvm_compat
from calumma.artifact import InferenceSession, load
from calumma.core import archives, durations
from calumma.core.contraction import FLOAT32
from calumma.core.outputs import FileKind, check_output
from calumma.core.rng import check_seed
from calumma.core.values import Budget
from calumma.pipeline import CompileOptions
from calumma.pipeline.destination import check_destination
from calumma.results import CompileResult, LearnResult, TaskListing, TaskRow, TuneResult, task_rows, tune_result

if TYPE_CHECKING:
    from calumma.core.protocols import Store
    from calumma.prior.campaign import AdaptResult
    from calumma.prior.collection import CollectProgress, CollectResult
    from calumma.search import StrategyChoice
    from calumma.tuner.events import Listener

__all__ = [
    "CompileResult",
    "InferenceSession",
    "LearnResult",
    "TaskListing",
    "TaskRow",
    "TuneResult",
    "adapt",
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


def compile(
    model: Any,
    *,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
    database: str | PathLike[str] | Store | None = None,
    prior: str = "auto",
    tolerance: float | None = None,
    precision: str = FLOAT32.name,
    cache: bool = True,
    on_event: Listener | None = None,
) -> CompileResult:
    """Compile a model without measuring anything.

    Schedules come from the database where this machine has tuned the same workloads before, from a prior where that
    is sure of something better than the templates' defaults, and from these otherwise. Long because this is the
    reference of its arguments.

    Args:
        model: path or bytes of an ONNX model, a `torch.nn.Module` (with `example_inputs`), or an ExportedProgram.
        output: where to save the artifact; nowhere by default. An artifact that is there is replaced.
        overwrite: replace another file too. A file of the model itself never is, nor anything but a regular file.
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
        cache: whether `output` may be the artifact of an earlier call for the same model, options and records, and this
            one is kept for later calls.
        on_event: called with a `PhaseStarted` for every step.

    Returns:
        The compiled model: `artifact` runs it in this process, `path` is the file written.

    Raises:
        InputError: the model, a setting, the database or the prior cannot be used; says what to do.
    """
    destination = check_destination(output, model, overwrite)
    options = CompileOptions(
        example_inputs=example_inputs,
        shapes=shapes,
        threads=threads,
        mcpu=mcpu,
        tolerance=tolerance,
        precision=precision,
    )
    return compilation.compile_untuned(
        model,
        options,
        open_store=functools.partial(_store, database),
        prior=prior,
        destination=destination,
        cache=cache,
        on_phase=_phase_listener(on_event),
    )


def tune(
    model: Any,
    *,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
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
    precision: str = FLOAT32.name,
    on_event: Listener | None = None,
) -> TuneResult:
    """Tune a model by measurement within a budget, and compile it with the best schedules found.

    Ctrl-C ends the session early and keeps the best so far. Long because this is the reference of its arguments.

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
        model, output, overwrite, example_inputs, shapes, threads, mcpu, tolerance, precision: as for `compile`.

    Returns:
        The tuned model, with what was decided per task and what the time was spent on.

    Raises:
        InputError: the model, a setting, the database or the prior cannot be used; says what to do.
    """
    check_seed(seed)
    destination = check_destination(output, model, overwrite)
    budget = durations.budget(budget)
    options = CompileOptions(
        example_inputs=example_inputs,
        shapes=shapes,
        threads=threads,
        mcpu=mcpu,
        tolerance=tolerance,
        precision=precision,
    )
    on_phase = _phase_listener(on_event)
    watch = compilation.loading(on_phase)
    count = options.set_threads()  # before TVM is imported
    from calumma.measure import LocalRunner
    from calumma.prior import adaptation, zero_shot
    from calumma.search import check_strategy
    from calumma.tuner import known
    from calumma.tuner.contest import Contest
    from calumma.tuner.tuning_session import TuningSession

    check_strategy(strategy)
    target = options.measurable_target()
    with _store(database) as store, closing(LocalRunner(target, count)) as runner:
        prepared = compilation.prepared_model(model, options, on_phase, watch)
        runner.cache_state = prepared.cache_state
        contest = Contest(prepared)
        with prepared.phase("prior"):
            predictor, note = zero_shot.predictor_for(prepared, prior, measuring=True)
            views = {} if predictor is None else zero_shot.views(prepared, predictor)
            first = zero_shot.first_candidates(views)
            moving = adaptation.begin(predictor)
            prior_name = None if predictor is None else predictor.prior.name
        session = TuningSession(
            [(task, prepared.spaces[task.workload.hash]) for task in prepared.tasks],
            runner,
            store,
            budget,
            hardware=target.hardware,
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
                **known.conditions(prepared),
                "prior": prior_name,
            },
            progress=on_event,
            contest=contest,
            first=first,
            known=zero_shot.guides(views, moving),
        )
        result = session.run()
    note = adaptation.finish(moving, note)
    configs = {task.workload: task.config for task in result.tasks}
    latencies_s = {task.workload: task.latency_s for task in result.tasks if task.latency_s is not None}
    compiled = contest.compiled(configs, latencies_s, decided=result.contest is not None)
    compilation.save(compiled, prepared, destination)
    return tune_result(prepared, compiled, result, path=destination, prior=prior_name, note=note)


def tasks(
    model: Any,
    *,
    example_inputs: Sequence[Any] | None = None,
    shapes: Shapes | None = None,
    threads: int | None = None,
    mcpu: str | None = None,
    precision: str = FLOAT32.name,
) -> TaskListing:
    """List what would be tuned, without building or measuring anything.

    Args:
        model, example_inputs, shapes, threads, mcpu, precision: as for `compile`.

    Raises:
        InputError: the model or a setting cannot be used; says what to do.
    """
    prepared = compilation.prepared_model(
        model,
        CompileOptions(example_inputs=example_inputs, shapes=shapes, threads=threads, mcpu=mcpu, precision=precision),
    )
    return TaskListing(
        task_rows(prepared),
        prepared.graph.layout_transforms,
        prepared.limits.peak_flops / 1e9,
        prepared.graph.left,
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
    mcpu: str | None = None,
    families: Sequence[str] = (),
    exclude: Sequence[str] = (),
    exclude_models: Sequence[str | PathLike[str]] = (),
    configs: int | None = None,
    cache_state: str = "cold",
    on_progress: Callable[[CollectProgress], None] = lambda progress: None,
) -> CollectResult:
    """Measure configurations of many workloads, for prior knowledge to be learnt from.

    The same call with the same database goes on where the last one stopped. Ctrl-C ends the session early; whatever
    was measured is in the database. Long because this is the reference of its arguments.

    Args:
        models: ONNX files whose workloads are measured; without any, workloads are drawn from the distribution of the
            layers of published networks, without end.
        budget: seconds as a number or as text ("2h"), or seconds, trials or both as a `Budget`.
        database: where records go: a path, a URL, or an open store; the user's own by default.
        seed: decides which workloads and which of their configurations.
        threads: threads the kernels run on; all physical cores by default.
        mcpu: LLVM's name of the CPU to generate code for, one whose code runs here; the host by default.
        families: kinds of layers to draw (`calumma.prior.sampling.SHARES`); all of them by default.
        exclude: networks (`calumma.prior.networks`) whose layers are held out.
        exclude_models: ONNX files whose workloads are held out.
        configs: configurations of every workload, those of earlier sessions included; 24 by default.
        cache_state: "cold", as in a model whose weights exceed the caches, or "warm", as in a small one.
        on_progress: called after every batch, in this thread and on the budget's time.

    Raises:
        InputError: a setting, a model or the database cannot be used; says what to do.
    """
    check_seed(seed)
    limits = durations.budget(budget)
    options = CompileOptions(threads=threads, mcpu=mcpu)
    options.set_threads()  # before TVM is imported
    from calumma.prior import campaign
    from calumma.prior.collection import CollectSettings

    settings = CollectSettings() if configs is None else CollectSettings(configs=configs)
    wanted = campaign.Wanted(tuple(models), tuple(families), tuple(exclude), tuple(exclude_models))
    with _store(database) as store:
        return campaign.collect(wanted, options, store, limits, settings, seed, cache_state, on_progress)


def adapt(
    models: Sequence[str | PathLike[str]] = (),
    *,
    budget: Budget | float | str = DEFAULT_BUDGET,
    database: str | PathLike[str] | Store | None = None,
    seed: int = 0,
    threads: int | None = None,
    mcpu: str | None = None,
    prior: str = "auto",
    on_progress: Callable[[CollectProgress], None] = lambda progress: None,
) -> AdaptResult:
    """Move a prior to this CPU by a minute of measurements; `compile` and `tune` use it from then on.

    Args:
        models: ONNX files whose workloads are measured; without any, workloads are drawn as for `collect`.
        database: where records go; what it knows of this CPU already counts as well.
        prior: name or file of what is moved; "auto" for the newest.
        budget, seed, threads, mcpu, on_progress: as for `collect`.

    Raises:
        InputError: as for `collect`; or the prior was trained on this CPU, or too little could be measured.
    """
    check_seed(seed)
    limits = durations.budget(budget)
    options = CompileOptions(threads=threads, mcpu=mcpu)
    options.set_threads()  # before TVM is imported
    from calumma.prior import campaign

    with _store(database) as store:
        return campaign.adapt(campaign.Wanted(tuple(models)), options, store, limits, seed, prior, on_progress)


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
    """Train a prior on records of this and other CPUs; `compile` and `tune` use the newest one that fits.

    Args:
        databases: records: paths, URLs or open stores; the user's own by default.
        name: what the prior is called, or the .safetensors file to write; it goes to the user's data directory unless
            a file is named. A name made of date and time by default.
        data: a data set to learn from as well: a file, "shipped" for what calumma has, or "none".
        save_data: file to write all that was learnt from to.
        exclude: JSON file of workloads to leave out: lists of their hashes, by name of the network.
        seed: of the training: the same data and seed give the same weights on the same machine.
        say: called with a line about what is going on.

    Raises:
        InputError: a file cannot be used, or there is too little to learn from.
    """
    start = time.perf_counter()
    check_seed(seed)
    tvm_compat.load()
    from calumma.prior import dataset, learning, library, weights

    path = library.destination(name)
    if path.parent.is_dir():
        check_output(path, FileKind("a prior", weights.is_prior))
    if save_data is not None:
        check_output(Path(save_data), FileKind("a data set of calumma", archives.is_archive))
    left_out = learning.excluded(Path(exclude)) if exclude is not None else frozenset()

    def stores() -> Iterator[tuple[str, Store]]:
        for database in databases or (None,):
            with _store(database, create=False) as store:
                yield str(database or "your own database"), store

    learnt = learning.gather(stores(), data, tvm_compat.toolchain(), exclude=left_out, say=say)
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


def _phase_listener(on_event: Listener | None) -> Callable[[str], None]:
    """What to call with the name of a phase that begins."""
    from calumma.tuner.events import PhaseStarted

    return lambda name: None if on_event is None else on_event(PhaseStarted(name))


def _store(database: str | PathLike[str] | Store | None, create: bool = True) -> AbstractContextManager[Store]:
    """Open the store that the user named, to be closed again; a store that came open stays open."""
    from calumma.database import SqlStore

    if database is None or isinstance(database, (str, PathLike)):
        return SqlStore.open(Path(database) if isinstance(database, PathLike) else database, create=create)
    return nullcontext(database)
