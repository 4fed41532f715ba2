"""`calumma compile`: a module from what is known already, nothing measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from calumma.cli.options import (
    Shapes,
    artifact_option,
    artifact_path,
    cache_option,
    database_option,
    force_option,
    model_options,
    output_options,
    prior_option,
    tolerance_option,
)
from calumma.cli.output import Output
from calumma.cli.progress import show_progress

if TYPE_CHECKING:
    from calumma.results import CompileResult


@click.command("compile", short_help="Build an artifact at once, without measuring anything.")
@model_options
@artifact_option
@force_option
@database_option
@prior_option
@tolerance_option
@cache_option
@output_options
@click.pass_obj
def compile_model(
    out: Output,
    model: Path,
    output: Path | None,
    force: bool,
    shapes: Shapes | None,
    threads: int | None,
    mcpu: str | None,
    database: str | None,
    prior: str,
    tolerance: float | None,
    precision: str,
    cache: bool,
) -> None:
    """Build an artifact from MODEL (an ONNX file) without measuring anything.

    Every kernel gets the best schedule recorded for it in the database, or what a prior predicts to be best, or a
    good default. A model that was compiled before, from the same file with the same options and records, is taken from
    the cache.
    """
    from calumma import api
    from calumma.core import process

    start_s = process.age_s()
    with show_progress(out) as on_event:
        result = api.compile(
            model,
            output=artifact_path(output, model),
            overwrite=force,
            shapes=shapes,
            threads=threads,
            mcpu=mcpu,
            database=database,
            prior=prior,
            tolerance=tolerance,
            precision=precision,
            cache=cache,
            on_event=on_event,
        )
    _show(out, model, result, start_s)


def _show(out: Output, model: Path, result: CompileResult, start_s: float) -> None:
    """Say what the time was spent on, and where the schedules come from."""
    from calumma.core import process

    phases_s = {"start": start_s, **result.phases_s}
    peak_bytes = process.peak_memory_bytes()
    out.table(["phase", "seconds"], [(name, round(seconds, 2)) for name, seconds in phases_s.items()])
    if result.note:
        out.status(result.note)
    sources = [f"{result.recorded} from the database"] if result.recorded else []
    if result.prior is not None:
        sources.append(f"{result.predicted} by prior {result.prior}")
    rest = len(result.tasks) - result.recorded - result.predicted
    sources.append(f"{rest} by default")
    where = f"{result.path}, as compiled before" if result.reused else result.path
    out.line(
        f"\n{len(result.tasks)} kernels in {where}: {', '.join(sources)}; {sum(phases_s.values()):.1f} s, "
        f"peak memory {peak_bytes / 1e6:,.0f} MB"
    )
    out.document(
        {
            "model": model,
            "artifact": result.path,
            "import_s": result.import_s,
            "phases_s": phases_s,
            "peak_memory_bytes": peak_bytes,
            "tasks": result.tasks,
            "recorded": result.recorded,
            "prior": result.prior,
            "predicted": result.predicted,
            "note": result.note,
            "reused": result.reused,
        }
    )
