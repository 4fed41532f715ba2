"""The frozen values that travel between rooms and processes."""

from __future__ import annotations

import enum
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


KnobValue = int | str | bool
"""A knob's value: a JSON scalar."""


@dataclass(frozen=True)
class Hardware:
    """The CPU that code is compiled for, and what decides whether a record holds on another machine."""

    cpu_model: str
    """Name the CPU gives itself, for people ("AMD EPYC")."""
    mcpu: str
    """LLVM's name of the CPU ("znver5")."""
    vector_bits: int
    """Width of the widest float vector in bits: 128, 256 or 512."""
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    """Data cache sizes; L1 and L2 per core, L3 shared."""
    cores: int
    """Physical cores of the machine."""

    @property
    def lanes(self) -> int:
        """float32 lanes of one vector."""
        return self.vector_bits // 32

    @property
    def fingerprint(self) -> str:
        """12 hex digits over CPU model, features and cache sizes; records are valid only under the same one."""
        return _digest([self.cpu_model, self.mcpu, self.vector_bits, self.l1_bytes, self.l2_bytes, self.l3_bytes])


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of an input or output of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the type ("float32")."""
    bounded_axes: tuple[int, ...] = ()
    """Axes, ascending, whose extent every run decides anew; `shape` has the largest that it can be. Outputs alone."""


WEIGHTS = "calumma.weights"
"""Attribute of a workload's function: positions of the arguments that are weights of the model."""
MAGNITUDES = "calumma.magnitudes"
"""Attribute of a workload's function: by position, the largest magnitude of the random values that its arguments get
when it is measured or verified; 1 for each without it."""


@dataclass(frozen=True)
class Knob:
    """One named choice of a design space."""

    name: str
    values: tuple[KnobValue, ...]
    neutral: int = 0
    """Index that a configuration recorded before this knob existed takes."""


@dataclass(frozen=True)
class Repacking:
    """How a weight that the model holds in one form becomes what a scheduled function takes."""

    name: str
    """Equal names mean equal results."""
    apply: Callable[[NDArray[Any]], NDArray[Any]]
    """The weight as the workload takes it -> as the scheduled function does."""


@dataclass(frozen=True)
class Workload:
    """A normalised PrimFunc: what is computed, whatever the schedule."""

    hash: str
    """16 hex digits: TVM's structural hash of the function without its name."""
    text: str
    """The function as TVM's JSON (`tvm.ir.save_json`)."""


@dataclass(frozen=True)
class Task:
    """A workload in a model, with what is known about it before anything is measured."""

    workload: Workload
    name: str
    """Name of the fused function in the model, for people."""
    weight: int
    """Times the model calls it."""
    anchor: str
    """Kind of the dominating operator; it chooses the template ("conv2d", "dense", ...)."""
    flops: float
    """Floating-point operations of one call."""
    size_bytes: float
    """Bytes of all its inputs and outputs, each counted once."""
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and dtype of every argument, outputs last."""

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in flops per byte."""
        return self.flops / max(self.size_bytes, 1.0)


@dataclass(frozen=True)
class Candidate:
    """A configuration to be measured, complete in itself: a worker needs nothing else."""

    workload: Workload
    template: str
    template_version: int
    config: Mapping[str, KnobValue]
    """Knob name -> value."""

    @property
    def key(self) -> str:
        """Identity of the candidate: same workload, template, version and config."""
        return _digest([self.workload.hash, self.template, self.template_version, config_text(self.config)])


class Status(enum.StrEnum):
    """How a trial ended."""

    OK = "ok"
    INVALID_CONFIG = "invalid_config"
    BUILD_ERROR = "build_error"
    BUILD_TIMEOUT = "build_timeout"
    RUN_ERROR = "run_error"
    RUN_TIMEOUT = "run_timeout"
    WRONG_OUTPUT = "wrong_output"
    WORKER_LOST = "worker_lost"


@dataclass(frozen=True)
class MeasureResult:
    """What a runner says of one candidate."""

    status: Status
    latencies_s: tuple[float, ...] = ()
    """One value per repetition; each is the mean of enough back-to-back calls. Empty unless status is OK."""
    reason: str = ""
    """Why it failed, one line; empty when OK."""
    phases_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase: "build", "run", "verify"."""

    @property
    def latency_s(self) -> float:
        """Median latency in seconds; infinity when the trial failed."""
        return median(self.latencies_s) if self.latencies_s else float("inf")


@dataclass(frozen=True)
class MeasureRecord:
    """One measurement as it is stored, for ever; failures included."""

    candidate: Candidate
    result: MeasureResult
    hardware: Hardware
    threads: int
    cache_state: str
    """Before every timed call: "cold": weights in memory, the rest in L3; "warm": all in L3; "hot": as it comes."""
    toolchain: str
    """Versions that decide the generated code ("tvm 0.27.0.post1, llvm 22")."""
    session: str = ""
    strategy: str = ""
    seed: int = 0
    time_s: float = field(default_factory=time.time)
    """Seconds since the epoch when the record was made."""


COLLECTION = "collect"
"""`options["kind"]` of a session that measured many workloads to learn from; one that tuned a model has no kind."""


@dataclass(frozen=True)
class Session:
    """One tuning run over one model, or one collection of measurements, as a store keeps it."""

    id: str
    """Unique in its store, sorts by start: "20260131-120000-1f0c92ab" (UTC)."""
    model: str
    """Name of the model, for people."""
    model_hash: str
    started_s: float
    """Seconds since the epoch."""
    options: Mapping[str, Any]
    """What was asked for, as a JSON object."""
    finished_s: float | None = None
    """Seconds since the epoch; None while the session runs, and for ever if it was killed."""
    summary: Mapping[str, Any] | None = None
    """What came out, as a JSON object; None until the session is finished."""


@dataclass(frozen=True)
class Budget:
    """What a tuning session may spend; whichever limit comes first ends it. None means no limit."""

    seconds: float | None = None
    trials: int | None = None


def config_text(config: Mapping[str, KnobValue]) -> str:
    """Return the canonical JSON of a configuration: sorted keys, no spaces."""
    return json.dumps(dict(config), sort_keys=True, separators=(",", ":"))


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
