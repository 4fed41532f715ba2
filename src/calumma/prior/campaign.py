"""Measuring on this machine what is learnt from: for hours, or for the minute that moves another CPU's prior here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import Store
from calumma.core.values import Budget
from calumma.measure import LocalRunner
from calumma.pipeline import CompileOptions
from calumma.prior import adaptation, dataset, library, workloads
from calumma.prior.collection import RUN_TIMEOUT_S, Collection, CollectProgress, CollectResult, CollectSettings
from calumma.prior.sampling import SHARES
from calumma.prior.weights import Prior
from calumma.prior.workloads import TrainingWorkload
from calumma.target import Target

COLD = "cold"
"""Weights have usually left the caches when a kernel's turn comes again."""
BRIEF = CollectSettings(configs=8, finalists=0)
"""Of each workload while a prior is moved: many workloads say more of a CPU than one known well."""
Models = tuple[str | PathLike[str], ...]


@dataclass(frozen=True)
class Wanted:
    """Which workloads are measured."""

    models: Models = ()
    """ONNX files; without any, workloads are drawn."""
    families: tuple[str, ...] = ()
    """Kinds of layers to draw; all without any."""
    exclude: tuple[str, ...] = ()
    """Published networks whose layers are held out."""
    exclude_models: Models = ()
    """ONNX files whose workloads are held out."""

    def stream(self, target: Target, seed: int) -> Iterator[TrainingWorkload]:
        """The workloads, in order. Raises InputError for what does not exist or go together."""
        if self.models and (self.families or self.exclude):
            raise InputError("families and excluded networks belong to drawn workloads: leave them out, or the models")
        held_out = [w.task.workload.hash for w in workloads.model_workloads(self.exclude_models, target)]
        if self.models:
            return workloads.model_workloads(self.models, target, exclude_hashes=held_out)
        return workloads.drawn_workloads(
            target,
            seed=seed,
            families=self.families or tuple(SHARES),
            exclude=self.exclude,
            exclude_hashes=held_out,
        )


@dataclass(frozen=True, kw_only=True)
class AdaptResult:
    """A prior that measurements moved to a CPU."""

    prior: Prior = field(repr=False)
    base: str
    """Name of what was moved."""
    path: Path
    """Where it was saved."""
    collected: CollectResult
    """How measuring ended."""


def collect(
    wanted: Wanted,
    options: CompileOptions,
    store: Store,
    budget: Budget,
    settings: CollectSettings,
    seed: int,
    cache_state: str,
    on_progress: Callable[[CollectProgress], None],
) -> CollectResult:
    """Measure workloads on this machine; arguments as for `calumma.api.collect`."""
    count, target = options.set_threads(), options.measurable_target()
    stream = wanted.stream(target, seed)
    with closing(LocalRunner(target, count, cache_state=cache_state, run_timeout_s=RUN_TIMEOUT_S)) as runner:
        collection = Collection(
            stream,
            runner,
            store,
            budget,
            target=target,
            toolchain=tvm_compat.toolchain(),
            settings=settings,
            seed=seed,
            options={
                "models": [Path(model).name for model in wanted.models],
                "families": list(wanted.families),
                "exclude": list(wanted.exclude),
                "exclude_models": [Path(model).name for model in wanted.exclude_models],
                "configs": settings.configs,
                "budget_s": budget.seconds,
                "trials": budget.trials,
                "threads": count,
                "cache_state": cache_state,
                "mcpu": target.mcpu,
            },
            progress=on_progress,
        )
        return collection.run()


def adapt(
    wanted: Wanted,
    options: CompileOptions,
    store: Store,
    budget: Budget,
    seed: int,
    name: str,
    on_progress: Callable[[CollectProgress], None],
) -> AdaptResult:
    """Measure on this machine and move a prior to it; arguments as for `calumma.api.adapt`."""
    count, hardware = options.set_threads(), options.measurable_target().hardware
    if name == library.AUTO:
        name = next((entry.name for entry in library.entries() if entry.origin != library.MOVED), "")
        if not name:
            raise InputError("no prior is installed that could be moved: calumma collect, then calumma learn make one")
    base = library.find(name)
    if base.moved_to:
        raise InputError(f"prior {base.name} has been moved before: name the one that it was")
    if base.limits(hardware, count) is not None:
        raise InputError(
            f"prior {base.name} was trained on this CPU with {count} threads: there is nothing to move; calumma learn "
            "adds your own records to what it knows"
        )
    collected = collect(wanted, options, store, budget, BRIEF, seed, COLD, on_progress)
    toolchain = tvm_compat.toolchain()
    records = store.records(hardware=hardware.fingerprint, threads=count, toolchain=toolchain)
    data = dataset.from_records(records, toolchain=toolchain)
    moved = adaptation.by_records(base, data, count)
    if moved is None:
        raise InputError(
            f"nothing was measured that prior {base.name} knows the templates of: give a longer --budget, or other "
            "models"
        )
    return AdaptResult(prior=moved, base=base.name, path=adaptation.keep(moved), collected=collected)
