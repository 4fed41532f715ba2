"""`calumma prior`: which priors there are, what they know, and whether their files are sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from calumma.cli.options import output_options
from calumma.cli.output import Output
from calumma.core.errors import InputError

if TYPE_CHECKING:
    from calumma.prior.weights import Prior


@click.group(short_help="List, show and verify priors.", no_args_is_help=False)
def prior() -> None:
    """What was learnt from measurements, for compile and tune to start from."""


@prior.command("list", short_help="The priors there are, in the order in which compile tries them.")
@output_options
@click.pass_obj
def list_priors(out: Output) -> None:
    """List all priors, and whether each fits this machine."""
    from calumma import tvm_compat
    from calumma.core import hardware as host
    from calumma.prior import library, weights

    here = tvm_compat.target_for().hardware
    rows: list[dict[str, Any]] = []
    for entry in library.entries():
        row = {"name": entry.name, "origin": "shipped" if entry.shipped else "own", "path": entry.path}
        try:
            found = weights.load(entry.path)
        except InputError as error:
            rows.append({**row, "created": None, "threads": None, "rows": None, "fits": str(error)})
            continue
        reasons = {threads: found.mismatch(here, threads) for threads in (host.physical_cores(), *found.limits)}
        fitting = sorted({threads for threads, reason in reasons.items() if not reason})
        rows.append(
            {
                **row,
                "created": found.created,
                "threads": sorted(found.limits),
                "rows": found.data["rows"],
                "fits": f"with {', '.join(map(str, fitting))} threads" if fitting else next(iter(reasons.values())),
            }
        )
    if not rows:
        out.line("no priors: calumma collect measures what calumma learn makes one of")
        out.document({"priors": []})
        return
    out.table(
        ["prior", "origin", "created", "threads", "configurations", "fits this machine"],
        [
            (
                row["name"],
                row["origin"],
                row["created"],
                None if row["threads"] is None else ",".join(map(str, row["threads"])),
                row["rows"],
                row["fits"],
            )
            for row in rows
        ],
    )
    out.document({"priors": rows})


@prior.command("show", short_help="What a prior was trained on, and how good it is.")
@click.argument("name")
@output_options
@click.pass_obj
def show(out: Output, name: str) -> None:
    """Show what prior NAME (or a file) was trained on and how it did on workloads held out in turns."""
    from calumma.prior import library

    found = library.find(name)
    hardware = found.hardware
    out.line(f"{found.name}, {found.created}")
    out.line(f"machine: {hardware.cpu_model} ({hardware.mcpu}), {_threads(found)} threads")
    out.line(f"toolchain: {found.toolchain}")
    out.line(
        f"learnt from {found.data['rows']} configurations of {len(found.data['workloads'])} workloads "
        f"(data {found.data['digest']}), seed {found.settings['seed']}\n"
    )
    out.table(*metric_rows(found))
    out.document(_document(found))


@prior.command(short_help="Check the file of a prior.")
@click.argument("name")
@output_options
@click.pass_obj
def verify(out: Output, name: str) -> None:
    """Check that prior NAME (or a file) is whole, and that its features and templates are those of this version.

    A prior of other template versions is sound, but silent about them: they are named.
    """
    from calumma import operators
    from calumma.prior import library

    found = library.find(name)
    today = operators.template_versions()
    stale = {t: f.version for t, f in found.families.items() if today.get(t) != f.version}
    for template, version in stale.items():
        out.status(f"template {template}: known in version {version}, today it is {today.get(template, 'gone')}")
    if stale:
        raise InputError(
            f"prior {found.name} is sound, but out of date for {', '.join(stale)}: collect and learn again"
        )
    out.line(f"prior {found.name} is sound: {found.digest}, {', '.join(found.families)}")
    out.document({"name": found.name, "digest": found.digest, "templates": list(found.families)})


def metric_rows(found: Prior) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """The metrics of a prior as a table."""
    columns = ["template", "workloads", "judged", "first choice", "best of 8", "default", "rank correlation"]
    keys = ("workloads", "judged", "top1", "top8", "default", "correlation")
    return columns, [(template, *(values.get(key) for key in keys)) for template, values in found.metrics.items()]


def _threads(found: Prior) -> str:
    return " or ".join(map(str, sorted(found.limits)))


def _document(found: Prior) -> dict[str, Any]:
    return {
        "name": found.name,
        "created": found.created,
        "hardware": found.hardware,
        "threads": sorted(found.limits),
        "toolchain": found.toolchain,
        "data": found.data,
        "settings": found.settings,
        "metrics": found.metrics,
        "templates": {
            template: {"version": family.version, "columns": len(family.columns), "spread": family.spread}
            for template, family in found.families.items()
        },
        "digest": found.digest,
    }
