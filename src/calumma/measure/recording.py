"""Recordings: parts of design spaces of which every configuration was measured once and for all, to be replayed.

A recording (a corpus) is one file, `NAME.npz`, arrays of integers and a header in JSON (nothing in it can run):

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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.core import archives
from calumma.core.errors import InputError
from calumma.core.protocols import Indices, Template
from calumma.core.values import Candidate, Hardware, KnobValue, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import codec
from calumma.database.codec import MalformedError
from calumma.space.subspace import SubSpace
from calumma.target import Target

FORMAT = 1
SESSION = "corpus"
"""Session of the records of a first pass."""
_SPACES = {
    "template": "calumma.measure.recording:template_space",
    "generated": "calumma.measure.recording:generated_space",
}
"""Kind of space -> what a runner's workers call for it."""
_COLUMNS = ("status", "reason", "latency", "error", "count", "build", "run")


@dataclass(frozen=True)
class RecordedKernel:
    """Where a corpus comes from."""

    model: str
    """Its name."""
    task: str
    """The fused function's name in the model."""
    space: str = "template"
    """"template": what calumma would tune it in; "generated": MetaSchedule's space of the same function."""
    algorithms: tuple[str, ...] = ()
    """Of a template that has several; the part starts from the default of the first one."""


def template_space(func: Any, target: Target, threads: int) -> Template:
    """The space that calumma tunes a function in."""
    from calumma.operators import design_space

    return design_space(func, target, threads)


def generated_space(func: Any, target: Target, threads: int) -> Template:
    """The space that MetaSchedule generates for a function, whether it has a template of its own or not."""
    from calumma.space.generated import GeneratedSpace

    return GeneratedSpace(func, target, threads)


def entry_of(source: RecordedKernel) -> str:
    """What a runner's workers call for the space of a source's candidates."""
    return _SPACES[source.space]


@dataclass(frozen=True)
class Corpus:
    """A recording, as data; `space` makes it a design space again."""

    name: str
    source: RecordedKernel
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
        whole = make(tvm.ir.load_json(self.workload.text), tvm_compat.target_of(self.hardware), self.threads)
        if (whole.template, whole.version) != (self.template, self.version):
            raise InputError(
                f"corpus {self.name} is of template {self.template} version {self.version}, here it is "
                f"{whole.template} version {whole.version}: record it again"
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
                session=SESSION,
                time_s=0.0,
            )
            for row, result in zip(space.members, self.results, strict=True)
        ]


# -- files ----------------------------------------------------------------------------------------


def save(corpus: Corpus, folder: Path) -> Path:
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


def load(name: str, folder: Path) -> Corpus:
    """Read a corpus.

    Raises:
        InputError: there is no such file, it is damaged, or of a later format.
    """
    path = folder / f"{name}.npz"
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in folder.glob("[!.]*.npz"))) or "none"
        raise InputError(f"no corpus {name!r} in {folder} (there: {known}): record it first")
    return archives.load(path, FORMAT, _restored, "restore it, or record it again")


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
    source = RecordedKernel(**{**header["source"], "algorithms": tuple(header["source"].get("algorithms", ()))})
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
