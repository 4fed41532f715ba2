"""A report as one HTML file that works without a network.

Everything from a session goes through Jinja2's autoescape or, for the plots, `tojson`. Should either ever fail, the
page's Content-Security-Policy lets no other script run than the two it was written with, named by their hashes, and
nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from calumma.core.errors import EnvironmentFault, InputError
from calumma.core.files import replacing
from calumma.core.values import KnobValue
from calumma.report.data import SessionReport
from calumma.report.peers import PeerComparison

_MOST_FAILURES = 40
_MOST_VALUES = 8


def render(report: SessionReport, comparison: PeerComparison | None = None) -> str:
    """Return the page.

    Raises:
        EnvironmentFault: Plotly or Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs

        from calumma.report.plots import figures
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("jinja2", "markupsafe", "plotly"):
            raise
        raise EnvironmentFault(
            f"a report needs {error.name}, which is not installed: pip install 'calumma[report]'"
        ) from error

    environment = Environment(
        loader=PackageLoader("calumma.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=_ms, significant=_significant, percent=_percent, times=_times, utc=_utc, value=_value, bytes=_bytes
    )
    folder = resources.files("calumma.report") / "templates"
    scripts = [get_plotlyjs(), (folder / "report.js").read_text(encoding="utf-8")]
    return environment.get_template("report.html.j2").render(
        report=report,
        comparison=comparison,
        plots=figures(report, comparison),
        failures=report.failures[:_MOST_FAILURES],
        most_values=_MOST_VALUES,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # nosec B704  # a file of this package
        scripts=[Markup(script) for script in scripts],  # nosec B704  # files of this package and of Plotly's
        script_hashes=[_hash(script) for script in scripts],
        now=datetime.now(UTC).timestamp(),
    )


def write(page: str, path: Path) -> None:
    """Write a page to a file, which is replaced as a whole.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with replacing(path) as out:
            # A stored name may hold half of a surrogate pair, which UTF-8 cannot.
            out.write(page.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}): choose another file") from error


def _hash(script: str) -> str:
    """A script's name in a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else _significant(seconds * 1e3)


def _significant(number: float | None) -> str:
    """Three significant digits, more only where they stand before the point."""
    if number is None:
        return "–"
    return f"{number:.0f}" if number >= 999.5 else f"{number:#.3g}".rstrip(".")


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _times(factor: float | None) -> str:
    return "–" if factor is None else f"{factor:.2f}×"


def _value(value: KnobValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bytes(size: int) -> str:
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:g} {unit}"
    return f"{size} B"


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
