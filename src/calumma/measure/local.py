"""Measuring on this machine: candidates are built by isolated workers in parallel, then timed one at a time."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from calumma.core import extensions
from calumma.core.errors import InputError
from calumma.core.values import Candidate, MeasureResult, Status
from calumma.measure import messages
from calumma.measure.messages import WorkerSettings
from calumma.measure.server import ForkServer, last_line
from calumma.target import Target

_START_TIMEOUT_S = 60.0
CACHE_STATES = ("cold", "warm", "hot")
"""Where a kernel finds its arguments: see `LocalRunner`."""


@dataclass(eq=False)
class _Worker:
    """The runner's side of one worker process."""

    connection: Connection
    log: Path
    deadline_s: float
    """Monotonic time by which it must have said what it owes: that it is ready, or a reply."""
    pid: int | None = None
    """Known once it is ready."""
    job: _Job | None = None
    touched: set[str] = field(default_factory=set)
    """Identities of all jobs whose code it has run."""


@dataclass(eq=False)
class _Job:
    """One request about one candidate of the batch."""

    index: int
    key: str
    """Identity of the candidate, or of the workload whose reference is wanted."""
    request: Mapping[str, Any]
    timeout_s: float
    worker: _Worker | None = None
    """The only worker that can do it; None for any."""
    started_s: float = 0.0


@dataclass(frozen=True)
class _Outcome:
    """A reply, or how a job ended without one."""

    worker: _Worker
    status: Status
    reason: str = ""
    latencies_s: tuple[float, ...] = ()
    seconds: float = 0.0
    lost: bool = False
    """The worker crashed: what it ran before may have been the cause."""


class LocalRunner:
    """A `Runner` on this machine's CPU.

    A batch is built first, by all workers at once; then every kernel is timed in the process that built it while all
    other workers wait. A candidate that crashes or hangs costs its worker, which is replaced, and no other candidate:
    those built in the lost worker are built again. A worker that had run other candidates before it crashed proves
    nothing (one of them may have damaged its memory), so the candidate gets one more trial.

    `phases_s` of a batch's results add up to the wall-clock seconds of the batch.
    """

    def __init__(
        self,
        target: Target,
        threads: int,
        *,
        workers: int = 2,
        cache_state: str = "cold",
        build_timeout_s: float = 10.0,
        run_timeout_s: float = 10.0,
        reference_timeout_s: float = 120.0,
        memory_bytes: int = 6 << 30,
        space_entry: str = "calumma.operators:design_space",
    ) -> None:
        """Start the workers, without waiting for them.

        Args:
            target: what to compile for; this machine must be able to run it.
            threads: size of the thread pool a kernel runs on.
            workers: candidates built at the same time.
            cache_state: before every timed call, "cold": weights are in memory, everything else in L3; "warm":
                everything is in L3; "hot": everything is as the call before left it. May be set later, too.
            build_timeout_s: for scheduling and compiling one candidate.
            run_timeout_s: for timing, or verifying, one candidate.
            reference_timeout_s: for one run of an unscheduled function.
            memory_bytes: address space a worker may add to what TVM itself takes.
            space_entry: "module:function" that a worker calls as `function(prim_func, target, threads)` for the
                design space of a candidate.

        Raises:
            InputError: a setting is out of range.
        """
        self.cache_state = cache_state
        if threads < 1 or workers < 1:
            raise InputError(f"{threads} threads and {workers} workers: both must be at least 1")
        self.threads = threads
        self._n_workers = workers
        self._build_timeout_s = build_timeout_s
        self._run_timeout_s = run_timeout_s
        self._reference_timeout_s = reference_timeout_s
        self._directory = tempfile.TemporaryDirectory(prefix="calumma-measure-", ignore_cleanup_errors=True)
        self._settings = WorkerSettings(
            target, threads, space_entry, memory_bytes, extensions.extensions(), self._directory.name
        )
        self._closed = False
        self._spawned = 0
        self._workers: list[_Worker] = []
        self._server = ForkServer(self._settings)
        self._fill()

    def measure(
        self,
        candidates: Sequence[Candidate],
        best_s: Mapping[str, float] | None = None,
        on_result: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        """Measure a batch; see `core.protocols.Runner`.

        Raises:
            EnvironmentFault: workers cannot be started at all.
        """
        best = best_s or {}
        requests = [
            {"op": "run", "best_s": best.get(candidate.workload.hash), "cache_state": self.cache_state}
            for candidate in candidates
        ]
        return self._process(candidates, requests, "run", concurrent=False, on_result=on_result)

    def verify(self, candidates: Sequence[Candidate]) -> list[MeasureResult]:
        """Compare outputs with the unscheduled function's; see `core.protocols.Runner`.

        The reference is computed once per workload and kept as long as the runner. An output not written, a race that
        shows in two runs, and an error above `verification.tolerance` are all WRONG_OUTPUT.

        Raises:
            EnvironmentFault: workers cannot be started at all.
        """
        start = time.perf_counter()
        workloads = {candidate.workload.hash: candidate.workload for candidate in candidates}
        jobs = [
            _Job(index, workload.hash, {"op": "reference", "workload": asdict(workload)}, self._reference_timeout_s)
            for index, workload in enumerate(workloads.values())
        ]
        with self._abandoned_on_error():
            outcomes = self._perform(jobs, concurrent=True)
        missing = {
            workload: MeasureResult(outcome.status, reason=f"reference: {outcome.reason}")
            for workload, outcome in zip(workloads, (outcomes[job] for job in jobs), strict=True)
            if outcome.status != Status.OK
        }
        each_s = (time.perf_counter() - start) / max(len(candidates), 1)
        able = [candidate for candidate in candidates if candidate.workload.hash not in missing]
        verdicts = iter(self._process(able, [{"op": "verify"}] * len(able), "verify", concurrent=True))
        results = []
        for candidate in candidates:
            result = missing.get(candidate.workload.hash) or next(verdicts)
            phases = {**result.phases_s, "verify": result.phases_s.get("verify", 0.0) + each_s}
            results.append(MeasureResult(result.status, reason=result.reason, phases_s=phases))
        return results

    def close(self) -> None:
        """End all workers and remove what they kept. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            worker.connection.close()
        self._workers.clear()
        self._server.close()
        self._directory.cleanup()

    @property
    def cache_state(self) -> str:
        """State of the caches before every timed call. Setting one that is unknown raises InputError."""
        return self._cache_state

    @cache_state.setter
    def cache_state(self, state: str) -> None:
        if state not in CACHE_STATES:
            raise InputError(f"cache state {state!r} is unknown: one of {', '.join(CACHE_STATES)}")
        self._cache_state = state

    @property
    def server_pid(self) -> int:
        """Process of the fork server, the parent of all workers."""
        return self._server.pid

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _process(
        self,
        candidates: Sequence[Candidate],
        requests: Sequence[Mapping[str, Any]],
        phase: str,
        *,
        concurrent: bool,
        on_result: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        """Build all candidates, then send each its request; again for those that lost their worker without guilt."""
        results: dict[int, MeasureResult] = {}
        phases: list[dict[str, float]] = [{} for _ in candidates]
        keys = [candidate.key for candidate in candidates]
        suspects: set[int] = set()

        def settle(job: _Job, outcome: _Outcome, stage: str) -> None:
            if outcome.lost and job.index not in suspects and outcome.worker.touched != {job.key}:
                suspects.add(job.index)
                return
            spent = {**phases[job.index], stage: phases[job.index].get(stage, 0.0) + outcome.seconds}
            results[job.index] = MeasureResult(outcome.status, outcome.latencies_s, outcome.reason, spent)
            if on_result is not None:
                on_result(job.index, results[job.index])

        def built(job: _Job, outcome: _Outcome) -> None:
            if outcome.status != Status.OK:
                settle(job, outcome, "build")

        with self._abandoned_on_error():
            while pending := [index for index in range(len(candidates)) if index not in results]:
                builds = [
                    _Job(
                        index,
                        keys[index],
                        {"op": "build", "candidate": messages.encode_candidate(candidates[index])},
                        self._build_timeout_s,
                    )
                    for index in pending
                ]
                outcomes = self._timed(builds, phases, "build", concurrent=True, on_outcome=built)
                runs = [
                    _Job(job.index, job.key, requests[job.index], self._run_timeout_s, outcome.worker)
                    for job, outcome in outcomes.items()
                    if outcome.status == Status.OK and outcome.worker in self._workers
                ]
                self._timed(
                    runs,
                    phases,
                    phase,
                    concurrent=concurrent,
                    on_outcome=lambda job, outcome: settle(job, outcome, phase),
                )
        return [replace(results[i], phases_s=phases[i]) for i in range(len(candidates))]

    def _timed(
        self,
        jobs: Sequence[_Job],
        phases: list[dict[str, float]],
        phase: str,
        *,
        concurrent: bool,
        on_outcome: Callable[[_Job, _Outcome], None],
    ) -> dict[_Job, _Outcome]:
        """Perform jobs and charge the wall-clock seconds to them in proportion to what each took in its worker."""
        start = time.perf_counter()
        outcomes = self._perform(jobs, concurrent=concurrent, on_outcome=on_outcome)
        wall_s = time.perf_counter() - start
        total_s = sum(outcome.seconds for outcome in outcomes.values())
        for job, outcome in outcomes.items():
            share = outcome.seconds / total_s if total_s else 1 / len(outcomes)
            phases[job.index][phase] = phases[job.index].get(phase, 0.0) + wall_s * share
        return outcomes

    def _perform(
        self,
        jobs: Sequence[_Job],
        *,
        concurrent: bool,
        on_outcome: Callable[[_Job, _Outcome], None] = lambda job, outcome: None,
    ) -> dict[_Job, _Outcome]:
        """Send every job to a worker that is free, one at a time unless `concurrent`; wait for all outcomes.

        Jobs bound to a worker that is lost on the way have no outcome.
        """
        waiting = deque(jobs)
        outcomes: dict[_Job, _Outcome] = {}
        while True:
            self._fill()
            for worker in self._workers:
                busy = any(other.job for other in self._workers)
                if worker.job or worker.pid is None or (busy and not concurrent):
                    continue
                job = next((job for job in waiting if job.worker in (None, worker)), None)
                if job is not None:
                    waiting.remove(job)
                    self._start(worker, job)
            waiting = deque(job for job in waiting if job.worker is None or job.worker in self._workers)
            active = [worker for worker in self._workers if worker.job or (waiting and worker.pid is None)]
            if not active:
                return outcomes
            timeout = max(0.0, min(worker.deadline_s for worker in active) - time.monotonic())
            ready = multiprocessing.connection.wait([worker.connection for worker in active], timeout)
            known = len(outcomes)
            for worker in active:
                if worker.connection in ready:
                    self._receive(worker, outcomes)
                elif time.monotonic() >= worker.deadline_s:
                    self._expire(worker, outcomes)
            for job in list(outcomes)[known:]:
                on_outcome(job, outcomes[job])

    def _start(self, worker: _Worker, job: _Job) -> None:
        worker.job = job
        worker.touched.add(job.key)
        job.started_s = time.monotonic()
        worker.deadline_s = job.started_s + job.timeout_s
        with contextlib.suppress(OSError):  # a worker that died while idle is noticed at once by its closed connection
            messages.send(worker.connection, {**job.request, "id": job.index})

    def _receive(self, worker: _Worker, outcomes: dict[_Job, _Outcome]) -> None:
        try:
            message = messages.receive(worker.connection)
        except (EOFError, OSError):
            self._lose(worker, outcomes)
            return
        if worker.pid is None:
            worker.pid = message["pid"]
            return
        assert worker.job is not None
        outcomes[worker.job] = _Outcome(
            worker,
            Status(message["status"]),
            message["reason"],
            tuple(message.get("latencies_s", ())),
            message["seconds"],
        )
        worker.job = None

    def _lose(self, worker: _Worker, outcomes: dict[_Job, _Outcome]) -> None:
        """A worker closed its connection: it is dead, by its own doing."""
        job = worker.job
        if worker.pid is None:
            raise self._start_failure(worker)
        ending = _ending(self._discard(worker))
        if job is None:
            return
        detail = last_line(worker.log, "rror")
        reason = f"the worker ended by {ending} during {job.request['op']}" + (f": {detail}" if detail else "")
        seconds = time.monotonic() - job.started_s
        outcomes[job] = _Outcome(worker, Status.WORKER_LOST, reason, seconds=seconds, lost=True)

    def _expire(self, worker: _Worker, outcomes: dict[_Job, _Outcome]) -> None:
        """A worker is past its deadline: kill it."""
        job = worker.job
        if worker.pid is None or job is None:
            raise self._start_failure(worker)
        self._discard(worker)
        operation = job.request["op"]
        status = Status.BUILD_TIMEOUT if operation == "build" else Status.RUN_TIMEOUT
        reason = f"{operation} took longer than {job.timeout_s:g} s; the worker was killed"
        outcomes[job] = _Outcome(worker, status, reason, seconds=time.monotonic() - job.started_s)

    def _start_failure(self, worker: _Worker) -> Exception:
        log = worker.log if last_line(worker.log) else self._server.log
        return self._server.failure(log)

    def _fill(self) -> None:
        """Start as many workers as are missing."""
        if self._closed:
            raise InputError("this runner is closed: make a new one")
        if not self._server.alive and not self._workers and self._spawned:
            self._server.close()
            self._server = ForkServer(self._settings)
        while len(self._workers) < self._n_workers:
            log = Path(self._directory.name) / f"worker-{self._spawned}.log"
            self._spawned += 1
            self._workers.append(_Worker(self._server.spawn(log), log, time.monotonic() + _START_TIMEOUT_S))

    def _discard(self, worker: _Worker) -> int:
        """Kill a worker unless it is dead already; returns its exit status."""
        self._workers.remove(worker)
        worker.connection.close()
        assert worker.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)  # the server has not reaped it, so the number is still its own
        return self._server.reap(worker.pid)

    @contextlib.contextmanager
    def _abandoned_on_error(self) -> Iterator[None]:
        """On an exception (Ctrl-C above all) give up the workers that are at work; the runner stays usable."""
        try:
            yield
        except BaseException:
            for worker in [worker for worker in self._workers if worker.job]:
                self._discard(worker)
            raise


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
