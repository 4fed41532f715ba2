"""Seconds of `calumma compile` for one model of the suite: on a machine that knows nothing, and once more.

Every run is a process of its own with an empty database. A cold one has an empty cache directory, so that it also
measures the limits of the machine; the warm one after it finds there what the cold one left. Python's own cache of
compiled modules is warm in both: one run more comes first and is not counted.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import commands, output, suite


@dataclass(frozen=True)
class AgainRow:
    """Runs of one kind: medians."""

    model: str
    kind: str
    """"cold" or "again"."""
    runs: int
    seconds: float
    """Of the command, from its start to its end."""
    seconds_least: float
    seconds_most: float
    phases_s: dict[str, float]
    """Seconds by phase; "exit" is what is left of the command's: the end of its process."""
    peak_memory_mb: float


@dataclass(frozen=True)
class _Run:
    seconds: float
    phases_s: dict[str, float]
    peak_memory_bytes: float


def measure(model: str, runs: int, threads: int) -> list[AgainRow]:
    """Compile a model of the suite cold and again, `runs` times each in turns. Raises InputError if a command fails."""
    path = suite.path(model)
    cold: list[_Run] = []
    again: list[_Run] = []
    for _ in range(runs + 1):
        with tempfile.TemporaryDirectory(prefix="calumma-compile-again-") as folder:
            cold.append(_run(path, Path(folder), threads))
            again.append(_run(path, Path(folder), threads))
    return [_row(model, kind, found[1:]) for kind, found in (("cold", cold), ("again", again))]


def _run(model: Path, folder: Path, threads: int) -> _Run:
    places = {"CALUMMA_CACHE": str(folder / "cache"), "XDG_CACHE_HOME": str(folder)}
    start = time.perf_counter()
    result = commands.calumma(
        "compile",
        model,
        *("-o", folder / "model.so", "--db", folder / "records.sqlite", "--threads", threads),
        needs=("phases_s", "peak_memory_bytes"),
        environment={**places, "PYTHONDONTWRITEBYTECODE": ""},
    )
    seconds = time.perf_counter() - start
    phases_s = result["phases_s"]
    return _Run(seconds, {**phases_s, "exit": seconds - sum(phases_s.values())}, result["peak_memory_bytes"])


def _row(model: str, kind: str, runs: list[_Run]) -> AgainRow:
    seconds = [run.seconds for run in runs]
    return AgainRow(
        model,
        kind,
        len(runs),
        median(seconds),
        min(seconds),
        max(seconds),
        {phase: median(run.phases_s[phase] for run in runs) for phase in runs[0].phases_s},
        median(run.peak_memory_bytes for run in runs) / 1e6,
    )


def table(rows: list[AgainRow]) -> str:
    """The table to print: a line for every phase."""
    phases = list(dict.fromkeys(phase for row in rows for phase in row.phases_s))
    cells = [[phase, *(_seconds(row.phases_s.get(phase)) for row in rows)] for phase in phases]
    cells.append(["all", *(_seconds(row.seconds) for row in rows)])
    cells.append(["least to most", *(f"{row.seconds_least:.2f} to {row.seconds_most:.2f}" for row in rows)])
    cells.append(["peak memory, MB", *(f"{row.peak_memory_mb:,.0f}" for row in rows)])
    return output.markdown(["seconds", *(f"{row.model}, {row.kind}" for row in rows)], cells)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def metrics(rows: list[AgainRow]) -> dict[str, float]:
    """`compile_s_MODEL`, `compile_s_again`, and the peak of memory of both."""
    names = {"cold": rows[0].model, "again": "again"}
    seconds = {f"compile_s_{names[row.kind]}": row.seconds for row in rows}
    return {**seconds, **{f"peak_memory_mb_{names[row.kind]}": row.peak_memory_mb for row in rows}}
