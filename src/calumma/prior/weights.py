"""A trained prior as a file: tensors and JSON in one safetensors file, nothing that could run.

The JSON lies in the file's header under "calumma": what the prior was trained on and for, and a digest of the tensors.
Whatever does not fit is refused with one line: another format, other features, tensors that do not match the digest.
Whether a sound prior fits a machine is asked later (`Prior.knows`, `Prior.mismatch`).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.files import replacing
from calumma.core.values import Hardware
from calumma.prior import features, machines
from calumma.prior.forest import Forest
from calumma.prior.machines import Machine
from calumma.tasks.roofline import MachineLimits

FORMAT = "calumma-prior"
VERSION = 2
SUFFIX = ".safetensors"
_MARK = "calumma"
NEVER = 100.0
"""A least gain that no configuration reaches."""
UNSEEN, ADAPTED = "unseen", "adapted"
"""What stands in `Family.trusts` for a CPU that the prior has not seen, and for one that measurements moved it to."""

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Trust:
    """When a configuration takes the default's place: what paid on workloads held out."""

    caution: float = 1.0
    """Deviations that a predicted gain is lowered by before it counts."""
    least_gain: float = NEVER
    """What must be left of it."""

    @property
    def any(self) -> bool:
        """Whether anything ever takes the default's place."""
        return self.least_gain < NEVER


@dataclass(frozen=True)
class Family:
    """What is known of one template."""

    template: str
    version: int
    order: Forest
    """Predicts log(latency / bound) of a configuration, less the workload's level."""
    level: Forest
    """Predicts the level: how fast the workload is as a whole."""
    spread: float
    """Standard error of a predicted difference, per standard deviation of the members; from workloads held out."""
    level_error: float
    """Standard deviation of log(predicted / true latency) of a workload as a whole."""
    trusts: Mapping[str, Trust]
    """By CPU and threads (`machines.place`); of `UNSEEN` and `ADAPTED`: of CPUs left out whole in turns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs of both."""
        return self.order.columns

    def trust(self, place: str) -> Trust:
        """When a configuration takes the default's place; never where that was not shown to pay."""
        return self.trusts.get(place, Trust())


@dataclass(frozen=True)
class Prior:
    """Trained weights and where they come from."""

    name: str
    created: str
    """UTC, ISO 8601."""
    trained_on: tuple[Machine, ...]
    """The CPUs of the measurements."""
    toolchain: str
    data: Mapping[str, Any]
    """Of the data set: digest, rows, workloads (their hashes), cache states, networks, cpus (rows and workloads of
    each)."""
    settings: Mapping[str, Any]
    """Of the training, the seed among them."""
    metrics: Mapping[str, Any]
    """On workloads held out in turns, by template."""
    families: Mapping[str, Family]
    """By template."""
    moved_to: tuple[Machine, ...] = ()
    """CPUs that a few measurements moved it to."""
    moved_rows: int = 0
    """Of these measurements."""

    def limits(self, hardware: Hardware, threads: int) -> MachineLimits | None:
        """What so many threads of a CPU could do when they were measured; None if they were not."""
        for machine in (*self.moved_to, *self.trained_on):
            if machine.hardware.fingerprint == hardware.fingerprint and threads in machine.limits:
                return machine.limits[threads]
        return None

    def has_moved(self, hardware: Hardware, threads: int) -> bool:
        """Whether it was moved to a CPU by a few measurements."""
        return any(
            machine.hardware.fingerprint == hardware.fingerprint and threads in machine.limits
            for machine in self.moved_to
        )

    def mismatch(self, hardware: Hardware, threads: int) -> str:
        """Why the prior says nothing about a CPU that it has not seen, or has with other numbers of threads, one
        clause; empty if the templates that beat their defaults on CPUs left out in turns are to be asked."""
        if self.limits(hardware, threads) is not None:
            return ""
        counts = {count for machine in self.trained_on for count in machine.limits}
        widths = {machine.hardware.vector_bits for machine in self.trained_on}
        if threads not in counts:
            return f"it was trained with {_listed(counts)} threads, not with {threads}"
        cpus = ", ".join(machine.label for machine in self.trained_on)
        unseen = f"it was trained on {cpus}, this is {Machine(hardware, {}).label}"
        if hardware.vector_bits not in widths:
            return f"{unseen}, and of vectors of {hardware.vector_bits} bits it has seen none"
        if len(self.trained_on) < 2:
            return f"{unseen}, and what holds for one CPU need not hold for another"
        if not self.beats_defaults:
            return f"{unseen}, and leaving one of its CPUs out in turns it did not beat the defaults"
        return ""

    @property
    def beats_defaults(self) -> tuple[str, ...]:
        """Templates for which it beat the defaults on CPUs that were left out in turns."""
        return tuple(template for template, family in self.families.items() if family.trust(UNSEEN).any)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits over all tensors."""
        return _digest(_tensors(self))


def now() -> str:
    """As a prior says when it was made."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def save(prior: Prior, path: Path) -> None:
    """Write a prior; an older file is replaced as a whole."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "features": features.VERSION,
        "name": prior.name,
        "created": prior.created,
        "trained_on": [machines.plain(machine) for machine in prior.trained_on],
        "moved_to": [machines.plain(machine) for machine in prior.moved_to],
        "moved_rows": prior.moved_rows,
        "toolchain": prior.toolchain,
        "data": dict(prior.data),
        "settings": dict(prior.settings),
        "metrics": dict(prior.metrics),
        "families": [
            {
                "template": family.template,
                "version": family.version,
                "columns": list(family.columns),
                "spread": family.spread,
                "level_error": family.level_error,
                "trusts": {place: asdict(trust) for place, trust in family.trusts.items()},
            }
            for family in prior.families.values()
        ],
        "digest": prior.digest,
    }
    with replacing(path) as out:
        out.write(safetensors.numpy.save(_tensors(prior), {_MARK: json.dumps(header, sort_keys=True)}))


def is_prior(path: Path) -> bool:
    """Whether a file bears the mark of a prior of any version, sound or not. Raises OSError."""
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            return _MARK in (file.metadata() or {})
    except safetensors.SafetensorError:
        return False


def load(path: Path) -> Prior:
    """Read a prior.

    Raises:
        InputError: there is no such file, or it is damaged, of another format, or made for other features.
    """
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            header = json.loads((file.metadata() or {})[_MARK])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        kind = (header["format"], header["version"], header["features"])
        if kind != (FORMAT, VERSION, features.VERSION):
            raise ValueError(
                f"it is {kind[0]} version {kind[1]} for features {kind[2]}, expected {FORMAT} version {VERSION} for "
                f"features {features.VERSION}"
            )
        if _digest(tensors) != header["digest"]:
            raise ValueError("its tensors are not those that were saved")
        return _restored(header, tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as fault:
        reason = " ".join(str(fault).split())[:240]
        raise InputError(
            f"prior {path} cannot be used ({type(fault).__name__}: {reason}): learn it again with calumma learn, or "
            "delete the file"
        ) from fault


def _tensors(prior: Prior) -> Tensors:
    tensors: Tensors = {}
    for template, family in prior.families.items():
        for kind, forest in (("order", family.order), ("level", family.level)):
            tensors[f"{template}.{kind}.features"] = np.ascontiguousarray(forest.features, np.int32)
            tensors[f"{template}.{kind}.thresholds"] = np.ascontiguousarray(forest.thresholds, np.float32)
            tensors[f"{template}.{kind}.leaves"] = np.ascontiguousarray(forest.leaves, np.float32)
    return tensors


def _restored(header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Prior:
    """Build a prior from contents whose digest was checked. Raises what `load` catches."""
    families = {}
    for entry in header["families"]:
        template = str(entry["template"])
        columns = tuple(map(str, entry["columns"]))
        numbers = {name: float(entry[name]) for name in ("spread", "level_error")}
        trusts = {
            str(place): Trust(float(values["caution"]), float(values["least_gain"]))
            for place, values in entry["trusts"].items()
        }
        checked = [*numbers.values(), *(v for trust in trusts.values() for v in (trust.caution, trust.least_gain))]
        if not all(math.isfinite(value) and value >= 0 for value in checked):
            raise ValueError(f"family {template} has {numbers}, {trusts}")
        order, level = (_forest(columns, f"{template}.{kind}", tensors) for kind in ("order", "level"))
        families[template] = Family(template, int(entry["version"]), order, level, **numbers, trusts=trusts)
    return Prior(
        name=str(header["name"]),
        created=str(header["created"]),
        trained_on=tuple(map(machines.restore, header["trained_on"])),
        moved_to=tuple(map(machines.restore, header["moved_to"])),
        moved_rows=int(header["moved_rows"]),
        toolchain=str(header["toolchain"]),
        data=dict(header["data"]),
        settings=dict(header["settings"]),
        metrics=dict(header["metrics"]),
        families=families,
    )


def _forest(columns: tuple[str, ...], name: str, tensors: Mapping[str, NDArray[Any]]) -> Forest:
    """Build a forest whose shapes fit and whose numbers make sense. Raises ValueError or KeyError."""
    features, thresholds, leaves = (tensors[f"{name}.{part}"] for part in ("features", "thresholds", "leaves"))
    kinds = [features.dtype, thresholds.dtype, leaves.dtype]
    if kinds != [np.int32, np.float32, np.float32] or leaves.ndim != 3 or 0 in leaves.shape:
        raise ValueError(f"forest {name} is of {kinds} and {leaves.ndim} dimensions")
    members, trees, ends = leaves.shape
    if ends < 2 or ends & (ends - 1) or not features.shape == thresholds.shape == (members, trees, ends - 1):
        raise ValueError(
            f"forest {name} has questions {features.shape} and {thresholds.shape} for leaves {leaves.shape}"
        )
    if features.min() < 0 or features.max() >= len(columns):
        raise ValueError(f"forest {name} asks for columns beyond its {len(columns)}")
    if np.isnan(thresholds).any() or not np.isfinite(leaves).all():
        raise ValueError(f"forest {name} has values that are no numbers")
    return Forest(columns, features, thresholds, leaves)


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(json.dumps([name, list(tensors[name].shape), str(tensors[name].dtype)]).encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()[:16]


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, sorted(numbers)))
