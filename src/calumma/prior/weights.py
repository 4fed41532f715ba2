"""A trained prior as a file: tensors and JSON in one safetensors file, nothing that could run.

The JSON lies in the file's header under "calumma": what the prior was trained on and for, and a digest of the tensors.
Whatever does not fit is refused with one line: another format, other features, tensors that do not match the digest.
Whether a sound prior fits a machine and a template is asked later (`Prior.mismatch`, `Prior.family`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.files import replacing
from calumma.core.values import Hardware
from calumma.database.codec import restore_hardware
from calumma.prior import features
from calumma.prior.forest import Forest
from calumma.tasks.roofline import MachineLimits

FORMAT = "calumma-prior"
VERSION = 1
SUFFIX = ".safetensors"
_MARK = "calumma"
NEVER = 100.0
"""A least gain that no configuration reaches."""

Tensors = dict[str, NDArray[Any]]


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
    caution: float
    """Deviations that a predicted gain is lowered by before it counts."""
    least_gain: float
    """What must be left for a configuration to take the default's place: what paid on workloads held out."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs of both."""
        return self.order.columns


@dataclass(frozen=True)
class Prior:
    """Trained weights and where they come from."""

    name: str
    created: str
    """UTC, ISO 8601."""
    hardware: Hardware
    """Of the measurements."""
    toolchain: str
    limits: Mapping[int, MachineLimits]
    """Threads of the measurements -> what the machine could do with so many."""
    data: Mapping[str, Any]
    """Of the data set: digest, rows, workloads (their hashes), cache states, networks."""
    settings: Mapping[str, Any]
    """Of the training, the seed among them."""
    metrics: Mapping[str, Any]
    """On workloads held out in turns, by template."""
    families: Mapping[str, Family]
    """By template."""

    def mismatch(self, hardware: Hardware, threads: int) -> str:
        """Why the prior says nothing about a machine, one clause; empty if it does."""
        if hardware.fingerprint != self.hardware.fingerprint:
            return (
                f"it was trained on {self.hardware.cpu_model} ({self.hardware.mcpu}, {self.hardware.fingerprint}), "
                f"this is {hardware.cpu_model} ({hardware.mcpu}, {hardware.fingerprint})"
            )
        if threads not in self.limits:
            return f"it was trained with {_listed(self.limits)} threads, not with {threads}"
        return ""

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits over all tensors."""
        return _digest(_tensors(self))


def save(prior: Prior, path: Path) -> None:
    """Write a prior; an older file is replaced as a whole."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "features": features.VERSION,
        "name": prior.name,
        "created": prior.created,
        "hardware": asdict(prior.hardware),
        "toolchain": prior.toolchain,
        "limits": [asdict(limits) for limits in prior.limits.values()],
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
                "caution": family.caution,
                "least_gain": family.least_gain,
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
        numbers = {name: float(entry[name]) for name in ("spread", "level_error", "caution", "least_gain")}
        if not all(math.isfinite(value) and value >= 0 for value in numbers.values()):
            raise ValueError(f"family {template} has {numbers}")
        order, level = (_forest(columns, f"{template}.{kind}", tensors) for kind in ("order", "level"))
        families[template] = Family(template, int(entry["version"]), order, level, **numbers)
    kinds = {entry.name: entry.type for entry in fields(MachineLimits)}
    limits = [MachineLimits(**{name: entry[name] for name in kinds}) for entry in header["limits"]]
    return Prior(
        name=str(header["name"]),
        created=str(header["created"]),
        hardware=restore_hardware(header["hardware"]),
        toolchain=str(header["toolchain"]),
        limits={int(entry.threads): entry for entry in limits},
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
