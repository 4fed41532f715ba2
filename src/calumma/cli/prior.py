"""`calumma prior`: which priors there are, what they know, whether their files are sound; and moving one to a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calumma.cli.collect import show_progress
from calumma.cli.options import EXISTING_FILE, Duration, database_option, output_options, seed_option
from calumma.cli.output import INTERRUPTED, Output
from calumma.core.errors import InputError

if TYPE_CHECKING:
    from calumma.prior.weights import Prior


@click.group(short_help="List, show, verify and adapt priors.", no_args_is_help=False)
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
        row = {"name": entry.name, "origin": entry.origin, "path": entry.path}
        try:
            found = weights.load(entry.path)
        except InputError as error:
            rows.append({**row, "created": None, "threads": None, "rows": None, "fits": str(error)})
            continue
        counts = _threads(found)
        reasons = {threads: found.mismatch(here, threads) for threads in (host.physical_cores(), *counts)}
        fitting = sorted({threads for threads, reason in reasons.items() if not reason})
        rows.append(
            {
                **row,
                "created": found.created,
                "threads": counts,
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
    out.line(f"{found.name}, {found.created}")
    for machine in found.trained_on:
        part = found.data["cpus"][machine.hardware.fingerprint]
        threads = " or ".join(map(str, machine.limits))
        out.line(
            f"trained on {machine.label}, {threads} threads: "
            f"{part['rows']} configurations of {part['workloads']} workloads"
        )
    for machine in found.moved_to:
        threads = " or ".join(map(str, machine.limits))
        out.line(f"moved to {machine.label}, {threads} threads, by {found.moved_rows} configurations")
    out.line(f"toolchain: {found.toolchain}")
    out.line(
        f"learnt from {found.data['rows']} configurations of {len(found.data['workloads'])} workloads "
        f"(data {found.data['digest']}), seed {found.settings['seed']}\n"
    )
    out.table(*metric_rows(found))
    if len(found.trained_on) > 1:
        out.line("\nEach CPU left out in turns, and half of the layers with it:")
        out.table(*left_out_rows(found))
    out.document(_document(found))


@prior.command(short_help="Move a prior to this CPU by a minute of measurements.")
@click.argument("models", type=EXISTING_FILE, nargs=-1, metavar="[MODEL]...")
@click.option("--budget", type=Duration(), metavar="60s", default="60s", show_default=True, help="Time for measuring.")
@click.option("--prior", "name", default="auto", metavar="NAME|FILE", help="What is moved. [the newest]")
@seed_option("the workloads and of their configurations")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads of the kernels. [all physical cores]")
@click.option("--mcpu", metavar="CPU", help="CPU to generate code for, by LLVM's name. [this machine's]")
@database_option
@output_options
@click.pass_obj
def adapt(
    out: Output,
    models: tuple[Path, ...],
    budget: float,
    name: str,
    seed: int,
    threads: int | None,
    mcpu: str | None,
    database: str | None,
) -> int | None:
    """Measure for a minute, and move a prior that never saw this CPU to it.

    Without a MODEL, workloads are drawn as in calumma collect. What is measured goes to the database, and the prior as
    it is then to your data directory, where compile and tune find it. A session of calumma tune does the same.
    """
    from calumma import api
    from calumma.prior.weights import ADAPTED

    with show_progress(out) as progress:
        result = api.adapt(
            models,
            budget=budget,
            database=database,
            seed=seed,
            threads=threads,
            mcpu=mcpu,
            prior=name,
            on_progress=progress,
        )
    moved, collected = result.prior, result.collected
    (machine,) = moved.moved_to
    trusted = [template for template, family in moved.families.items() if family.trust(ADAPTED).any]
    out.line(f"prior {result.base} moved to {machine.label} by {moved.moved_rows} configurations: {result.path}")
    out.line(f"chooses in the place of defaults: {', '.join(trusted) or 'nowhere; it only guides calumma tune'}")
    out.document(
        {
            "name": moved.name,
            "base": result.base,
            "path": result.path,
            "rows": moved.moved_rows,
            "trusted": trusted,
            "trials": collected.progress.trials,
            "session": collected.session,
            "statuses": collected.statuses,
            "interrupted": collected.interrupted,
        }
    )
    return INTERRUPTED if collected.interrupted else None


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


def left_out_rows(found: Prior) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """What a prior is worth on CPUs left out in turns, as a table: as it is, and after a minute of measurements."""
    columns = ["template", "CPU left out", "judged", "default", "first choice", "best of 8", "adapted", "best of 8 "]
    rows: list[Sequence[object]] = []
    for template, values in found.metrics.items():
        for cpu, unseen in values["unseen"].items():
            adapted = values["adapted"][cpu]
            shares = (
                *(unseen.get(key) for key in ("judged", "default", "top1", "top8")),
                adapted["top1"],
                adapted["top8"],
            )
            rows.append((template, found.data["cpus"][cpu]["cpu"], *shares))
    return columns, rows


def _threads(found: Prior) -> list[int]:
    return sorted({threads for machine in (*found.trained_on, *found.moved_to) for threads in machine.limits})


def _document(found: Prior) -> dict[str, Any]:
    return {
        "name": found.name,
        "created": found.created,
        "trained_on": found.trained_on,
        "moved_to": found.moved_to,
        "moved_rows": found.moved_rows,
        "threads": _threads(found),
        "toolchain": found.toolchain,
        "data": found.data,
        "settings": found.settings,
        "metrics": found.metrics,
        "templates": {
            template: {
                "version": family.version,
                "columns": len(family.columns),
                "spread": family.spread,
                "trusts": family.trusts,
            }
            for template, family in found.families.items()
        },
        "digest": found.digest,
    }
