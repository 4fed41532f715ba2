"""Which configuration the records speak for."""

from __future__ import annotations

from collections.abc import Iterable

from calumma.core.values import MeasureRecord, Status


def best(records: Iterable[MeasureRecord]) -> dict[tuple[str, str, int], MeasureRecord]:
    """Return the fastest record by (workload hash, template, template version).

    No winner by luck: of several measurements of one candidate the latest counts, and a candidate that ever computed
    a wrong output is out.

    Args:
        records: oldest first, as a store returns them; of one hardware, number of threads, cache state and toolchain,
            for latencies compare under the same ones only.
    """
    latest: dict[str, MeasureRecord] = {}
    wrong: set[str] = set()
    for record in records:
        if record.result.status is Status.OK:
            latest[record.candidate.key] = record
        elif record.result.status is Status.WRONG_OUTPUT:
            wrong.add(record.candidate.key)
    winners: dict[tuple[str, str, int], MeasureRecord] = {}
    for key, record in latest.items():
        if key in wrong:
            continue
        group = (record.candidate.workload.hash, record.candidate.template, record.candidate.template_version)
        if group not in winners or record.result.latency_s < winners[group].result.latency_s:
            winners[group] = record
    return winners
