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
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from calumma import tvm_compat
from calumma.core.protocols import Indices, Runner, Store
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
    recording = _Recording(name, workload, space, runner, store, target, say)
    recording.measure_each(limit, clock)
    if recording.waiting():
        return None
    top = recording.top()
    recording.measure_again(top)
    recording.verify(top)
    return recording.corpus(source)


class _Recording:
    """A recording under way: what is known of each configuration, and what is still to be measured."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        space: SubSpace,
        runner: Runner,
        store: Store,
        target: Target,
        say: Callable[[str], None],
    ) -> None:
        """Take in what the store has; arguments as for `record`."""
        self._name, self._workload, self._space = name, workload, space
        self._runner, self._store, self._target, self._say = runner, store, target, say
        rows = space.members[generator(SEED, "order", name).permutation(len(space.members))]
        # The default leads: from the second batch on, slow ones stop early.
        first = (rows != space.default()).any(axis=1)
        self._candidates = self._of(np.concatenate([rows[~first], rows[first]]))
        self._measured = self._known(SESSION)
        self._best_s = min(
            (result.latency_s for results in self._measured.values() for result in results), default=float("inf")
        )

    def waiting(self) -> list[Candidate]:
        """What has to be measured, in the order of measuring."""
        return [c for c in self._candidates if not _is_settled(self._measured.get(c.key, ()))]

    def measure_each(self, limit: int | None, clock: Callable[[], float]) -> None:
        """Measure what is waiting, at most `limit` of it."""
        start, done, failed = clock(), 0, 0
        while waiting := self.waiting()[: None if limit is None else limit - done]:
            batch = waiting[:BATCH]
            best_s = {self._workload.hash: self._best_s} if self._best_s < float("inf") else None
            results = self._runner.measure(batch, best_s)
            self._keep(batch, results, SESSION)
            for candidate, result in zip(batch, results, strict=True):
                self._measured.setdefault(candidate.key, []).append(result)
            self._best_s = min([self._best_s, *(result.latency_s for result in results)])
            done += len(batch)
            failed += sum(result.status is not Status.OK for result in results)
            rate = done / max(clock() - start, 1e-9)
            self._say(
                f"{self._name}: {len(self._measured)}/{len(self._candidates)}, {rate:.1f}/s, "
                f"{(len(waiting) - len(batch)) / rate:.0f} s left, {failed} failed, best {self._best_s * 1e6:.1f} us"
            )

    def top(self) -> list[Candidate]:
        """The fastest, and the default if it works; to be asked when nothing is waiting."""
        ranked = sorted(self._candidates, key=lambda c: (self._measured[c.key][-1].latency_s, c.key))
        default = self._candidates[0]
        top = [*ranked[:TOP], *([default] if default in ranked[TOP:] else [])]
        return [candidate for candidate in top if self._measured[candidate.key][-1].status is Status.OK]

    def measure_again(self, top: Sequence[Candidate]) -> None:
        """Measure the fastest until each has `PASSES` more measurements that worked."""
        for turn in range(PASSES):
            again = self._known(_AGAIN)
            batch = [c for c in top if sum(result.status is Status.OK for result in again.get(c.key, [])) <= turn]
            batch = [c for c in batch if all(r.status is not Status.WRONG_OUTPUT for r in again.get(c.key, []))]
            if batch:
                self._keep(batch, self._runner.measure(batch, {self._workload.hash: self._best_s}), _AGAIN)
                self._say(
                    f"{self._name}: the fastest and the default, {len(batch)} in all, measured again, "
                    f"{turn + 1} of {PASSES}"
                )

    def verify(self, top: Sequence[Candidate]) -> None:
        """Find those of the fastest that compute something else."""
        verdicts = zip(top, self._runner.verify(top), strict=True)
        wrong = [(c, verdict) for c, verdict in verdicts if verdict.status is Status.WRONG_OUTPUT]
        if wrong:
            self._keep([c for c, _ in wrong], [verdict for _, verdict in wrong], _AGAIN)
            self._say(f"{self._name}: {len(wrong)} of the fastest compute something else: {wrong[0][1].reason}")

    def corpus(self, source: RecordedKernel) -> Corpus:
        """What all passes say, in the order of the space."""
        again = self._known(_AGAIN)
        settled = {c.key: _settled(self._measured[c.key][-1], again.get(c.key, [])) for c in self._candidates}
        space = self._space
        ordered = [settled[candidate.key] for candidate in self._of(space.members)]
        return Corpus(
            name=self._name,
            source=source,
            workload=self._workload,
            template=space.template,
            version=space.version,
            values=space.values,
            indices=space.members,
            default=space.default(),
            results=tuple(result for result, _, _ in ordered),
            errors=np.array([error for _, error, _ in ordered]),
            counts=np.array([count for _, _, count in ordered]),
            hardware=self._target.hardware,
            threads=self._runner.threads,
            cache_state=self._runner.cache_state,
            toolchain=tvm_compat.toolchain(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _of(self, rows: Indices) -> list[Candidate]:
        space = self._space
        return [Candidate(self._workload, space.template, space.version, space.decode(row)) for row in rows]

    def _known(self, session: str) -> dict[str, list[MeasureResult]]:
        """What the store has of a session, by candidate."""
        found: dict[str, list[MeasureResult]] = {}
        for entry in self._store.records(
            workloads=[self._workload.hash],
            session=session,
            hardware=self._target.hardware.fingerprint,
            threads=self._runner.threads,
            cache_state=self._runner.cache_state,
            toolchain=tvm_compat.toolchain(),
        ):
            found.setdefault(entry.candidate.key, []).append(entry.result)
        return found

    def _keep(self, batch: Sequence[Candidate], results: Sequence[MeasureResult], session: str) -> None:
        self._store.append(
            [
                MeasureRecord(
                    candidate,
                    result,
                    self._target.hardware,
                    self._runner.threads,
                    self._runner.cache_state,
                    tvm_compat.toolchain(),
                    session=session,
                    strategy=SESSION,
                    seed=SEED,
                )
                for candidate, result in zip(batch, results, strict=True)
            ]
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
