"""What is known of a model beside itself: what to look up in records and measured limits, and what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calumma import tvm_compat
from calumma.core import hardware
from calumma.core.protocols import Store
from calumma.core.values import MeasureRecord
from calumma.tuner.summary import tuned_lost

if TYPE_CHECKING:
    from calumma.pipeline.preparation import PreparedModel


@dataclass(frozen=True)
class Known:
    """What a store said of a model, and what is measured of the machine."""

    records: tuple[MeasureRecord, ...]
    """Of its workloads under its conditions, oldest first."""
    defaults_won: bool
    """Whether the model as a whole was better off with the defaults, so that no record is to be used."""
    limits: str
    """The machine's limits, as they are kept: bounds come from them, and features of a prior."""

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
        return hashlib.sha256(json.dumps([rows, self.defaults_won, self.limits], sort_keys=True).encode()).hexdigest()


def question(prepared: PreparedModel) -> dict[str, Any]:
    """What to look up for a model, as JSON values."""
    from calumma.tasks.roofline import limits_name

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
        "limits": limits_name(prepared.target, prepared.threads),
    }


def look_up(store: Store, asked: Mapping[str, Any]) -> Known:
    """Answer a `question`. Raises DatabaseError."""
    records = store.records(**asked["records"])
    lost = tuned_lost(store.sessions(), asked["model_hash"], asked["conditions"])
    try:
        limits = hardware.limits_file(asked["limits"]).read_text(errors="replace")
    except OSError:  # none are kept, as for a CPU whose code cannot run here
        limits = ""
    return Known(tuple(records), lost, limits)


def conditions(prepared: PreparedModel) -> dict[str, Any]:
    """What a session must have been tuned for to say something of this model, as it is kept with the session."""
    return {
        "threads": prepared.threads,
        "mcpu": prepared.hardware.mcpu,
        "tolerance": prepared.tolerance,
        "precision": prepared.precision,
    }
