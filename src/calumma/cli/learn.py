"""`calumma learn`: records become a prior."""

from __future__ import annotations

from pathlib import Path

import click

from calumma.cli.options import EXISTING_FILE, OutputPath, output_options, seed_option
from calumma.cli.output import Output
from calumma.cli.prior import metric_rows


@click.command(short_help="Learn from records what compile will predict.")
@click.option(
    "--db",
    "databases",
    multiple=True,
    metavar="URL|FILE",
    help="Database of records, any number of them. [the environment's CALUMMA_DB, else a file in your data directory]",
)
@click.option(
    "--output", "-o", "name", metavar="NAME|FILE.safetensors", help="What the prior is called. [own-DATE-TIME]"
)
@click.option(
    "--data",
    default="shipped",
    show_default=True,
    metavar="FILE.npz|shipped|none",
    help="A data set to learn from as well.",
)
@click.option("--save-data", type=OutputPath(), metavar="FILE.npz", help="Write all that was learnt from to a file.")
@click.option(
    "--exclude", type=EXISTING_FILE, metavar="FILE.json", help="Workloads to leave out: hashes, by name of the network."
)
@seed_option("the training")
@output_options
@click.pass_obj
def learn(
    out: Output,
    databases: tuple[str, ...],
    name: str | None,
    data: str,
    save_data: Path | None,
    exclude: Path | None,
    seed: int,
) -> None:
    """Train a prior on this machine's records, and on the data set that is shipped for it if there is one.

    compile uses the newest prior that fits. Judged by workloads held out in turns: the table shows what share of the
    best known speed the prior's choices, and the templates' defaults, would have had.
    """
    from calumma import api

    result = api.learn(
        databases,
        name=name,
        data=data,
        save_data=save_data,
        exclude=exclude,
        seed=seed,
        say=out.status,
    )
    out.table(*metric_rows(result.prior))
    out.line(
        f"\n{result.rows} configurations of {result.workloads} workloads; prior {result.prior.name}: {result.path}"
    )
    out.document(
        {
            "name": result.prior.name,
            "path": result.path,
            "rows": result.rows,
            "workloads": result.workloads,
            "left_out": result.left_out,
            "seconds": result.seconds,
            "metrics": result.prior.metrics,
        }
    )
