"""What runner, fork server and workers say to each other: JSON over Unix sockets, nothing that runs on being read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from calumma.core.values import Candidate, Workload
from calumma.target import Target


@dataclass(frozen=True)
class WorkerSettings:
    """Everything a worker is told once, when its fork server starts."""

    target: Target
    threads: int
    space_entry: str
    memory_bytes: int
    extensions: tuple[str, ...]
    """Modules to import before anything is built: they register what candidates may need."""
    directory: str
    """Where reference outputs and logs are kept while the runner lives."""

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> WorkerSettings:
        fields = json.loads(text)
        return cls(
            **{**fields, "target": Target.from_fields(fields["target"]), "extensions": tuple(fields["extensions"])}
        )


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    """Send one message. Raises OSError when the other side is gone."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """Wait for one message. Raises EOFError or OSError when the other side is gone."""
    return json.loads(connection.recv_bytes())


def encode_candidate(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate), "config": dict(candidate.config)}


def decode_candidate(fields: Mapping[str, Any]) -> Candidate:
    return Candidate(**{**fields, "workload": Workload(**fields["workload"])})
