"""What `tune` and `compile` show while they run: a live table on a terminal, a line now and then elsewhere.

Both are drawn when an event arrives, never by a thread of their own: a thread that wakes up while a kernel is timed
would be part of the measurement.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import click

from calumma.cli.output import STDOUT, Output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from calumma.prior.collection import CollectProgress
    from calumma.tuner import Event, Listener, SessionProgress, TaskProgress

_REDRAW_S = 0.5
_LINE_S = 5.0
_FRAME_LINES = 7
"""Lines of the live view that are not tasks, and one for the cursor."""

_PHASES = {
    "load": "loading TVM",
    "reuse": "looking for what was compiled before",
    "import": "importing the model",
    "lower": "lowering it to kernels",
    "spaces": "making design spaces",
    "roofline": "probing the machine's limits",
    "build": "generating code",
    "save": "writing the artifact",
}
"""Phase -> what people read; the others take no time to speak of."""


@contextmanager
def show_progress(out: Output) -> Iterator[Listener]:
    """Yield what to call with every event; it draws on stderr, so that stdout stays the result's."""
    if out.quiet:
        yield lambda event: None
    elif can_redraw() and not (out.json == STDOUT and sys.stdout.isatty()):
        with _live_table() as listener:
            yield listener
    else:
        yield _Lines()


def can_redraw() -> bool:
    """Whether stderr is a terminal that a live view can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class _Lines:
    """One line every few seconds, and one for whatever begins."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, event: Event) -> None:
        begins = _begins(event)
        if begins is None and time.monotonic() - self._last < _LINE_S:
            return
        progress: SessionProgress | None = getattr(event, "progress", None)
        parts = [] if progress is None else summary(progress)
        if begins:
            parts = [", ".join(parts) + "; " + begins] if parts else [begins]
        if parts:
            self._last = time.monotonic()
            click.echo(", ".join(parts), err=True)


@contextmanager
def _live_table() -> Iterator[Listener]:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    progress: SessionProgress | None = None
    begun = ""
    last_drawn = float("-inf")

    # What goes to stdout is the result and stays out of this; warnings on stderr come to stand above the table.
    with Live(console=console, auto_refresh=False, redirect_stdout=False, transient=True) as live:

        def listener(event: Event) -> None:
            nonlocal progress, begun, last_drawn
            progress = getattr(event, "progress", progress)
            begins = _begins(event)
            if begins is None and time.monotonic() - last_drawn < _REDRAW_S:
                return
            begun = begins or begun
            last_drawn = time.monotonic()
            live.update(_view(progress, begun, *console.size), refresh=True)

        yield listener
    if progress is not None:
        click.echo(", ".join(summary(progress)), err=True)


def _begins(event: Event) -> str | None:
    """What begins with an event, for people; None where nothing new begins."""
    from calumma import tuner

    match event:
        case tuner.PhaseStarted():
            return _PHASES.get(event.phase)
        case tuner.SessionStarted():
            text = f"session {event.session}: {len(event.progress.tasks)} tasks"
            if event.recalled:
                text += f", {event.recalled} configurations known from before"
            if event.unreadable:
                text += f", {event.unreadable} records outside of the design spaces left out"
            return text
        case tuner.FinalCheckStarted():
            winners = "the winner of 1 task" if event.tasks == 1 else f"the winners of {event.tasks} tasks"
            return f"checking {winners} against the default"
        case tuner.SessionFinished():
            return "finished" if not event.result.interrupted else "interrupted: keeping the best so far"
        case _:
            return None


def summary(progress: SessionProgress) -> list[str]:
    """What is said of the whole session, most telling first."""
    parts = [f"{progress.elapsed_s:.1f} s", f"{progress.trials} trials", *pace(progress)]
    # Only tasks of which both are known: the two sums are there to be compared.
    known = [(task.weight, task.latency_s, task.default_latency_s) for task in progress.tasks]
    sums = [(weight * best, weight * default) for weight, best, default in known if best and default]
    if sums:
        best_s, default_s = (sum(values) for values in zip(*sums, strict=True))
        parts.append(f"tasks {best_s * 1e3:.2f} ms (defaults {default_s * 1e3:.2f})")
    failures = sum(task.failures for task in progress.tasks)
    if failures:
        parts.append(f"{failures} failed")
    return parts


def pace(progress: SessionProgress | CollectProgress) -> list[str]:
    """How fast candidates are measured, and what is left of the budget."""
    parts = []
    if progress.candidates_per_s is not None:
        parts.append(f"{progress.candidates_per_s:.1f}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.trials_left is not None:
        eta = "" if progress.eta_s is None else f" (about {duration(progress.eta_s)})"
        parts.append(f"{progress.trials_left} trials left{eta}")
    return parts


def duration(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class _Column(NamedTuple):
    name: str
    width: int
    needs: int
    """Columns the terminal must have for this one to be shown."""
    value: Callable[[TaskProgress], str]


_NAME_WIDTH = 40
_GAP = 2
_COLUMNS = (
    _Column("calls", 5, 78, lambda task: str(task.weight)),
    _Column("best ms", 8, 0, lambda task: _ms(task.latency_s)),
    _Column("default", 8, 100, lambda task: _ms(task.default_latency_s)),
    _Column("speedup", 7, 72, lambda task: _speedup(task)),
    _Column("roofline", 8, 0, lambda task: "" if task.roofline_share is None else f"{task.roofline_share:.0%}"),
    _Column("trials", 6, 46, lambda task: str(task.trials)),
    _Column("failed", 6, 90, lambda task: str(task.failures or "")),
    _Column("status", 10, 56, lambda task: task.status),
)


def _view(progress: SessionProgress | None, begun: str, width: int, height: int) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    last = Text(begun, style="bold", no_wrap=True, overflow="ellipsis")
    if progress is None:
        return last
    # By the time before tuning: rows keep their places while their latencies fall.
    tasks = sorted(progress.tasks, key=_initial_s, reverse=True)
    rows = max(3, height - _FRAME_LINES)
    parts: list[RenderableType] = [_table(tasks[:rows], width)]
    if len(tasks) > rows:
        parts.append(Text(_rest(tasks[rows:]), style="dim", no_wrap=True, overflow="ellipsis"))
    done = _share_done(progress)
    if done is not None:
        parts.append(Padding(ProgressBar(total=1.0, completed=done, width=min(60, width))))
    parts += [*_lines(summary(progress), width), last]
    return Group(*parts)


def _table(tasks: Sequence[TaskProgress], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    columns = [column for column in _COLUMNS if column.needs <= width]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    name_width = min(_NAME_WIDTH, width - sum(column.width + _GAP for column in columns))
    table.add_column("task", width=max(8, name_width), no_wrap=True, overflow="ellipsis")
    for column in columns:
        justify = "left" if column.name == "status" else "right"
        table.add_column(column.name, width=column.width, no_wrap=True, justify=justify)  # type: ignore[arg-type]
    for task in tasks:
        table.add_row(task.name, *(Text(column.value(task), style=_style(column.name, task)) for column in columns))
    return table


def _style(column: str, task: TaskProgress) -> str:
    share = task.roofline_share
    if column == "roofline" and share is not None:
        return "green" if share >= 0.9 else "yellow" if share >= 0.6 else "red"
    if (column, task.status) == ("status", "near bound"):
        return "green"
    return "red" if column == "failed" or (column, task.status) == ("status", "failing") else ""


def _initial_s(task: TaskProgress) -> float:
    """Seconds of the model's time before tuning: measured, or by the bound while that is all there is."""
    return task.weight * (task.default_latency_s or task.latency_s or task.bound_s or 0.0)


def _rest(tasks: Sequence[TaskProgress]) -> str:
    """One line for the tasks that have no room."""
    statuses = ", ".join(f"{n} {status}" for status, n in Counter(task.status for task in tasks).most_common())
    latency_ms = sum(task.weight * (task.latency_s or 0.0) for task in tasks) * 1e3
    return (
        f"and {len(tasks)} lighter tasks: {latency_ms:.3f} ms, {sum(task.trials for task in tasks)} trials, {statuses}"
    )


def _share_done(progress: SessionProgress) -> float | None:
    """The part of the budget that is spent, by whichever limit is nearer."""
    shares = []
    if progress.seconds_left is not None:
        shares.append(progress.elapsed_s / (progress.elapsed_s + progress.seconds_left or 1.0))
    if progress.trials_left is not None:
        shares.append(progress.trials / (progress.trials + progress.trials_left or 1))
    return max(shares, default=None)


def _lines(parts: Sequence[str], width: int) -> list[Text]:
    """Two lines, always: a frame that keeps its height does not jump."""
    from rich.text import Text

    first = len(parts)
    while first > 1 and len(", ".join(parts[:first])) > width:
        first -= 1
    return [Text(", ".join(part), no_wrap=True, overflow="ellipsis") for part in (parts[:first], parts[first:])]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3f}"


def _speedup(task: TaskProgress) -> str:
    return f"{task.default_latency_s / task.latency_s:.2f}x" if task.default_latency_s and task.latency_s else ""
