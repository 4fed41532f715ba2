"""`calumma tasks`: what would be tuned."""

from __future__ import annotations

from pathlib import Path

import click

from calumma.cli.options import Shapes, model_options, output_options
from calumma.cli.output import Output


@click.command(short_help="List what would be tuned: shapes, work, bounds, spaces.")
@model_options
@output_options
@click.pass_obj
def tasks(
    out: Output, model: Path, shapes: Shapes | None, threads: int | None, mcpu: str | None, precision: str
) -> None:
    """List the tasks of MODEL: its unique kernels, how often each runs, its work and the size of its design space.

    The bound is the least time the machine's peak and memory bandwidth allow for one call.
    """
    from calumma import api

    listing = api.tasks(model, shapes=shapes, threads=threads, mcpu=mcpu, precision=precision)
    out.table(
        ["task", "anchor", "output", "calls", "GFLOP", "MB", "flop/byte", "bound ms", "space"],
        [
            (
                row.name,
                row.anchor,
                "x".join(map(str, row.arguments[-1][0])),
                row.weight,
                row.gflop,
                row.megabytes,
                row.intensity,
                row.bound_ms,
                f"{row.space_size:,}",
            )
            for row in listing.rows
        ],
    )
    gflop = sum(row.weight * row.gflop for row in listing.rows)
    bound_ms = sum(row.weight * row.bound_ms for row in listing.rows)
    calls = sum(row.weight for row in listing.rows)
    out.line(f"\n{len(listing.rows)} tasks, {calls} calls, {gflop:.2f} GFLOP, bound {bound_ms:.2f} ms")
    out.line(f"layout transforms left: {listing.layout_transforms}")
    out.line(f"machine: {listing.machine}")
    out.document(
        {
            "model": model,
            "tasks": listing.rows,
            "layout_transforms": listing.layout_transforms,
            "peak_gflop_per_s": listing.peak_gflop_per_s,
            "import_s": listing.import_s,
            "total_gflop": gflop,
            "total_bound_ms": bound_ms,
        }
    )
