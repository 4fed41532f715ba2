"""What a command prints: text for people, or JSON for programs.

`--json` writes JSON Lines: one object per line, "event" says what it is, and the last line of a command that succeeds
is its "result". Only `tune` and `collect` have lines before that.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from calumma.core.errors import InputError

STDOUT = "-"
_NARROWEST = 12
"""Characters that a table's first column keeps."""
INTERRUPTED = 130
"""Exit status after Ctrl-C."""


@dataclasses.dataclass
class Output:
    """The choices `--quiet`, `--json` and `--debug` of one run of the command line."""

    quiet: bool = False
    json: str | None = None
    """Where JSON goes: a file's name, "-" for stdout, None for nowhere."""
    debug: bool = False
    _begun: bool = dataclasses.field(default=False, init=False)
    """Whether the JSON file holds lines of this run."""

    @property
    def for_people(self) -> bool:
        """Whether text is printed: not when quiet, nor when stdout belongs to the JSON."""
        return not self.quiet and self.json != STDOUT

    def line(self, text: str = "") -> None:
        if self.for_people:
            click.echo(text)

    def status(self, text: str) -> None:
        """Say on stderr what is going on."""
        if not self.quiet:
            click.echo(text, err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print aligned columns; numbers (and n/a) to the right, text to the left.

        On a terminal the first column gives way where the table is too wide.
        """
        if self.for_people:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            click.echo("\n".join(table_lines(columns, rows, width)))

    def event(self, event: Mapping[str, Any]) -> None:
        """Write a line of progress where `--json` says, if it was given. Raises InputError."""
        if self.json is not None:
            self._write({"time_s": time.time(), **event})

    def document(self, document: Mapping[str, Any]) -> None:
        """Write the result where `--json` says, if it was given. Raises InputError."""
        if self.json is not None:
            self._write({"event": "result", **document})

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(plain(line), allow_nan=False)
        if self.json is None or self.json == STDOUT:
            click.echo(text)
            return
        try:
            with Path(self.json).open("a" if self._begun else "w") as file:
                file.write(text + "\n")
        except OSError as error:
            raise InputError(f"--json {self.json}: cannot be written ({error.strerror}): name another file") from error
        self._begun = True


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[object]], max_width: int | None = None) -> list[str]:
    """Lay out a table as lines of text: a header, a rule, the rows; the first column is cut to fit `max_width`."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    if max_width is not None:
        excess = sum(widths) + 2 * (len(widths) - 1) - max_width
        widths[0] = min(widths[0], max(_NARROWEST, widths[0] - excess))
        for line in cells:
            if len(line[0]) > widths[0]:
                line[0] = line[0][: widths[0] - 1] + "…"
    right = [bool(cells) and all(_numeric(line[i]) for line in cells) for i in range(len(columns))]

    def layout(line: Sequence[str]) -> str:
        return "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()

    return [layout(columns), "  ".join("─" * width for width in widths), *map(layout, cells)]


def cell(value: object) -> str:
    """One value as people read it: four significant digits, n/a for what is not there."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _numeric(text: str) -> bool:
    if text == "n/a":
        return True
    try:
        float(text.replace(",", "").removesuffix("%").removesuffix("x"))
    except ValueError:
        return False
    return True


def plain(value: Any) -> Any:
    """Reduce a value to what JSON can hold: dataclasses become objects, infinity and NaN become null."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON")
