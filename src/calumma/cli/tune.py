"""`calumma tune`: a module from measurements, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calumma.cli.options import (
    Duration,
    Shapes,
    artifact_option,
    artifact_path,
    database_option,
    force_option,
    model_options,
    output_options,
    prior_option,
    seed_option,
    tolerance_option,
)
from calumma.cli.output import INTERRUPTED, Output
from calumma.cli.progress import show_progress

if TYPE_CHECKING:
    from calumma.results import TuneResult
    from calumma.tuner import Event, TaskResult

_DEFAULT_BUDGET_S = 60.0


@click.command(short_help="Measure within a budget and build an artifact of what wins.")
@model_options
@artifact_option
@force_option
@click.option(
    "--budget",
    type=Duration(),
    metavar="60s",
    help="Time for tuning: 60, 60s, 2m, 1h. [60s, or no limit when --trials is given]",
)
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="Measure at most N candidates.")
@click.option("--strategy", default="evolutionary", show_default=True, metavar="NAME", help="How to search.")
@seed_option("the search")
@database_option
@prior_option
@tolerance_option
@output_options
@click.pass_obj
def tune(
    out: Output,
    model: Path,
    output: Path | None,
    force: bool,
    budget: float | None,
    trials: int | None,
    strategy: str,
    seed: int,
    database: str | None,
    prior: str,
    tolerance: float | None,
    precision: str,
    shapes: Shapes | None,
    threads: int | None,
    mcpu: str | None,
) -> int | None:
    """Tune MODEL (an ONNX file) and build an artifact of what wins.

    Whichever of --budget and --trials comes first ends the session; it ends early when every kernel is near what the
    machine can do. A schedule is kept only where it computes the right result and is faster than the default.
    Everything measured goes to the database: the same command again goes on from there.
    Ctrl-C ends with the best so far.
    """
    from calumma import api, tuner
    from calumma.core.values import Budget

    if budget is None and trials is None:
        budget = _DEFAULT_BUDGET_S
    with show_progress(out) as show:

        def on_event(event: Event) -> None:
            out.event(tuner.to_json(event))
            show(event)

        result = api.tune(
            model,
            output=artifact_path(output, model),
            overwrite=force,
            budget=Budget(seconds=budget, trials=trials),
            strategy=strategy,
            database=database,
            prior=prior,
            tolerance=tolerance,
            precision=precision,
            seed=seed,
            shapes=shapes,
            threads=threads,
            mcpu=mcpu,
            on_event=on_event,
        )
    _show(out, model, result)
    return INTERRUPTED if result.interrupted else None


def _show(out: Output, model: Path, result: TuneResult) -> None:
    """Say what was decided for every task, and for the model as a whole."""
    if result.note:
        out.status(result.note)
    _show_tasks(out, result.tasks)
    for task in result.tasks:
        if task.latency_s is None and task.last_failure:
            out.line(f"{task.name}: nothing could be measured, the default is used; last: {task.last_failure}")
    tuned_s, default_s = (
        sum(task.weight * (getattr(task, which) or 0.0) for task in result.tasks)
        for which in ("latency_s", "default_latency_s")
    )
    out.line(f"\nsum of tasks {tuned_s * 1e3:.3f} ms, by default {default_s * 1e3:.3f} ms; session {result.session}")
    if result.contest is not None:
        contest, kept = result.contest, "tuned" if result.contest.tuned_wins else "default"
        out.line(
            f"whole model {contest.tuned_s * 1e3:.3f} ms tuned, {contest.default_s * 1e3:.3f} ms by default "
            f"(ratio {contest.ratio:.3f} over {contest.rounds} rounds): the {kept} schedules are used"
        )
    out.line(f"artifact: {result.path}" + ("; interrupted: this is the best so far" if result.interrupted else ""))
    out.document(
        {
            "model": model,
            "artifact": result.path,
            "session": result.session,
            "interrupted": result.interrupted,
            "latency_s": tuned_s,
            "default_latency_s": default_s,
            "import_s": result.import_s,
            "phases_s": result.phases_s,
            "contest": result.contest,
            "prior": result.prior,
            "note": result.note,
            "tasks": result.tasks,
        }
    )


def _show_tasks(out: Output, tasks: Sequence[TaskResult]) -> None:
    """One row a task, those with most of the model's time first."""
    out.table(
        ["task", "calls", "best ms", "default ms", "speedup", "roofline", "trials", "failed"],
        [
            (
                task.name,
                task.weight,
                None if task.latency_s is None else task.latency_s * 1e3,
                None if task.default_latency_s is None else task.default_latency_s * 1e3,
                f"{task.default_latency_s / task.latency_s:.2f}x"
                if task.latency_s and task.default_latency_s
                else None,
                None if task.roofline_share is None else f"{task.roofline_share:.0%}",
                task.trials,
                sum(task.failures.values()),
            )
            for task in sorted(tasks, key=lambda task: task.weight * (task.latency_s or 0.0), reverse=True)
        ],
    )
