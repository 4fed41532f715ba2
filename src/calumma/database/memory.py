"""A store in this process: for tests, replay and runs that should leave nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from calumma.core.errors import DatabaseError, InternalError
from calumma.core.values import MeasureRecord, Session, Workload
from calumma.database import codec


class MemoryStore:
    """A `Store` that ends with the process. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workloads: dict[str, Workload] = {}
        self._records: list[tuple[str, MeasureRecord]] = []  # with the fingerprint of the hardware
        self._sessions: dict[str, dict[str, Any]] = {}
        self._closed = False

    def append(self, records: Sequence[MeasureRecord]) -> None:
        """Store all records or none. The text first stored under a workload's hash stays.

        Raises:
            InternalError: a record breaks the schema.
        """
        accepted = [codec.checked(record) for record in records]
        with self._lock:
            self._check_open()
            for record in accepted:
                candidate = record.candidate
                workload = self._workloads.setdefault(candidate.workload.hash, candidate.workload)
                shared = replace(record, candidate=replace(candidate, workload=workload))
                self._records.append((codec.fingerprint(record.hardware), shared))

    def records(
        self,
        *,
        workloads: Iterable[str] | None = None,
        hardware: str | None = None,
        threads: int | None = None,
        cache_state: str | None = None,
        toolchain: str | None = None,
        session: str | None = None,
    ) -> list[MeasureRecord]:
        """Return the records that match every given filter, oldest first."""
        wanted = None if workloads is None else frozenset(workloads)
        with self._lock:
            self._check_open()
            found = [
                record
                for fingerprint, record in self._records
                if (wanted is None or record.candidate.workload.hash in wanted)
                and hardware in (None, fingerprint)
                and threads in (None, record.threads)
                and cache_state in (None, record.cache_state)
                and toolchain in (None, record.toolchain)
                and session in (None, record.session)
            ]
        return sorted(found, key=lambda record: record.time_s)

    def start_session(self, model: str, model_hash: str, options: Mapping[str, Any]) -> str:
        """Store the start of a tuning session; returns its id."""
        values = codec.new_session(model, model_hash, options)
        with self._lock:
            self._check_open()
            self._sessions[values["id"]] = values
        return str(values["id"])

    def finish_session(self, session: str, summary: Mapping[str, Any]) -> None:
        """Store the end of a session. Raises DatabaseError if there is none of that id, or it is finished."""
        text = codec.object_text("summary of a session", summary)
        with self._lock:
            self._check_open()
            values = self._sessions.get(session)
            if values is None or values["finished_s"] is not None:
                raise DatabaseError(
                    f"memory: no unfinished session {session!r}: give the id that start_session returned"
                )
            values.update(finished_s=time.time(), summary=text)

    def sessions(self) -> list[Session]:
        """Return all sessions, oldest first."""
        with self._lock:
            self._check_open()
            found = [codec.restore_session(values) for values in self._sessions.values()]
        return sorted(found, key=lambda session: (session.started_s, session.id))

    @property
    def damaged(self) -> int:
        """Number of rows left out because they break the schema: always 0, nothing from outside gets in."""
        return 0

    def close(self) -> None:
        """Forget everything. Idempotent."""
        with self._lock:
            self._closed = True
            self._records, self._sessions, self._workloads = [], {}, {}

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("memory: the store is closed: make a new one")
