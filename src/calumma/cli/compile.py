"""`calumma compile`: a module from what is known already, nothing measured."""

from __future__ import annotations

from pathlib import Path

import click

from calumma.cli.options import (
    Shapes,
    artifact_option,
    artifact_path,
    database_option,
    force_option,
    model_options,
    output_options,
    prior_option,
    tolerance_option,
)
from calumma.cli.output import Output
from calumma.cli.progress import show_progress


@click.command("compile", short_help="Build an artifact at once, without measuring anything.")
@model_options
@artifact_option
@force_option
@database_option
@prior_option
@tolerance_option
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
) -> None:
    """Build an artifact from MODEL (an ONNX file) without measuring anything.

    Every kernel gets the best schedule recorded for it in the database, or what a prior predicts to be best, or a
    good default.
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
            on_event=on_event,
        )
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
    out.line(
        f"\n{len(result.tasks)} kernels in {result.path}: {', '.join(sources)}; {sum(phases_s.values()):.1f} s, "
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
        }
    )
