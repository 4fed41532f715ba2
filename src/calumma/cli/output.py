"""What a command prints: text for people on stdout, or one JSON document."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

STDOUT = "-"
INTERRUPTED = 130
"""Exit status after Ctrl-C."""


@dataclasses.dataclass
class Output:
    """The choices `--quiet`, `--json` and `--debug` of one run of the command line."""

    quiet: bool = False
    json: str | None = None
    """Where the JSON document goes: a file's name, "-" for stdout, None for nowhere."""
    debug: bool = False

    @property
    def for_people(self) -> bool:
        """Whether text is printed: not when quiet, nor when stdout belongs to the JSON document."""
        return not self.quiet and self.json != STDOUT

    def line(self, text: str = "") -> None:
        if self.for_people:
            click.echo(text)

    def status(self, text: str) -> None:
        """Say on stderr what is going on."""
        if not self.quiet:
            click.echo(text, err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print aligned columns; numbers (and n/a) to the right, text to the left."""
        if self.for_people:
            click.echo("\n".join(table_lines(columns, rows)))

    def document(self, document: Mapping[str, Any]) -> None:
        """Write the JSON document where `--json` says, if it was given."""
        if self.json is None:
            return
        text = json.dumps(plain(document), indent=2, allow_nan=False)
        if self.json == STDOUT:
            click.echo(text)
        else:
            Path(self.json).write_text(text + "\n")


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lay out a table as lines of text: a header, a rule, the rows."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
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
