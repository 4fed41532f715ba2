"""`calumma records`: what has been measured."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calumma.cli.options import EXISTING_FILE, OutputPath, database_option, output_options
from calumma.cli.output import Output

if TYPE_CHECKING:
    from calumma.core.values import MeasureRecord, Session


@click.command(short_help="Query, export and import what was measured.")
@database_option
@click.option("--workload", metavar="HASH", help="Only workloads whose hash begins so.")
@click.option("--session", metavar="ID", help="Only what this tuning session measured.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Only what ran with N threads.")
@click.option("--all", "everything", is_flag=True, help="Every record, failures and their reasons included.")
@click.option("--sessions", is_flag=True, help="The tuning sessions in place of the records.")
@click.option("--export", "export_to", type=OutputPath(), metavar="FILE.jsonl", help="Write all records to a file.")
@click.option("--import", "import_from", type=EXISTING_FILE, metavar="FILE.jsonl", help="Add the records of a file.")
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
) -> None:
    """List the best record of every workload, or with --all every record, in the order of measuring.

    Latencies compare only on the same CPU, with the same threads and cache state.
    """
    if export_to and import_from:
        raise click.UsageError("--export and --import exclude each other: do one after the other")
    from calumma import database as db

    with db.SqlStore.open(database) as store:
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
            rows = [_session_row(entry) for entry in store.sessions()]
        else:
            found = [
                record
                for record in store.records(session=session, threads=threads)
                if record.candidate.workload.hash.startswith(workload or "")
            ]
            rows = [_record_row(record) for record in found] if everything else _best_rows(found)
        if rows:
            out.table(list(rows[0]), [list(row.values()) for row in rows])
        else:
            out.line(f"nothing in {store.path} matches: `calumma tune` measures, --import adds a file's records")
        out.document({"database": store.path, "rows": rows})


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
    return {
        "session": session.id,
        "model": session.model,
        "started": _date(session.started_s),
        "seconds": None if session.finished_s is None else round(session.finished_s - session.started_s, 1),
        "summary": json.dumps(session.summary, sort_keys=True) if session.summary else None,
    }


def _date(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")
