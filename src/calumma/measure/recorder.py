"""Measures every configuration of a part of a design space, once and for all: `record`.

Every configuration once, in random order, by the ordinary `LocalRunner` with cold
weights, in batches of 64; the best so far is passed on, so that a candidate more than 1.5 times slower is left after
three repetitions: nobody needs the exact latency of the slow ones, and half of the time would go into them. As the
fastest of thousands of noisy values is fast by luck, the fastest 64 are then measured twice more and verified; their
latency is the median over all passes. So is the default, from which every search starts: it is the first that is
measured, when the workers have just begun. The seconds charged in a replay are those of the first pass.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from calumma import tvm_compat
from calumma.core.protocols import Runner, Store
from calumma.core.rng import generator
from calumma.core.values import Candidate, MeasureRecord, MeasureResult, Status, Workload
from calumma.measure.recording import SESSION, Corpus, RecordedKernel
from calumma.measure.timing import standard_error
from calumma.space.subspace import SubSpace
from calumma.target import Target

SEED = 0
"""Of the order in which configurations are measured."""
BATCH = 64
TOP = 64
PASSES = 2
"""Configurations measured again, and how often."""
_TRANSIENT = (Status.BUILD_TIMEOUT, Status.RUN_TIMEOUT, Status.WORKER_LOST)
"""Failures that other work on the machine can cause: they count only when they happen twice."""
_AGAIN = "corpus-again"


def record(
    name: str,
    workload: Workload,
    space: SubSpace,
    runner: Runner,
    store: Store,
    target: Target,
    *,
    source: RecordedKernel,
    limit: int | None = None,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Corpus | None:
    """Measure what the store does not have yet; returns the corpus once it is complete.

    Every batch is in the store before the next begins: killed at any moment, at most one batch is measured again.

    Args:
        name: of the corpus.
        workload, space: what is measured.
        runner: measures, under one thread count and cache state.
        store: keeps the measurements between calls.
        target: what the runner runs on.
        source: where the workload comes from; kept in the corpus.
        limit: stop after so many measurements, for a trial.
        say: takes one line of progress per batch.
        clock: seconds, for rates.
    """
    rows = space.members[generator(SEED, "order", name).permutation(len(space.members))]
    first = (rows != space.default()).any(axis=1)  # the default leads: from the second batch on, slow ones stop early
    rows = np.concatenate([rows[~first], rows[first]])
    candidates = [Candidate(workload, space.template, space.version, space.decode(row)) for row in rows]
    conditions: dict[str, Any] = {
        "hardware": target.hardware.fingerprint,
        "threads": runner.threads,
        "cache_state": runner.cache_state,
        "toolchain": tvm_compat.toolchain(),
    }

    def known(session: str) -> dict[str, list[MeasureResult]]:
        found: dict[str, list[MeasureResult]] = {}
        for entry in store.records(workloads=[workload.hash], session=session, **conditions):
            found.setdefault(entry.candidate.key, []).append(entry.result)
        return found

    def keep(batch: Sequence[Candidate], results: Sequence[MeasureResult], session: str) -> None:
        store.append(
            [
                MeasureRecord(
                    candidate,
                    result,
                    target.hardware,
                    runner.threads,
                    runner.cache_state,
                    tvm_compat.toolchain(),
                    session=session,
                    strategy=SESSION,
                    seed=SEED,
                )
                for candidate, result in zip(batch, results, strict=True)
            ]
        )

    def open_questions(measured: Mapping[str, Sequence[MeasureResult]]) -> list[Candidate]:
        return [c for c in candidates if not _is_settled(measured.get(c.key, ()))]

    measured = known(SESSION)
    best_s = min((r.latency_s for results in measured.values() for r in results), default=float("inf"))
    start, done, failed = clock(), 0, 0
    while waiting := open_questions(measured)[: None if limit is None else limit - done]:
        batch = waiting[:BATCH]
        results = runner.measure(batch, {workload.hash: best_s} if best_s < float("inf") else None)
        keep(batch, results, SESSION)
        for candidate, result in zip(batch, results, strict=True):
            measured.setdefault(candidate.key, []).append(result)
        best_s = min([best_s, *(result.latency_s for result in results)])
        done += len(batch)
        failed += sum(result.status is not Status.OK for result in results)
        rate = done / max(clock() - start, 1e-9)
        say(
            f"{name}: {len(measured)}/{len(candidates)}, {rate:.1f}/s, {(len(waiting) - len(batch)) / rate:.0f} s "
            f"left, {failed} failed, best {best_s * 1e6:.1f} us"
        )
    if open_questions(measured):
        return None
    ranked = sorted(candidates, key=lambda c: (measured[c.key][-1].latency_s, c.key))
    default = candidates[0]
    top = [*ranked[:TOP], *([default] if default in ranked[TOP:] else [])]
    top = [candidate for candidate in top if measured[candidate.key][-1].status is Status.OK]
    for turn in range(PASSES):
        again = known(_AGAIN)
        batch = [c for c in top if sum(result.status is Status.OK for result in again.get(c.key, [])) <= turn]
        batch = [c for c in batch if all(r.status is not Status.WRONG_OUTPUT for r in again.get(c.key, []))]
        if batch:
            keep(batch, runner.measure(batch, {workload.hash: best_s}), _AGAIN)
            say(f"{name}: the fastest and the default, {len(batch)} in all, measured again, {turn + 1} of {PASSES}")
    verdicts = runner.verify(top)
    wrong = [(c, verdict) for c, verdict in zip(top, verdicts, strict=True) if verdict.status is Status.WRONG_OUTPUT]
    if wrong:
        keep([c for c, _ in wrong], [verdict for _, verdict in wrong], _AGAIN)
        say(f"{name}: {len(wrong)} of the fastest compute something else: {wrong[0][1].reason}")
    again = known(_AGAIN)
    settled = {c.key: _settled(measured[c.key][-1], again.get(c.key, [])) for c in candidates}
    everything = [Candidate(workload, space.template, space.version, space.decode(row)) for row in space.members]
    ordered = [settled[candidate.key] for candidate in everything]
    return Corpus(
        name=name,
        source=source,
        workload=workload,
        template=space.template,
        version=space.version,
        values=space.values,
        indices=space.members,
        default=space.default(),
        results=tuple(result for result, _, _ in ordered),
        errors=np.array([error for _, error, _ in ordered]),
        counts=np.array([count for _, _, count in ordered]),
        hardware=target.hardware,
        threads=runner.threads,
        cache_state=runner.cache_state,
        toolchain=tvm_compat.toolchain(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _is_settled(results: Sequence[MeasureResult]) -> bool:
    """Whether a configuration need not be measured (again)."""
    return len(results) > 1 or (len(results) == 1 and results[0].status not in _TRANSIENT)


def _settled(first: MeasureResult, again: Sequence[MeasureResult]) -> tuple[MeasureResult, float, int]:
    """One result out of all passes with the seconds of the first; its relative standard error and repetitions."""
    wrong = next((result for result in again if result.status is Status.WRONG_OUTPUT), None)
    if wrong is not None:
        return MeasureResult(wrong.status, (), wrong.reason, first.phases_s), 0.0, 0
    if first.status is not Status.OK:
        return first, 0.0, 0
    passes = [first, *(result for result in again if result.status is Status.OK)]
    latencies = [latency for result in passes for latency in result.latencies_s]
    middle = median(result.latency_s for result in passes)
    return MeasureResult(Status.OK, (middle,), "", first.phases_s), standard_error(latencies), len(latencies)
