"""`calumma tasks`: what would be tuned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calumma.cli.options import Shapes, model_options, output_options
from calumma.cli.output import Output

if TYPE_CHECKING:
    from calumma.lowering.lowering import LeftToTvm


@click.command(short_help="List what would be tuned: shapes, work, bounds, spaces.")
@click.option("--explain", is_flag=True, help="Name the operators that TVM lowers, and why no rule of calumma does.")
@model_options
@output_options
@click.pass_obj
def tasks(
    out: Output,
    model: Path,
    shapes: Shapes | None,
    threads: int | None,
    mcpu: str | None,
    precision: str,
    explain: bool,
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
    if explain:
        _explain(out, listing.left_to_tvm)
    out.document(
        {
            "model": model,
            "tasks": listing.rows,
            "layout_transforms": listing.layout_transforms,
            "left_to_tvm": listing.left_to_tvm,
            "peak_gflop_per_s": listing.peak_gflop_per_s,
            "import_s": listing.import_s,
            "total_gflop": gflop,
            "total_bound_ms": bound_ms,
        }
    )


def _explain(out: Output, left: Sequence[LeftToTvm]) -> None:
    """Print which nodes TVM lowers, and why."""
    if not left:
        out.line("\nevery operator is lowered by a rule of calumma")
        return
    out.line("\nlowered by TVM:")
    none = "calumma has no rule for this operator"
    out.table(
        ["node", "operator", "why"], [(node.node, node.operator, "; ".join(node.reasons) or none) for node in left]
    )
