"""`calumma report`: a tuning session as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from calumma.cli.options import EXISTING_FILE, HTML_PAGE, OutputPath, database_option, output_options
from calumma.cli.output import Output


@click.command(short_help="Write a tuning session as one HTML page.")
@click.argument("session", required=False)
@click.option(
    "--output",
    "-o",
    type=OutputPath(HTML_PAGE),
    default="report.html",
    show_default=True,
    metavar="FILE.html",
    help="The page to write.",
)
@click.option(
    "--bench",
    "comparison_file",
    type=EXISTING_FILE,
    metavar="FILE.json",
    help="Show the comparison that `calumma bench --json FILE.json` wrote.",
)
@database_option
@output_options
@click.pass_obj
def report(out: Output, session: str | None, output: Path, comparison_file: Path | None, database: str | None) -> None:
    """Write what the tuning session with the id SESSION did, the last one by default, as one HTML page.

    The page needs no network: convergence, the time of every kernel beside its bound, where the tuning time went, what
    failed and why, which knobs mattered, and the command that repeats the session. `calumma records --sessions` lists
    the sessions. Needs the extra "report".
    """
    from calumma import report as pages
    from calumma.database import SqlStore

    comparison = None if comparison_file is None else pages.read_comparison(comparison_file)
    with SqlStore.open(database) as store:
        found = pages.collect(store, session)
        path = store.path
    pages.write(pages.render(found, comparison), output)
    out.line(f"{output}: session {found.session.id} of {found.session.model or 'a model without a name'}")
    out.document({"report": output, "session": found.session.id, "database": path})
