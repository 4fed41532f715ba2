"""`calumma records`: what has been measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calumma.cli.options import EXISTING_FILE, EXPORTED_RECORDS, OutputPath, Shape, database_option, output_options
from calumma.cli.output import Output

if TYPE_CHECKING:
    from calumma.core.values import MeasureRecord, Session
    from calumma.database import SqlStore

_FOLDER = click.Path(file_okay=False, path_type=Path)
_EXCLUSIVE = ("--export", "--import", "--export-metaschedule", "--import-metaschedule")


@click.command(short_help="Query, export and import what was measured.")
@database_option
@click.option("--workload", metavar="HASH", help="Only workloads whose hash begins so.")
@click.option("--session", metavar="ID", help="Only what this tuning session measured.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only what ran with N threads; with --model, threads to compile for. [--model: all physical cores]",
)
@click.option("--all", "everything", is_flag=True, help="Every record, failures and their reasons included.")
@click.option("--sessions", is_flag=True, help="The tuning sessions in place of the records.")
@click.option(
    "--export",
    "export_to",
    type=OutputPath(EXPORTED_RECORDS),
    metavar="FILE.jsonl",
    help="Write all records to a file.",
)
@click.option("--import", "import_from", type=EXISTING_FILE, metavar="FILE.jsonl", help="Add the records of a file.")
@click.option(
    "--export-metaschedule", "metaschedule_to", type=_FOLDER, metavar="DIR", help="Write a MetaSchedule database."
)
@click.option(
    "--import-metaschedule",
    "metaschedule_from",
    type=_FOLDER,
    metavar="DIR",
    help="Add a MetaSchedule database's records.",
)
@click.option("--model", type=EXISTING_FILE, help="Whose kernels a MetaSchedule database is about.")
@click.option("--shape", "shapes", type=Shape(), multiple=True, metavar="NAME=1,3,224,224", help="Shape of its input.")
@output_options
@click.pass_obj
def records(
    out: Output,
    database: str | None,
    workload: str | None,
    session: str | None,
    threads: int | None,
    everything: bool,
    sessions: bool,
    export_to: Path | None,
    import_from: Path | None,
    metaschedule_to: Path | None,
    metaschedule_from: Path | None,
    model: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:
    """List the best record of every workload, or with --all every record, in the order of measuring.

    Latencies compare only on the same CPU, with the same threads and cache state. A MetaSchedule database is exchanged
    for the kernels of --model alone, as calumma prepares them: nothing else in it is looked at.
    """
    _check_exclusive(export_to, import_from, metaschedule_to, metaschedule_from)
    with_metaschedule = metaschedule_to is not None or metaschedule_from is not None
    if with_metaschedule != (model is not None):
        raise click.UsageError(
            "--model MODEL goes with --export-metaschedule or --import-metaschedule, and they with it"
        )
    from calumma import database as db

    with db.SqlStore.open(database) as store:
        if model is not None:
            _exchange(out, store, model, dict(shapes), threads, metaschedule_to, metaschedule_from)
            return
        if import_from:
            count = db.import_jsonl(store, import_from)
            out.line(f"{count} new records from {import_from} in {store.path}")
            out.document({"imported": count, "database": store.path})
            return
        if export_to:
            count = db.export_jsonl(store, export_to)
            out.line(f"{count} records from {store.path} in {export_to}")
            out.document({"exported": count, "database": store.path})
            return
        if sessions:
            known = store.sessions()
            details = [{"options": entry.options, "summary": entry.summary} for entry in known]
            _show(out, store, [_session_row(entry) for entry in known], details)
            return
        found = [
            record
            for record in store.records(session=session, threads=threads)
            if record.candidate.workload.hash.startswith(workload or "")
        ]
        _show(out, store, [_record_row(record) for record in found] if everything else _best_rows(found))


def _check_exclusive(*values: Path | None) -> None:
    """Raise a UsageError unless at most one of the options `_EXCLUSIVE`, whose values these are, is given."""
    given = [name for name, value in zip(_EXCLUSIVE, values, strict=True) if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} exclude each other: do one after the other")


def _show(
    out: Output, store: SqlStore, rows: Sequence[dict[str, Any]], details: Sequence[dict[str, Any]] | None = None
) -> None:
    """Print rows of equal columns; `details`, one for each, are for programs alone."""
    if rows:
        out.table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        out.line(f"nothing in {store.path} matches: `calumma tune` measures, --import adds a file's records")
    document = [row | more for row, more in zip(rows, details or [{}] * len(rows), strict=True)]
    out.document({"database": store.path, "rows": document})


def _exchange(
    out: Output,
    store: SqlStore,
    model: Path,
    shapes: dict[str, tuple[int, ...]],
    threads: int | None,
    to: Path | None,
    source: Path | None,
) -> None:
    """Export to, or import from, a MetaSchedule database what is known of a model's kernels."""
    from calumma import tvm_compat
    from calumma.pipeline import CompileOptions

    options = CompileOptions(shapes=shapes or None, threads=threads)
    count = options.set_threads()
    from calumma.integrations import metaschedule
    from calumma.pipeline.preparation import prepare

    prepared = prepare(model, options)
    functions, target = prepared.parts.functions, prepared.target
    if to is not None:
        found = store.records(
            workloads=functions,
            hardware=target.hardware.fingerprint,
            threads=count,
            cache_state=prepared.cache_state,
            toolchain=tvm_compat.toolchain(),
        )
        exported = metaschedule.export_database(found, functions, target, count, to)
        out.line(f"{exported.count} records from {store.path} in {to}")
        skipped, damaged = exported.skipped, tuple[str, ...]()
        out.document({"exported": exported.count, "skipped": skipped, "database": store.path})
    elif source is not None:
        imported = metaschedule.import_database(source, functions, target, count)
        new = metaschedule.add_new(store, imported.records)
        out.line(f"{new} new records from {source} in {store.path}")
        skipped, damaged = imported.skipped, imported.damaged
        out.document({"imported": new, "skipped": skipped, "damaged": damaged, "database": store.path})
    for reason, number in skipped.items():
        out.line(f"{number} left out: {reason}")
    for fault in damaged:
        out.line(f"damaged: {fault}")


def _best_rows(found: list[MeasureRecord]) -> list[dict[str, Any]]:
    from calumma.core.values import Status
    from calumma.database import best

    comparable: dict[tuple[str, int, str, str], list[MeasureRecord]] = defaultdict(list)
    for record in found:
        comparable[record.hardware.fingerprint, record.threads, record.cache_state, record.toolchain].append(record)
    rows = []
    for group in comparable.values():
        by_key = defaultdict(list)
        for record in group:
            by_key[_key(record)].append(record)
        for key, winner in best(group).items():
            mine = by_key[key]
            rows.append(
                {
                    "workload": key[0],
                    "template": f"{key[1]} v{key[2]}",
                    "cpu": winner.hardware.mcpu,
                    "threads": winner.threads,
                    "cache": winner.cache_state,
                    "latency_ms": winner.result.latency_s * 1e3,
                    "trials": len({record.candidate.key for record in mine}),
                    "failed": sum(record.result.status is not Status.OK for record in mine),
                    "measured": _date(winner.time_s),
                }
            )
    return sorted(rows, key=lambda row: (row["cpu"], row["threads"], row["template"], row["workload"]))


def _key(record: MeasureRecord) -> tuple[str, str, int]:
    candidate = record.candidate
    return candidate.workload.hash, candidate.template, candidate.template_version


def _record_row(record: MeasureRecord) -> dict[str, Any]:
    from calumma.core.values import config_text

    return {
        "workload": record.candidate.workload.hash,
        "template": f"{record.candidate.template} v{record.candidate.template_version}",
        "cpu": record.hardware.mcpu,
        "threads": record.threads,
        "cache": record.cache_state,
        "status": record.result.status.value,
        "latency_ms": record.result.latency_s * 1e3,
        "measured": _date(record.time_s),
        "session": record.session,
        "config": config_text(record.candidate.config),
        "reason": record.result.reason,
    }


def _session_row(session: Session) -> dict[str, Any]:
    summary = session.summary or {}
    contest = summary.get("contest") or {}
    if session.finished_s is None:
        end = "unfinished"
    else:
        end = "interrupted" if summary.get("interrupted") else "finished"
    return {
        "session": session.id,
        "model": session.model,
        "started": _date(session.started_s),
        "seconds": None if session.finished_s is None else round(session.finished_s - session.started_s, 1),
        "strategy": session.options.get("strategy"),
        "trials": summary.get("trials"),
        "tuned_ms": _milliseconds(contest.get("tuned_s")),
        "default_ms": _milliseconds(contest.get("default_s")),
        "end": end,
    }


def _milliseconds(seconds: Any) -> float | None:
    return seconds * 1e3 if isinstance(seconds, float) else None


def _date(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")
