"""What the records know of a model: what to look up for it, and what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calumma import tvm_compat
from calumma.core.protocols import Store
from calumma.core.values import MeasureRecord
from calumma.tuner.summary import tuned_lost

if TYPE_CHECKING:
    from calumma.pipeline.preparation import PreparedModel


@dataclass(frozen=True)
class Known:
    """What a store said of a model."""

    records: tuple[MeasureRecord, ...]
    """Of its workloads under its conditions, oldest first."""
    defaults_won: bool
    """Whether the model as a whole was better off with the defaults, so that no record is to be used."""

    @property
    def measured(self) -> frozenset[str]:
        """Workloads that were measured at all."""
        return frozenset(record.candidate.workload.hash for record in self.records)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all in it that a compilation could depend on."""
        rows = [
            [
                record.candidate.workload.hash,
                record.candidate.template,
                record.candidate.template_version,
                dict(record.candidate.config),
                str(record.result.status),
                record.result.latencies_s,
                sorted(record.result.phases_s),
            ]
            for record in self.records
        ]
        return hashlib.sha256(json.dumps([rows, self.defaults_won], sort_keys=True).encode()).hexdigest()


def question(prepared: PreparedModel) -> dict[str, Any]:
    """What to look up for a model, as JSON values."""
    return {
        "records": {
            "workloads": [task.workload.hash for task in prepared.tasks],
            "hardware": prepared.hardware.fingerprint,
            "threads": prepared.threads,
            "cache_state": prepared.cache_state,
            "toolchain": tvm_compat.toolchain(),
        },
        "model_hash": prepared.model_hash,
        "conditions": conditions(prepared),
    }


def look_up(store: Store, asked: Mapping[str, Any]) -> Known:
    """Ask a store a `question`. Raises DatabaseError."""
    records = store.records(**asked["records"])
    return Known(tuple(records), tuned_lost(store.sessions(), asked["model_hash"], asked["conditions"]))


def conditions(prepared: PreparedModel) -> dict[str, Any]:
    """What a session must have been tuned for to say something of this model, as it is kept with the session."""
    return {
        "threads": prepared.threads,
        "mcpu": prepared.hardware.mcpu,
        "tolerance": prepared.tolerance,
        "precision": prepared.precision,
    }
