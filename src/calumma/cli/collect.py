"""`calumma collect`: measurements to learn prior knowledge from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calumma.cli.options import EXISTING_FILE, Duration, database_option, output_options, seed_option
from calumma.cli.output import INTERRUPTED, STDOUT, Output, table_lines
from calumma.cli.progress import can_redraw, pace

if TYPE_CHECKING:
    from calumma.prior.collection import CollectProgress

_DEFAULT_BUDGET_S = 600.0
_REDRAW_S = 0.5
_LINE_S = 10.0


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if value else ()


@click.command(short_help="Measure many workloads, for prior knowledge to be learnt from.")
@click.argument("models", type=EXISTING_FILE, nargs=-1, metavar="[MODEL]...")
@click.option(
    "--budget",
    type=Duration(),
    metavar="10m",
    help="Time for measuring: 60s, 10m, 2h. [10m, or no limit when --trials is given]",
)
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="Measure at most N candidates.")
@click.option(
    "--configs",
    type=click.IntRange(min=1),
    metavar="N",
    default=24,
    show_default=True,
    help="Configurations of every workload, those measured before included.",
)
@click.option("--families", callback=_names, metavar="NAME,...", help="Kinds of layers to draw. [all]")
@click.option("--exclude", callback=_names, metavar="NETWORK,...", help="Published networks whose layers are held out.")
@click.option(
    "--exclude-model",
    "exclude_models",
    type=EXISTING_FILE,
    multiple=True,
    metavar="MODEL",
    help="An ONNX file whose workloads are held out; once for every file.",
)
@seed_option("the workloads and of their configurations")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads the kernels run on. [all physical cores]"
)
@click.option(
    "--mcpu", metavar="CPU", help="CPU to generate code for, by LLVM's name; its code has to run here. [this machine's]"
)
@click.option(
    "--cache-state",
    type=click.Choice(["cold", "warm"]),
    default="cold",
    show_default=True,
    help="Where weights are before a kernel runs: in memory, or in the cache as in a small model.",
)
@database_option
@output_options
@click.pass_obj
def collect(
    out: Output,
    models: tuple[Path, ...],
    budget: float | None,
    trials: int | None,
    configs: int,
    families: tuple[str, ...],
    exclude: tuple[str, ...],
    exclude_models: tuple[Path, ...],
    seed: int,
    threads: int | None,
    mcpu: str | None,
    cache_state: str,
    database: str | None,
) -> int | None:
    """Measure configurations of many workloads, for `calumma learn` to make prior knowledge of.

    Without a MODEL, workloads are drawn from the distribution of the layers of published networks, new shapes that no
    network has among them; with MODELs (ONNX files) they are those of your own models. Of each workload some
    configurations are random and some come from a short search. Everything measured goes to the database: the same
    command again goes on where this one ended, however it ended.
    """
    from calumma import api
    from calumma.core.values import Budget

    if budget is None and trials is None:
        budget = _DEFAULT_BUDGET_S
    with show_progress(out) as show:
        result = api.collect(
            models,
            budget=Budget(seconds=budget, trials=trials),
            database=database,
            seed=seed,
            threads=threads,
            mcpu=mcpu,
            families=families,
            exclude=exclude,
            exclude_models=exclude_models,
            configs=configs,
            cache_state=cache_state,
            on_progress=show,
        )
    progress = result.progress
    out.table(*_rows(progress))
    out.line(f"\n{', '.join(_summary(progress))}; session {result.session}")
    if result.exhausted:
        out.line("nothing is left to measure: give more --configs, or other models")
    if result.interrupted:
        out.line("interrupted: the same command goes on from here")
    out.document(
        {
            **_document(progress),
            "session": result.session,
            "statuses": result.statuses,
            "interrupted": result.interrupted,
            "exhausted": result.exhausted,
        }
    )
    return INTERRUPTED if result.interrupted else None


@contextmanager
def show_progress(out: Output) -> Iterator[Callable[[CollectProgress], None]]:
    """What to call with the progress: a live table on a terminal, a line now and then elsewhere; both on stderr."""
    live = can_redraw() and out.json != STDOUT
    last_s = float("-inf")

    def due(progress: CollectProgress) -> bool:
        nonlocal last_s
        out.event({"event": "progress", **_document(progress)})
        if out.quiet or time.monotonic() - last_s < (_REDRAW_S if live else _LINE_S):
            return False
        last_s = time.monotonic()
        return True

    if out.quiet or not live:

        def line(progress: CollectProgress) -> None:
            if due(progress):
                click.echo(", ".join(_summary(progress)), err=True)

        yield line
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, redirect_stdout=False, transient=True) as view:

        def draw(progress: CollectProgress) -> None:
            if due(progress):
                lines = [*table_lines(*_rows(progress), console.width), "", ", ".join(_summary(progress))]
                view.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

        yield draw


def _rows(progress: CollectProgress) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """The table: one row for each family of layers, or for each model."""
    columns = ("workloads of", "finished", "trials", "failed")
    return columns, [(f.family, f.workloads, f.trials, f.failures) for f in progress.families]


def _summary(progress: CollectProgress) -> list[str]:
    parts = [f"{progress.elapsed_s:.0f} s", f"{progress.workloads} workloads finished", f"{progress.trials} trials"]
    if progress.recalled:
        parts.append(f"{progress.recalled} known from before")
    parts += pace(progress)
    if progress.failures:
        parts.append(f"{progress.failures} failed")
    return parts


def _document(progress: CollectProgress) -> dict[str, Any]:
    """The progress as JSON values."""
    return {
        "workloads": progress.workloads,
        "trials": progress.trials,
        "failures": progress.failures,
        "recalled": progress.recalled,
        "elapsed_s": progress.elapsed_s,
        "seconds_left": progress.seconds_left,
        "trials_left": progress.trials_left,
        "candidates_per_s": progress.candidates_per_s,
        "families": progress.families,
    }
