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

from calumma.core.errors import InputError
from calumma.core.files import replacing
from calumma.core.values import Hardware
from calumma.database.codec import restore_hardware
from calumma.prior import features
from calumma.prior.mlp import Ensemble, Floats
from calumma.tasks.roofline import MachineLimits

FORMAT = "calumma-prior"
VERSION = 1
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Family:
    """What is known of one template."""

    template: str
    version: int
    ensemble: Ensemble
    """Predicts log(latency / bound)."""
    spread: float
    """Standard error of a predicted difference, per standard deviation of the members; from workloads held out."""
    level_error: float
    """Standard deviation of log(predicted / true latency) of a workload as a whole."""
    ridge: float
    """Regularisation of the few-shot adaptation; see `few_shot`."""


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
                "columns": list(family.ensemble.columns),
                "layers": len(family.ensemble.weights),
                "spread": family.spread,
                "level_error": family.level_error,
                "ridge": family.ridge,
            }
            for family in prior.families.values()
        ],
        "digest": prior.digest,
    }
    with replacing(path) as out:
        out.write(safetensors.numpy.save(_tensors(prior), {"calumma": json.dumps(header, sort_keys=True)}))


def load(path: Path) -> Prior:
    """Read a prior.

    Raises:
        InputError: there is no such file, or it is damaged, of another format, or made for other features.
    """
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            header = json.loads((file.metadata() or {})["calumma"])
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


def _tensors(prior: Prior) -> dict[str, Floats]:
    tensors: dict[str, Floats] = {}
    for template, family in prior.families.items():
        ensemble = family.ensemble
        tensors |= {f"{template}.mean": ensemble.mean, f"{template}.scale": ensemble.scale}
        for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
            tensors |= {f"{template}.weight{layer}": weight, f"{template}.bias{layer}": bias}
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


def _restored(header: Mapping[str, Any], tensors: Mapping[str, Floats]) -> Prior:
    """Build a prior from contents whose digest was checked. Raises what `load` catches."""
    families = {}
    for entry in header["families"]:
        template, layers = str(entry["template"]), int(entry["layers"])
        columns = tuple(map(str, entry["columns"]))
        ensemble = Ensemble(
            columns,
            tensors[f"{template}.mean"],
            tensors[f"{template}.scale"],
            tuple(tensors[f"{template}.weight{layer}"] for layer in range(layers)),
            tuple(tensors[f"{template}.bias{layer}"] for layer in range(layers)),
        )
        _check(ensemble)
        numbers = {name: float(entry[name]) for name in ("spread", "level_error", "ridge")}
        if not all(math.isfinite(value) and value > 0 for value in numbers.values()):
            raise ValueError(f"family {template} has {numbers}")
        families[template] = Family(template, int(entry["version"]), ensemble, **numbers)
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


def _check(ensemble: Ensemble) -> None:
    """Whether shapes fit and numbers are finite. Raises ValueError."""
    width = len(ensemble.columns)
    if ensemble.mean.shape != (width,) or ensemble.scale.shape != (width,) or not (ensemble.scale > 0).all():
        raise ValueError(f"the normalisation does not fit {width} columns")
    if not np.isfinite(ensemble.mean).all() or np.isnan(ensemble.scale).any():
        raise ValueError("the normalisation is not finite")
    members = len(ensemble.weights[0])
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        if weight.ndim != 3 or weight.shape[:2] != (members, width) or bias.shape != (members, 1, weight.shape[2]):
            raise ValueError(f"a layer of shapes {weight.shape} and {bias.shape} does not follow one of width {width}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("weights that are not finite")
        width = weight.shape[2]
    if width != 1:
        raise ValueError(f"{width} outputs, expected 1")


def _digest(tensors: Mapping[str, Floats]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(json.dumps([name, list(tensors[name].shape), str(tensors[name].dtype)]).encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()[:16]


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, sorted(numbers)))
