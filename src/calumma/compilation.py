"""What `compile` does when its arguments are checked: a model becomes an artifact without any measurement."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.core.stopwatch import Stopwatch
from calumma.pipeline import CompiledModel, CompileOptions
from calumma.pipeline.artifact_cache import ArtifactRequest
from calumma.pipeline.compiled import compile_model
from calumma.results import CompileResult, task_rows

if TYPE_CHECKING:
    from calumma.core.protocols import Store
    from calumma.pipeline.preparation import PreparedModel
    from calumma.tuner.known import Known

OnPhase = Callable[[str], None]
"""Called with the name of every phase that begins."""


def unheard(name: str) -> None:
    """An `OnPhase` that does nothing."""


def compile_untuned(
    model: Any,
    options: CompileOptions,
    *,
    open_store: Callable[[], AbstractContextManager[Store]],
    prior: str,
    destination: Path | None,
    cache: bool,
    on_phase: OnPhase = unheard,
) -> CompileResult:
    """Compile a model from what is known, or write the artifact of an earlier call that knew the same.

    Args:
        model, prior: as for `api.compile`.
        options: what the model is compiled for.
        open_store: gives the records.
        destination: file to write, if any.
        cache: whether earlier calls' artifacts and kernels may be used, and this one's are kept.
        on_phase: called with the name of every phase that begins.

    Raises:
        InputError: the model, a setting, the records or the prior cannot be used; says what to do.
    """
    watch = loading(on_phase)
    from calumma.prior import places
    from calumma.tuner import known

    request = None
    with open_store() as store:
        if cache and destination is not None:
            on_phase("reuse")
            with watch.charge("reuse"):
                request = ArtifactRequest.of(model, options, places.digest(prior))
                found = request and request.copy(destination, lambda asked: known.look_up(store, asked).digest)
            if found:
                anew = functools.partial(compile_untuned, model, options, open_store=open_store, prior=prior)
                return CompileResult.from_json(
                    found,
                    path=destination,
                    phases_s=watch.phases_s,
                    build=lambda: anew(destination=None, cache=False).compiled,
                )
        prepared = prepared_model(model, options, on_phase, watch)
        asked = known.question(prepared)
        with prepared.phase("records"):
            told = known.look_up(store, asked)
    result = _compiled(prepared, told, prior, destination, cache)
    if request is not None and destination is not None:
        with prepared.phase("keep"):
            request.keep(destination, asked, told.digest, result.to_json())
    return result


def _compiled(prepared: PreparedModel, told: Known, prior: str, destination: Path | None, cache: bool) -> CompileResult:
    """Choose schedules for a prepared model, build it, and write it to a file, if any."""
    from calumma.pipeline.recorded import recorded_configs
    from calumma.prior import zero_shot

    recorded = {} if told.defaults_won else recorded_configs(prepared, told.records)
    with prepared.phase("prior"):
        predictor, note = zero_shot.predictor_for(prepared, prior)
        asked = None if told.defaults_won else predictor
        predicted = {} if asked is None else zero_shot.choices(prepared, asked, told.measured)
    compiled = compile_model(prepared, {**predicted, **recorded}, cache=cache)
    save(compiled, prepared, destination)
    return CompileResult(
        path=destination,
        phases_s=prepared.phases_s,
        import_s=prepared.import_s,
        build=lambda: compiled,
        tasks=task_rows(prepared),
        recorded=len(recorded),
        prior=None if predictor is None else predictor.prior.name,
        predicted=len(predicted),
        note=note,
    )


def loading(on_phase: OnPhase) -> Stopwatch:
    """Begin the phase "load": imports, and whatever else comes before the model."""
    on_phase("load")
    return Stopwatch(between="load")


def prepared_model(
    model: Any, options: CompileOptions, on_phase: OnPhase = unheard, watch: Stopwatch | None = None
) -> PreparedModel:
    """Prepare a model; `watch` knows the phases until now, and its phase "load" ends when TVM is imported."""
    before = watch or loading(on_phase)
    options.set_threads()  # before TVM is imported
    from calumma.pipeline.preparation import prepare

    phases_s = before.phases_s
    prepared = prepare(model, options, on_phase=on_phase)
    return replace(prepared, phases_s={**phases_s, **prepared.phases_s})


def save(compiled: CompiledModel, prepared: PreparedModel, destination: Path | None) -> None:
    """Write the artifact where the caller wants it, if anywhere."""
    if destination is not None:
        with prepared.phase("save"):
            compiled.save(destination)
