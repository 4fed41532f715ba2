"""What `calumma bench --json FILE` wrote: the model's latency beside other runtimes'."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from calumma.core.errors import InputError
from calumma.report.fields import Fields


@dataclass(frozen=True)
class Peer:
    """One runtime in the comparison."""

    label: str
    version: str
    latency_s: float | None
    """Median; None if it was not timed or could not run."""
    quartiles_s: tuple[float, float] | None
    ratio: float | None
    """Latency of the first runtime over this one's: below 1, the first is faster."""
    difference: float | None
    """Largest difference of outputs from the reference's, relative to their largest value."""
    reason: str
    """Why it could not run; empty when it could."""


@dataclass(frozen=True)
class PeerComparison:
    """All runtimes, the artifact first."""

    model: str
    """Name of the model's file."""
    threads: int | None
    peers: tuple[Peer, ...]

    @property
    def name(self) -> str:
        """The model's name as a session has it: that of its file without the suffix."""
        return Path(self.model).stem


def read_comparison(file: Path) -> PeerComparison:
    """Read the JSON of `calumma bench`.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}): give what `calumma bench --json FILE` wrote") from error
    values = Fields(document, str(file))
    peers = tuple(_peer(row) for row in values.objects("rows"))
    if not peers:
        raise InputError(f"{file} holds no rows of a comparison: give what `calumma bench --json FILE` wrote")
    return PeerComparison(Path(values.text("model") or "").name, values.count("threads"), peers)


def _peer(row: Fields) -> Peer:
    spread = row.object("latency_s")
    lower, upper = spread.number("lower"), spread.number("upper")
    return Peer(
        label=row.required("label", row.text("label")),
        version=row.text("version") or "",
        latency_s=spread.number("median"),
        quartiles_s=None if lower is None or upper is None else (lower, upper),
        ratio=row.object("ratio").number("median"),
        difference=row.number("difference"),
        reason=row.text("reason") or "",
    )
