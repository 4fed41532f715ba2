"""A store in an SQLite file, through SQLAlchemy Core.

Every write is one `BEGIN IMMEDIATE` transaction, so a batch is stored whole or not at all, and writers of several
processes queue for the file instead of failing half-way. Readers see one snapshot and never wait for a writer (WAL).

A row that breaks the schema is left out, counted in `SqlStore.damaged` and warned of once: one bad row must not cost
the rest. A file that SQLite itself cannot read is a DatabaseError.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from calumma.core.errors import DatabaseError, InternalError
from calumma.core.values import Hardware, MeasureRecord, Session, Workload, config_text
from calumma.database import codec
from calumma.database.codec import MalformedError

SCHEMA_VERSION = 1

_MAX_TEXT_BYTES = 256 << 20
_MAX_PARAMETERS = 500  # SQLite before 3.32 allows 999 in one statement; longer lists are filtered here
_POLL_S = 0.02
_ELSEWHERE = "choose another database file (CALUMMA_DB names the default)"

_schema = sa.MetaData()
_meta = sa.Table(
    "meta",
    _schema,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_workloads = sa.Table(
    "workloads",
    _schema,
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("text", sa.LargeBinary, nullable=False, comment="zlib over UTF-8"),
)
_hardware = sa.Table(
    "hardware",
    _schema,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    # The fingerprint leaves the number of cores out, a record does not.
    sa.Column("cores", sa.BigInteger, primary_key=True),
    sa.Column("cpu_model", sa.Text, nullable=False),
    sa.Column("mcpu", sa.Text, nullable=False),
    sa.Column("vector_bits", sa.BigInteger, nullable=False),
    sa.Column("l1_bytes", sa.BigInteger, nullable=False),
    sa.Column("l2_bytes", sa.BigInteger, nullable=False),
    sa.Column("l3_bytes", sa.BigInteger, nullable=False),
)
_records = sa.Table(
    "records",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("workload", sa.Text, sa.ForeignKey("workloads.hash"), nullable=False),
    sa.Column("template", sa.Text, nullable=False),
    sa.Column("template_version", sa.BigInteger, nullable=False),
    sa.Column("config", sa.Text, nullable=False, comment="canonical JSON"),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("latencies_s", sa.Text, nullable=False, comment="JSON"),
    sa.Column("phases_s", sa.Text, nullable=False, comment="JSON"),
    sa.Column("hardware", sa.Text, nullable=False),
    sa.Column("cores", sa.BigInteger, nullable=False),
    sa.Column("threads", sa.BigInteger, nullable=False),
    sa.Column("cache_state", sa.Text, nullable=False),
    sa.Column("toolchain", sa.Text, nullable=False),
    sa.Column("session", sa.Text, nullable=False),
    sa.Column("strategy", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.ForeignKeyConstraint(["hardware", "cores"], ["hardware.fingerprint", "hardware.cores"]),
    sa.Index("records_by_key", "workload", "hardware", "threads", "cache_state", "toolchain"),
    sa.Index("records_by_session", "session"),
)
_sessions = sa.Table(
    "sessions",
    _schema,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("model_hash", sa.Text, nullable=False),
    sa.Column("started_s", sa.Double, nullable=False),
    sa.Column("options", sa.Text, nullable=False, comment="canonical JSON"),
    sa.Column("finished_s", sa.Double),
    sa.Column("summary", sa.Text, comment="canonical JSON"),
)
_JSON_COLUMNS = ("config", "latencies_s", "phases_s")


def default_path() -> str:
    """Return the database to use when none is named: $CALUMMA_DB (a file or URL), else one in the user's data."""
    return os.environ.get("CALUMMA_DB") or str(
        platformdirs.user_data_path("calumma", appauthor=False) / "records.sqlite"
    )


class SqlStore:
    """A `Store` in an SQLite file. Any number of threads and processes may use one file; each process opens its own."""

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        """Use `SqlStore.open`."""
        self.path = path
        self._engine = engine
        self._pid = os.getpid()
        self._closed = False
        self._known: set[tuple[Any, ...]] = set()  # keys of workloads and hardware that are in the file for certain
        self._damaged: dict[tuple[str, Any], str] = {}
        self._warned = False

    @classmethod
    def open(cls, path_or_url: str | Path | None = None, *, timeout_s: float = 30.0, create: bool = True) -> SqlStore:
        """Open a database, made with its folder if it is not there.

        Args:
            path_or_url: a file, or "sqlite:///FILE"; None means `default_path()`.
            create: whether to make one that is not there.
            timeout_s: seconds to wait for other processes' writes before giving up.

        Raises:
            DatabaseError: it is not a database of calumma's, is damaged, from a newer version, locked, or cannot be
                read and written; or it is not there and must not be made.
        """
        path = _sqlite_path(default_path() if path_or_url is None else path_or_url)
        if not create and not path.exists():
            raise DatabaseError(f"{path}: there is no such database; name one that calumma tune or collect has written")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_folder = path.is_dir()
        except OSError as error:
            raise DatabaseError(f"{path}: its folder cannot be made ({error}): {_ELSEWHERE}") from error
        if is_folder:
            raise DatabaseError(
                f"{path} is a folder, expected a file: give a file in it, such as {path / 'records.sqlite'}"
            )
        store = cls(_engine(path, timeout_s), path)
        try:
            store._prepare(timeout_s)
        except BaseException:
            store.close()
            raise
        return store

    def append(self, records: Sequence[MeasureRecord]) -> None:
        """Store all records or none. The text first stored under a workload's hash stays.

        Raises:
            DatabaseError: the file cannot be written (locked, disk full, ...); nothing of this batch is stored.
            InternalError: a record breaks the schema.
        """
        accepted = [codec.checked(record) for record in records]
        if not accepted:
            return
        workloads = {record.candidate.workload.hash: record.candidate.workload for record in reversed(accepted)}
        machines = {(codec.fingerprint(record.hardware), record.hardware.cores): record.hardware for record in accepted}
        new_workloads = [
            {"hash": workload.hash, "text": zlib.compress(workload.text.encode())}
            for workload in workloads.values()
            if (workload.hash,) not in self._known
        ]
        new_machines = [
            {"fingerprint": key[0], **asdict(hardware)} for key, hardware in machines.items() if key not in self._known
        ]
        with self._transaction(write=True) as connection:
            if new_workloads:
                connection.execute(sqlite.insert(_workloads).on_conflict_do_nothing(), new_workloads)
            if new_machines:
                connection.execute(sqlite.insert(_hardware).on_conflict_do_nothing(), new_machines)
            connection.execute(sa.insert(_records), [_row(record) for record in accepted])
        self._known.update((hash_,) for hash_ in workloads)
        self._known.update(machines)

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
        """Return the records that match every given filter, oldest first; damaged ones are left out."""
        wanted = None if workloads is None else frozenset(workloads)
        equal = {
            "hardware": hardware,
            "threads": threads,
            "cache_state": cache_state,
            "toolchain": toolchain,
            "session": session,
        }
        conditions = [_records.c[name] == value for name, value in equal.items() if value is not None]
        query = sa.select(_records).where(_among(_records.c.workload, wanted), *conditions)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(_records.c.time_s, _records.c.id)).all()
            known_workloads = self._read_workloads(connection, {row.workload for row in rows})
            known_hardware = self._read_hardware(connection)
        found = []
        names = _records.c.keys()
        for row in rows:
            values = dict(zip(names, row, strict=True))
            if wanted is not None and values["workload"] not in wanted:
                continue
            try:
                for name in _JSON_COLUMNS:
                    values[name] = codec.parse_json(name, values[name])
                workload = _look_up("workload", values["workload"], known_workloads)
                machine = _look_up("hardware", (values["hardware"], values["cores"]), known_hardware)
                found.append(codec.restore_record(values, workload, machine))
            except MalformedError as error:
                self._leave_out("records", values["id"], error)
        self._warn_of_damage()
        return found

    def start_session(self, model: str, model_hash: str, options: Mapping[str, Any]) -> str:
        """Store the start of a tuning session; returns its id."""
        values = codec.new_session(model, model_hash, options)
        with self._transaction(write=True) as connection:
            connection.execute(sa.insert(_sessions), [values])
        return str(values["id"])

    def finish_session(self, session: str, summary: Mapping[str, Any]) -> None:
        """Store the end of a session. Raises DatabaseError if there is none of that id, or it is finished."""
        text = codec.object_text("summary of a session", summary)
        unfinished = sa.and_(_sessions.c.id == session, _sessions.c.finished_s.is_(None))
        with self._transaction(write=True) as connection:
            done = connection.execute(
                sa.update(_sessions).where(unfinished).values(finished_s=time.time(), summary=text)
            ).rowcount
        if not done:
            raise DatabaseError(
                f"{self.path}: no unfinished session {session!r}: give the id that start_session returned"
            )

    def sessions(self) -> list[Session]:
        """Return all sessions, oldest first; damaged ones are left out and warned of once."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_sessions).order_by(_sessions.c.started_s, _sessions.c.id)).all()
        found = []
        for row in rows:
            try:
                found.append(codec.restore_session(row._asdict()))
            except MalformedError as error:
                self._leave_out("sessions", row.id, error)
        self._warn_of_damage()
        return found

    @property
    def damaged(self) -> int:
        """Number of rows that reads so far left out because they break the schema."""
        return len(self._damaged)

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._closed = True
        self._engine.dispose(close=os.getpid() == self._pid)

    def __enter__(self) -> SqlStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction: rolled back on any exception; SQLite's errors become DatabaseError here and nowhere else."""
        if self._closed:
            raise InternalError(f"{self.path}: the store is closed: open it again")
        if os.getpid() != self._pid:  # an SQLite connection carried over a fork can damage the file
            raise InternalError(f"{self.path}: opened by process {self._pid}: open it again in process {os.getpid()}")
        try:
            with self._engine.connect().execution_options(calumma_write=write) as connection, connection.begin():
                yield connection
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            raise _translated(self.path, error) from error

    def _prepare(self, timeout_s: float) -> None:
        """Make the tables if the file is new, refuse it if it is not ours, and switch it to WAL."""
        if not self._has_tables():
            with self._transaction(write=True) as connection:  # a second look, for another process may be here too
                if not sa.inspect(connection).get_table_names():
                    _schema.create_all(connection)
                    connection.execute(sa.insert(_meta), [{"key": "schema_version", "value": str(SCHEMA_VERSION)}])
        self._check_version()
        self._use_wal(timeout_s)

    def _has_tables(self) -> bool:
        with self._transaction() as connection:
            return bool(sa.inspect(connection).get_table_names())

    def _check_version(self) -> None:
        with self._transaction() as connection:
            ours = set(_schema.tables) <= set(sa.inspect(connection).get_table_names())
            query = sa.select(_meta.c.value).where(_meta.c.key == "schema_version")
            text = connection.execute(query).scalar() if ours else None
        try:
            version = int(text or "")
        except ValueError:
            version = 0
        if version < 1:
            raise DatabaseError(f"{self.path} is an SQLite database, but not of calumma's: {_ELSEWHERE}")
        if version > SCHEMA_VERSION:
            raise DatabaseError(
                f"{self.path} has schema version {version}, this calumma reads up to {SCHEMA_VERSION}: "
                f"upgrade calumma, or {_ELSEWHERE}"
            )

    def _use_wal(self, timeout_s: float) -> None:
        """Switch the file to WAL. SQLite does not wait for other connections when the mode changes, so this does."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with contextlib.closing(
                    self._engine.raw_connection()
                ) as connection:  # no mode changes in a transaction
                    cursor = connection.cursor()
                    (mode,) = cursor.execute("PRAGMA journal_mode").fetchone()
                    if mode != "wal":
                        (mode,) = cursor.execute("PRAGMA journal_mode=WAL").fetchone()
                if mode == "wal":
                    return
                raise DatabaseError(
                    f"{self.path}: its file system cannot share a write-ahead log (journal mode {mode}): "
                    "choose a database file on a local disk (CALUMMA_DB names the default)"
                )
            except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise _translated(self.path, error) from error
            time.sleep(_POLL_S)

    def _read_workloads(self, connection: sa.Connection, hashes: set[str]) -> dict[Any, Workload | MalformedError]:
        """Workloads by hash; those that cannot be used by the reason why."""
        found: dict[Any, Workload | MalformedError] = {}
        for hash_, packed in connection.execute(sa.select(_workloads).where(_among(_workloads.c.hash, hashes))):
            try:
                found[hash_] = codec.restore_workload(hash_, _unpacked(packed))
            except MalformedError as error:
                found[hash_] = error
        return found

    def _read_hardware(self, connection: sa.Connection) -> dict[Any, Hardware | MalformedError]:
        """Hardware by (fingerprint, cores); that which cannot be used by the reason why."""
        found: dict[Any, Hardware | MalformedError] = {}
        for row in connection.execute(sa.select(_hardware)):
            key = (row.fingerprint, row.cores)
            try:
                hardware = codec.restore_hardware(row._asdict())
                if hardware.fingerprint != row.fingerprint:
                    raise MalformedError("its contents do not have its fingerprint")
                found[key] = hardware
            except MalformedError as error:
                found[key] = error
        return found

    def _leave_out(self, table: str, key: Any, why: MalformedError) -> None:
        self._damaged.setdefault((table, key), str(why))

    def _warn_of_damage(self) -> None:
        if self._damaged and not self._warned:
            self._warned = True
            (table, key), why = next(iter(self._damaged.items()))
            warnings.warn(
                f"{self.path}: {len(self._damaged)} damaged rows are left out, first {table} {key!r}: {why}; "
                "the others are used, delete the damaged ones with sqlite3 to end this warning",
                stacklevel=3,
            )


def _sqlite_path(path_or_url: str | Path) -> Path:
    """The absolute path of a file given as path or URL. Raises DatabaseError for what is not SQLite."""
    text = str(path_or_url)
    if "\0" in text:
        raise DatabaseError(f"{text!r} holds a null byte, which no file name can: give a file or sqlite:///FILE")
    if "://" not in text:
        return Path(os.path.abspath(os.path.expanduser(text)))
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError as error:
        raise DatabaseError(f"the database URL cannot be read ({error}): give a file or sqlite:///FILE") from error
    if url.drivername != "sqlite":  # the rest of the URL may hold a password
        raise DatabaseError(f"{url.drivername}:// databases are not supported: give a file or sqlite:///FILE")
    if not url.database or url.database == ":memory:" or url.query:
        raise DatabaseError(f"{text} does not name a file alone: give a file or sqlite:///FILE")
    return Path(os.path.abspath(url.database))


def _engine(path: Path, timeout_s: float) -> sa.Engine:
    url = sa.URL.create("sqlite", database=str(path))
    engine = sa.create_engine(url, connect_args={"timeout": timeout_s})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: Any) -> None:
        # Python's driver would begin transactions late and leave DDL outside of them: `begin` below does it.
        connection.isolation_level = None
        connection.text_factory = _text
        # FULL rather than NORMAL: records survive a power cut too, for one fsync (milliseconds) per batch of
        # measurements that took seconds.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("calumma_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _text(data: bytes) -> str | bytes:
    """Decode a text column; what is no UTF-8 stays bytes, which no check accepts, so that only its row is lost."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _row(record: MeasureRecord) -> dict[str, Any]:
    values = codec.record_fields(record)
    values["config"] = config_text(record.candidate.config)
    for name in ("latencies_s", "phases_s"):
        values[name] = codec.json_text(values[name])
    return values


def _unpacked(packed: Any) -> str:
    if type(packed) is not bytes:
        raise MalformedError("text is not compressed bytes")
    decompressor = zlib.decompressobj()
    try:
        data = decompressor.decompress(packed, _MAX_TEXT_BYTES)
        text = data.decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise MalformedError(f"text cannot be unpacked: {error}") from error
    if not decompressor.eof:
        raise MalformedError(f"text is cut off, or unpacks to more than {_MAX_TEXT_BYTES} bytes")
    return text


def _among(column: sa.Column[str], values: Iterable[str] | None) -> sa.ColumnElement[bool]:
    """`column IN values`; true for no filter and for lists too long for one statement."""
    listed = None if values is None else list(values)
    return sa.true() if listed is None or len(listed) > _MAX_PARAMETERS else column.in_(listed)


def _look_up(what: str, key: Any, known: Mapping[Any, Any]) -> Any:
    value = known.get(key, MalformedError("not in the database"))
    if isinstance(value, MalformedError):
        raise MalformedError(f"{what} {key!r}: {value}")
    return value


def _primary_code(error: BaseException) -> int | None:
    """SQLite's primary result code behind an error, or None."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _translated(path: Path, error: Exception) -> DatabaseError | InternalError:
    """The one seam from SQLAlchemy's and SQLite's errors to ours: what failed, and what to do."""
    cause = getattr(error, "orig", None) or error
    match _primary_code(error):
        case sqlite3.SQLITE_NOTADB:
            return DatabaseError(f"{path} is not a database ({cause}): {_ELSEWHERE}")
        case sqlite3.SQLITE_CORRUPT:
            return DatabaseError(
                f"{path} is damaged ({cause}): move it away to start afresh, or save what is left with "
                f"`sqlite3 {path.name} .recover`"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DatabaseError(
                f"{path} is locked by another process ({cause}): wait until it has finished, or {_ELSEWHERE}"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return DatabaseError(
                f"{path} and its folder must be writable ({cause}): change their permissions, or {_ELSEWHERE}"
            )
        case sqlite3.SQLITE_FULL:
            return DatabaseError(f"{path}: the disk is full ({cause}): make room and run again, or {_ELSEWHERE}")
        case sqlite3.SQLITE_IOERR:
            return DatabaseError(f"{path}: reading or writing failed ({cause}): check the disk, or {_ELSEWHERE}")
        case sqlite3.SQLITE_ERROR if "no such" in str(cause):
            return DatabaseError(f"{path} is damaged ({cause}): {_ELSEWHERE}")
    return InternalError(f"{path}: unexpected database error ({cause})")
