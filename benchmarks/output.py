"""What every benchmark reports: metrics, rows and environment, as JSON and as a table."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calumma.core import hardware
from calumma.core.errors import CalummaError, InputError

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "calumma",
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "torch",
    "xgboost-cpu",
)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--quick", action="store_true", help="finish within a minute, on less")
    options.add_argument("--json", type=Path, metavar="FILE", help="write metrics, rows and environment")
    options.add_argument("--threads", type=int, default=hardware.physical_cores(), help="of every runtime")
    return options


def check_models(chosen: Iterable[str], known: Sequence[str], option: str = "--models") -> None:
    """Raise InputError for the first name that an option has and that is not one of a benchmark's models."""
    for name in chosen:
        if name not in known:
            raise InputError(f"{option} {name}: not of this benchmark: {', '.join(known)}")


def exit_status(run: Callable[[], int]) -> int:
    """Run a benchmark; returns its exit status, that of a known error after its one line, or 130 after Ctrl-C."""
    try:
        return run()
    except CalummaError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def environment(threads: int) -> dict[str, Any]:
    """Versions, CPU, threads, commit, date, and the load of the machine (other work on it makes times worthless)."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "cpu": hardware.cpu_info().get("model name", platform.processor()),
        "cores": hardware.physical_cores(),
        "threads": threads,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }


def commit(tree: Path = ROOT) -> str | None:
    """The commit of the sources in a tree, with "-dirty" after it if they differ from it; None outside a repository."""
    try:
        done = subprocess.run(  # nosec B607  # whichever git the user's own PATH has is the right one
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            cwd=tree,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(
    path: Path,
    metrics: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    surroundings: Mapping[str, Any],
    **more: object,
) -> None:
    """Write a benchmark's JSON, atomically; numbers that are not finite become null.

    Args:
        path: the file.
        metrics: flat, name -> number; the names stay stable.
        rows: the table.
        surroundings: result of `environment`.
        more: further top-level entries.
    """
    document = {"metrics": metrics, "rows": rows, "environment": surroundings, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as partial:
        json.dump(_finite(document), partial, indent=2, allow_nan=False)
        partial.write("\n")
    os.replace(partial.name, path)


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote. Raises InputError."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not the JSON of a benchmark ({error}): remove it, or name another file") from error
    if not isinstance(document, dict) or not {"metrics", "rows", "environment"} <= document.keys():
        raise InputError(f"{path}: not the JSON of a benchmark (no metrics, rows, environment): name another file")
    return document


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as text too; the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]

    def layout(line: Sequence[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(cells)} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|"
    return "\n".join([layout(columns), rule, *map(layout, rows)])


def number(value: float | None, factor: float, form: str) -> str:
    """A cell of a table: the product in a format, or "n/a" for None."""
    return "n/a" if value is None else format(value * factor, form)


def names(text: str) -> tuple[str, ...]:
    """The value of an option that lists names between commas."""
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def replace_section(path: Path, name: str, text: str) -> None:
    """Put text between `<!-- name -->` and `<!-- /name -->` in a file. Raises InputError if the marks are not there."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = path.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not (found and end):
        raise InputError(f"{path}: no {opening} ... {closing} to write between: put these marks where the table goes")
    path.write_text(f"{before}{opening}\n{text}\n{closing}{after}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
