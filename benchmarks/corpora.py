"""Replay corpora: parts of design spaces of which every configuration was measured once and for all.

A corpus is one file, `corpora/NAME.npz`, arrays of integers and a header in JSON (nothing in it can run):

    header    JSON text: format, workload (hash and function), space, template and version, kept values by knob,
              default, hardware, threads, cache state, toolchain, date, statuses, reasons of failures
    indices   (M, D) configurations as indices of the kept values
    status    (M,) position in the header's statuses
    reason    (M,) position in the header's reasons
    latency   (M,) nanoseconds, median; 0 for a failure
    error     (M,) relative standard error of that median, 1e-4
    count     (M,) repetitions behind it
    build     (M,) units of 0.1 ms, wall-clock share of the batch
    run       (M,) likewise

How they are recorded (`record`): every configuration once, in random order, by the ordinary `LocalRunner` with cold
weights, in batches of 64; the best so far is passed on, so that a candidate more than 1.5 times slower is left after
three repetitions: nobody needs the exact latency of the slow ones, and half of the time would go into them. As the
fastest of thousands of noisy values is fast by luck, the fastest 64 are then measured twice more and verified; their
latency is the median over all passes. So is the default, from which every search starts: it is the first that is
measured, when the workers have just begun. The seconds charged in a replay are those of the first pass.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import output
from benchmarks.subspace import SubSpace, part_of
from calumma import tvm_compat
from calumma.core import archives
from calumma.core.errors import InputError
from calumma.core.protocols import Indices, Runner, Store
from calumma.core.rng import generator
from calumma.core.values import Candidate, Hardware, KnobValue, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import codec
from calumma.database.codec import MalformedError
from calumma.measure.timing import standard_error
from calumma.space import KnobSpace
from calumma.space.alternatives import ALGORITHM, AlternativesSpace

FORMAT = 1
FOLDER = Path(__file__).resolve().parent / "corpora"
SEED = 0
BATCH = 64
TOP = 64
PASSES = 2
"""Configurations measured again, and how often."""
CACHE_STATE = "cold"
_SPACES = {"template": "benchmarks.corpora:template_space", "generated": "benchmarks.corpora:generated_space"}
_TRANSIENT = (Status.BUILD_TIMEOUT, Status.RUN_TIMEOUT, Status.WORKER_LOST)
"""Failures that other work on the machine can cause: they count only when they happen twice."""
_SESSION = "corpus"
_AGAIN = "corpus-again"


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from."""

    model: str
    """In the suite."""
    task: str
    """The fused function's name in the model."""
    space: str = "template"
    """"template": what calumma would tune it in; "generated": MetaSchedule's space of the same function."""
    algorithms: tuple[str, ...] = ()
    """Of a template that has several; the part starts from the default of the first one."""


SOURCES: dict[str, Source] = {
    # Convolutions: 3x3 at 14x14 (direct; Winograd has too few configurations), with stride, 1x1, 1x1 with a residual,
    # 3 input channels.
    "conv3x3": Source("resnet18", "fused_conv2d6_add5_relu3", algorithms=("direct",)),
    "conv3x3_stride2": Source("resnet18", "fused_conv2d5_add5_relu3"),
    "conv1x1": Source("resnet18", "fused_conv2d7_add5"),
    "conv1x1_residual": Source("mobilenet_v2", "fused_conv2d14_add15_add17"),
    "conv_first": Source("mobilenet_v2", "fused_conv2d_add_maximum_minimum"),
    # MetaSchedule's own space of a convolution, a depthwise convolution, a matrix product.
    "generated_conv1x1": Source("resnet18", "fused_conv2d7_add5", "generated"),
    "generated_depthwise": Source("mobilenet_v2", "fused_depthwise_conv2d4_add9_maximum5_minimum5", "generated"),
    "generated_dense": Source("bert", "fused_dense_add1", "generated"),
    # Where these templates have room enough.
    "dense": Source("bert", "fused_dense_add1"),
    "batch_matmul": Source("bert", "fused_batch_matmul_divide"),
    "depthwise": Source("mobilenet_v2", "fused_depthwise_conv2d4_add9_maximum5_minimum5"),
    "conv3x3_alexnet": Source("bvlc_alexnet", "fused_conv2d4_add3_relu3"),
    "generated_batch_matmul": Source("bert", "fused_batch_matmul_divide", "generated"),
}
"""By name, the most wanted first: a recording that is stopped has those."""


@functools.lru_cache(maxsize=4)
def template_space(func: Any, hardware: Hardware, threads: int) -> KnobSpace:
    """The space that calumma tunes a function in; kept, since a worker asks for it once per candidate."""
    from calumma.space import design_space

    return design_space(func, hardware, threads)


@functools.lru_cache(maxsize=4)
def generated_space(func: Any, hardware: Hardware, threads: int) -> KnobSpace:
    """The space that MetaSchedule generates for a function, whether it has a template of its own or not."""
    from calumma.space.generated import GeneratedSpace

    return GeneratedSpace(func, hardware, threads)


def entry_of(source: Source) -> str:
    """What a runner's workers call for the space of a source's candidates."""
    return _SPACES[source.space]


@dataclass(frozen=True)
class Corpus:
    """A recording, as data; `space` makes it a design space again."""

    name: str
    source: Source
    workload: Workload
    template: str
    version: int
    values: Mapping[str, tuple[KnobValue, ...]]
    """Kept values by knob name, in the order of the columns of `indices`."""
    indices: Indices
    default: Indices
    """(D,) what the template would use without any measurement, when it was recorded."""
    results: tuple[MeasureResult, ...]
    """One per configuration; `latencies_s` holds the median alone."""
    errors: NDArray[np.float64]
    """(M,) relative standard error of the median."""
    counts: NDArray[np.int64]
    """(M,) repetitions behind it."""
    hardware: Hardware
    threads: int
    cache_state: str
    toolchain: str
    date: str

    @property
    def throughputs(self) -> NDArray[np.float64]:
        """(M,) calls per second, 0 for a failure."""
        return np.array([1 / result.latency_s for result in self.results])

    def space(self) -> SubSpace:
        """The recorded part of the design space.

        Raises:
            InputError: this version has another space for the workload.
        """
        tvm = tvm_compat.load()
        make = {"template": template_space, "generated": generated_space}[self.source.space]
        whole = make(tvm.ir.load_json(self.workload.text), self.hardware, self.threads)
        if (whole.template, whole.version) != (self.template, self.version):
            raise InputError(
                f"corpus {self.name} is of template {self.template} version {self.version}, here it is "
                f"{whole.template} version {whole.version}: record it again (--record {self.name})"
            )
        column = {name: self.indices[:, d] for d, name in enumerate(self.values)}
        absent = np.zeros(len(self.indices), dtype=np.int32)
        members = np.stack([column.get(knob.name, absent) for knob in whole.knobs], axis=1)
        default = dict(zip(self.values, self.default.tolist(), strict=True))
        return SubSpace(whole, self.values, members, [default.get(knob.name, 0) for knob in whole.knobs])

    def records(self, space: SubSpace) -> list[MeasureRecord]:
        """The recording as records, for a `ReplayRunner`."""
        return [
            MeasureRecord(
                Candidate(self.workload, self.template, self.version, space.decode(row)),
                result,
                self.hardware,
                self.threads,
                self.cache_state,
                self.toolchain,
                session=_SESSION,
                time_s=0.0,
            )
            for row, result in zip(space.members, self.results, strict=True)
        ]


# -- files ----------------------------------------------------------------------------------------


def save(corpus: Corpus, folder: Path = FOLDER) -> Path:
    """Write a corpus, replacing an older one as a whole; returns its file."""
    statuses = [status.value for status in Status]
    reasons = sorted({result.reason for result in corpus.results} | {""})
    header = {
        "format": FORMAT,
        "name": corpus.name,
        "source": asdict(corpus.source),
        "workload": asdict(corpus.workload),
        "template": corpus.template,
        "version": corpus.version,
        "values": [[name, list(values)] for name, values in corpus.values.items()],
        "default": corpus.default.tolist(),
        "hardware": asdict(corpus.hardware),
        "threads": corpus.threads,
        "cache_state": corpus.cache_state,
        "toolchain": corpus.toolchain,
        "date": corpus.date,
        "statuses": statuses,
        "reasons": reasons,
    }
    results = corpus.results
    arrays: dict[str, np.ndarray] = {
        "indices": corpus.indices.astype(np.uint16),
        "status": np.array([statuses.index(result.status.value) for result in results], dtype=np.uint8),
        "reason": np.array([reasons.index(result.reason) for result in results], dtype=np.uint16),
        "latency": np.array([round(1e9 * sum(result.latencies_s)) for result in results], dtype=np.uint32),
        "error": np.clip(np.rint(corpus.errors * 1e4), 0, 65535).astype(np.uint16),
        "count": np.clip(corpus.counts, 0, 65535).astype(np.uint16),
    }
    for phase in ("build", "run"):
        ticks = [round(1e4 * result.phases_s.get(phase, 0.0)) for result in results]
        arrays[phase] = np.array(ticks, dtype=np.uint32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{corpus.name}.npz"
    archives.save(path, header, arrays)
    return path


def load(name: str, folder: Path = FOLDER) -> Corpus:
    """Read a corpus.

    Raises:
        InputError: there is no such file, it is damaged, or of a later format.
    """
    path = folder / f"{name}.npz"
    if not path.exists():
        known = ", ".join(names(folder)) or "none"
        raise InputError(f"no corpus {name!r} in {folder} (there: {known}): record it with --record {name}")
    return archives.load(path, FORMAT, _restored, f"restore it, or record it again (--record {name})")


def names(folder: Path = FOLDER) -> list[str]:
    """Names of the corpora that are recorded, in the order of `SOURCES`, others last."""
    found = [path.stem for path in sorted(folder.glob("[!.]*.npz"))]
    order = list(SOURCES)
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def _restored(header: Mapping[str, Any], arrays: archives.Arrays) -> Corpus:
    """Build a corpus from unchecked contents. Raises what `archives.load` expects."""
    values = {str(name): tuple(kept) for name, kept in header["values"]}
    if not all(type(value) in (int, str, bool) for kept in values.values() for value in kept):
        raise MalformedError("a knob's value is no integer, text or boolean")
    indices = arrays["indices"].astype(np.int32)
    shape = (len(indices), len(values))
    if indices.shape != shape or any(arrays[key].shape != shape[:1] for key in _COLUMNS):
        raise MalformedError("the arrays differ in length")
    if len(indices) == 0 or (indices >= [len(kept) for kept in values.values()]).any():
        raise MalformedError("no configuration, or one outside of the kept values")
    if any(arrays[key].dtype.kind != "u" for key in (*_COLUMNS, "indices")):
        raise MalformedError("an array does not hold unsigned integers")
    default = np.array(header["default"], dtype=np.int32)
    if default.shape != shape[1:] or not (indices == default).all(axis=1).any():
        raise MalformedError("the default is not among the configurations")
    statuses = [Status(text) for text in header["statuses"]]
    reasons = [str(reason) for reason in header["reasons"]]
    results = []
    for status, reason, latency, build, run in zip(
        *(arrays[key].tolist() for key in ("status", "reason", "latency", "build", "run")), strict=True
    ):
        if status >= len(statuses) or reason >= len(reasons):
            raise MalformedError("a status or reason that the header does not list")
        if (statuses[status] is Status.OK) != (latency > 0):
            raise MalformedError(f"status {statuses[status]} with a latency of {latency} ns")
        latencies = (latency / 1e9,) if latency else ()
        phases = {"build": build / 1e4, "run": run / 1e4}
        results.append(MeasureResult(statuses[status], latencies, reasons[reason], phases))
    source = Source(**{**header["source"], "algorithms": tuple(header["source"].get("algorithms", ()))})
    if source.space not in _SPACES:
        raise MalformedError(f"a space of kind {source.space!r}")
    return Corpus(
        name=str(header["name"]),
        source=source,
        workload=codec.restore_workload(header["workload"]["hash"], header["workload"]["text"]),
        template=str(header["template"]),
        version=int(header["version"]),
        values=values,
        indices=indices,
        default=default,
        results=tuple(results),
        errors=arrays["error"] / 1e4,
        counts=arrays["count"].astype(np.int64),
        hardware=codec.restore_hardware(header["hardware"]),
        threads=int(header["threads"]),
        cache_state=str(header["cache_state"]),
        toolchain=str(header["toolchain"]),
        date=str(header["date"]),
    )


_COLUMNS = ("status", "reason", "latency", "error", "count", "build", "run")


# -- random draws ---------------------------------------------------------------------------------


def expected_best(throughputs: NDArray[np.float64], n: int) -> float:
    """Expected maximum of `n` distinct random draws, exactly, as a share of the maximum of all.

    Of M sorted values the i-th (from 0) is the maximum with probability C(i, n - 1) / C(M, n).
    """
    ordered = np.sort(throughputs)
    total = len(ordered)
    n = min(n, total)
    # log C(i, n-1) for all i by cumulative sums; C(i, n-1) = 0 for i < n - 1.
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    i = np.arange(n - 1, total)
    log_share = logs[i] - logs[n - 1] - logs[i - (n - 1)] - (logs[total] - logs[n] - logs[total - n])
    return float(np.sum(np.exp(log_share) * ordered[i]) / ordered[-1])


def median_draws(throughputs: NDArray[np.float64], share: float) -> int:
    """Distinct random draws after which one within `share` of the maximum was met in half of all cases."""
    good = int((throughputs >= share * throughputs.max()).sum())
    missing, n = 1.0, 0
    while missing > 0.5:
        missing *= (len(throughputs) - good - n) / (len(throughputs) - n)
        n += 1
    return n


DRAWS = (1, 4, 16, 64, 256)
_COLUMN_NAMES = (
    "corpus",
    "space",
    "configs",
    "failed",
    "best us",
    "default",
    *(f"best of {n}" for n in DRAWS),
    "draws to 95%",
    "to 99%",
    "s/config",
)


def describe(corpora: Sequence[Corpus]) -> str:
    """The table of the corpora with their random-draw curves, shares of the best configuration's throughput."""
    rows = []
    for corpus in corpora:
        throughputs = corpus.throughputs
        best = throughputs.max()
        default = int(np.flatnonzero((corpus.indices == corpus.default).all(axis=1))[0])
        seconds = np.mean([sum(result.phases_s.values()) for result in corpus.results])
        rows.append(
            [
                corpus.name,
                corpus.source.space,
                str(len(throughputs)),
                str(int((throughputs == 0).sum())),
                f"{1e6 / best:.1f}",
                f"{throughputs[default] / best:.0%}",
                *(f"{expected_best(throughputs, n):.1%}" for n in DRAWS),
                str(median_draws(throughputs, 0.95)),
                str(median_draws(throughputs, 0.99)),
                f"{seconds:.3f}",
            ]
        )
    return output.markdown(_COLUMN_NAMES, rows)


# -- recording ------------------------------------------------------------------------------------


def part(name: str, hardware: Hardware, threads: int) -> tuple[Workload, SubSpace]:
    """The workload of a corpus and the part of its space to be measured: always the same for one version of the code.

    Raises:
        InputError: no such corpus, its model has no such task, or its space is too small.
    """
    if name not in SOURCES:
        raise InputError(f"no corpus is called {name!r}: one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    found = _tasks(source.model, hardware)
    if source.task not in found:
        raise InputError(f"model {source.model} has no task {source.task!r}: one of {', '.join(found)}")
    workload, func = found[source.task]
    make = {"template": template_space, "generated": generated_space}[source.space]
    whole = make(func, hardware, threads)
    rng = generator(SEED, "corpus", name)
    if not source.algorithms:
        return workload, part_of(whole, rng)
    if not isinstance(whole, AlternativesSpace):
        raise InputError(f"corpus {name} is of some algorithms, here its template {whole.template} has only one")
    start = whole.default_of(source.algorithms[0])
    return workload, part_of(whole, rng, chosen={ALGORITHM: source.algorithms}, default=start)


@functools.cache
def _tasks(model: str, hardware: Hardware) -> dict[str, tuple[Workload, Any]]:
    """Workloads and functions of a model of the suite, by name of the fused function."""
    from benchmarks import suite
    from calumma.frontend.importer import import_model
    from calumma.frontend.lowering import lower
    from calumma.frontend.simplify import simplify
    from calumma.tasks import extract

    graph = lower(simplify(import_model(suite.path(model)).graph), hardware.lanes)
    found = extract(graph.mod, len(graph.inputs))
    return {task.name: (task.workload, found.functions[task.workload.hash]) for task in found.tasks}


def record(
    name: str,
    workload: Workload,
    space: SubSpace,
    runner: Runner,
    store: Store,
    hardware: Hardware,
    *,
    source: Source | None = None,
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
        hardware: what the runner runs on.
        source: kept in the corpus; `SOURCES[name]` if not given.
        limit: stop after so many measurements, for a trial.
        say: takes one line of progress per batch.
        clock: seconds, for rates.
    """
    rows = space.members[generator(SEED, "order", name).permutation(len(space.members))]
    first = (rows != space.default()).any(axis=1)  # the default leads: from the second batch on, slow ones stop early
    rows = np.concatenate([rows[~first], rows[first]])
    candidates = [Candidate(workload, space.template, space.version, space.decode(row)) for row in rows]
    conditions: dict[str, Any] = {
        "hardware": hardware.fingerprint,
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
                    hardware,
                    runner.threads,
                    runner.cache_state,
                    tvm_compat.toolchain(),
                    session=session,
                    strategy=_SESSION,
                    seed=SEED,
                )
                for candidate, result in zip(batch, results, strict=True)
            ]
        )

    def open_questions(measured: Mapping[str, Sequence[MeasureResult]]) -> list[Candidate]:
        return [c for c in candidates if not _is_settled(measured.get(c.key, ()))]

    measured = known(_SESSION)
    best_s = min((r.latency_s for results in measured.values() for r in results), default=float("inf"))
    start, done, failed = clock(), 0, 0
    while waiting := open_questions(measured)[: None if limit is None else limit - done]:
        batch = waiting[:BATCH]
        results = runner.measure(batch, {workload.hash: best_s} if best_s < float("inf") else None)
        keep(batch, results, _SESSION)
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
        source=source or SOURCES[name],
        workload=workload,
        template=space.template,
        version=space.version,
        values=space.values,
        indices=space.members,
        default=space.default(),
        results=tuple(result for result, _, _ in ordered),
        errors=np.array([error for _, error, _ in ordered]),
        counts=np.array([count for _, _, count in ordered]),
        hardware=hardware,
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
