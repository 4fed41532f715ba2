"""What a tuning session shows while it runs: a live table on a terminal, a line now and then elsewhere.

Both are drawn when an event arrives, never by a thread of their own: a thread that wakes up while a kernel is timed
would be part of the measurement.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from calumma.tuner import Event, SessionProgress

_REDRAW_S = 0.5
_LINE_S = 5.0
_FRAME_LINES = 9
"""Lines of the live view that are not tasks."""

Listener = Callable[["Event"], None]


@contextmanager
def tuning_progress(*, quiet: bool) -> Iterator[Listener | None]:
    """Yield what to call with every event of a session: it draws on stderr, so that stdout stays the result's."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _live_table() as listener:
            yield listener
    else:
        yield _Lines()


class _Lines:
    """One line every few seconds, and one for every change of phase."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, event: Event) -> None:
        progress = getattr(event, "progress", None)
        if progress is None:
            return
        phase = _phase(event)
        if phase is None and time.monotonic() - self._last < _LINE_S:
            return
        self._last = time.monotonic()
        click.echo(summary_line(progress) + (f"; {phase}" if phase else ""), err=True)


@contextmanager
def _live_table() -> Iterator[Listener]:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False) as live:
        last_drawn = float("-inf")
        phase = ""

        def listener(event: Event) -> None:
            nonlocal last_drawn, phase
            progress = getattr(event, "progress", None)
            if progress is None:
                return
            new_phase = _phase(event)
            phase = new_phase or phase
            if new_phase is None and time.monotonic() - last_drawn < _REDRAW_S:
                return
            last_drawn = time.monotonic()
            live.update(_view(progress, phase, max(3, console.height - _FRAME_LINES)), refresh=True)

        yield listener


def _phase(event: Event) -> str | None:
    """What begins with an event, for people; None where nothing new begins."""
    from calumma import tuner

    match event:
        case tuner.SessionStarted():
            text = f"session {event.session}: {len(event.progress.tasks)} tasks"
            if event.recalled:
                text += f", {event.recalled} configurations known from before"
            if event.unreadable:
                text += f", {event.unreadable} records of an older design space left out"
            return text
        case tuner.FinalCheckStarted():
            return f"checking the winners of {event.tasks} tasks against their defaults"
        case tuner.SessionFinished():
            return "finished" if not event.result.interrupted else "interrupted: keeping the best so far"
        case _:
            return None


def summary_line(progress: SessionProgress) -> str:
    """The footer of the table as one line of text."""
    failures = sum(task.failures for task in progress.tasks)
    parts = [f"{progress.elapsed_s:5.1f} s", f"{progress.trials} trials"]
    if progress.trials_left is not None:
        parts[-1] += f" ({progress.trials_left} left)"
    if progress.candidates_per_s is not None:
        parts.append(f"{progress.candidates_per_s:.1f}/s")
    if failures:
        parts.append(f"{failures} failed")
    if progress.default_latency_s:
        parts.append(f"tasks {progress.latency_s * 1e3:.2f} ms (defaults {progress.default_latency_s * 1e3:.2f})")
    left_s = progress.eta_s if progress.seconds_left is None else progress.seconds_left
    if left_s is not None:
        parts.append(f"{left_s:.0f} s left")
    return ", ".join(parts)


def _view(progress: SessionProgress, phase: str, rows: int) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", overflow="ellipsis", no_wrap=True, max_width=44)
    for name in ("calls", "best ms", "default", "roofline", "trials", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    # The tasks that take the most of the model's time; those not measured yet come last.
    heaviest = sorted(progress.tasks, key=lambda task: task.weight * (task.latency_s or 0.0), reverse=True)
    for task in heaviest[:rows]:
        share = task.roofline_share
        table.add_row(
            task.name,
            str(task.weight),
            _ms(task.latency_s),
            _ms(task.default_latency_s),
            "" if share is None else Text(f"{share:.0%}", style=_colour(share)),
            str(task.trials),
            Text(str(task.failures), style="red") if task.failures else "",
            Text(task.status, style="green" if task.status == "near bound" else ""),
        )
    parts: list[RenderableType] = [table]
    if len(heaviest) > rows:
        parts.append(Text(f"and {len(heaviest) - rows} lighter tasks", style="dim"))
    if progress.seconds_left is not None:
        total = progress.elapsed_s + progress.seconds_left
        parts.append(Padding(ProgressBar(total=total, completed=progress.elapsed_s, width=60)))
    parts.append(Text(summary_line(progress)))
    if phase:
        parts.append(Text(phase, style="bold"))
    return Group(*parts)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3f}"


def _colour(share: float) -> str:
    return "green" if share >= 0.9 else "yellow" if share >= 0.6 else "red"
