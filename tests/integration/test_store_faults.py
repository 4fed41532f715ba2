"""What can go wrong with a database file: killed and competing processes, damage, permissions, full disks."""

import contextlib
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import calumma.database
from calumma.core.errors import DatabaseError, InternalError
from calumma.core.values import Candidate, Hardware, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import SqlStore, default_path

HARDWARE = Hardware("AMD EPYC", "znver5", 512, 48 << 10, 1 << 20, 32 << 20, 8)
NOBODY = 65534

# Appends batches of BATCH records until it has made COUNT batches or is killed; a line on stdout for each whose append
# returned. Argument: file, name, batches, records in a batch.
WRITER = textwrap.dedent(
    """
    import sys
    from calumma.core.values import *
    from calumma.database import SqlStore

    path, name, batches, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    hardware = Hardware("AMD EPYC", "znver5", 512, 49152, 1048576, 33554432, 8)
    sys.stdin.readline()  # start together
    store = SqlStore.open(path)
    for batch in range(batches):
        workload = Workload(f"{name}-{batch}", "text " * 1000)  # a new one each time: rows in two tables
        store.append(
            [
                MeasureRecord(
                    Candidate(workload, "conv2d", 1, {"i": i}), MeasureResult(Status.OK, (1e-3,)),
                    hardware, 1, "hot", "tvm", session=name,
                )
                for i in range(size)
            ]
        )
        print(batch, flush=True)
    store.close()
    """
)


def record(i: int = 0, text: str = "text", **changes: Any) -> MeasureRecord:
    return MeasureRecord(
        candidate=Candidate(Workload("c0", text), "conv2d", 1, {"i": i}),
        result=MeasureResult(Status.OK, (1e-3,)),
        hardware=HARDWARE,
        threads=1,
        cache_state="cold",
        toolchain="tvm",
        **changes,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of three records, closed."""
    file = tmp_path / "records.sqlite"
    with SqlStore.open(file) as store:
        store.append([record(i) for i in range(3)])
    return file


def indices(store: SqlStore) -> list[int]:
    return [int(r.candidate.config["i"]) for r in store.records()]


def tampered(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# ---- processes


@contextlib.contextmanager
def writers(path: Path, names: list[str], batches: int, size: int) -> Iterator[list[subprocess.Popen]]:
    source = Path(calumma.database.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(source)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(batches), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for name in names
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def go(process: subprocess.Popen) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def batch_sizes(store: SqlStore, session: str) -> dict[int, int]:
    """Records in the store by batch of one writer."""
    sizes: dict[int, int] = {}
    for found in store.records(session=session):
        batch = int(found.candidate.workload.hash.split("-")[1])
        sizes[batch] = sizes.get(batch, 0) + 1
    return sizes


def test_processes_that_open_a_new_file_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "records.sqlite"
    names = ["a", "b", "c"]
    with writers(path, names, batches=25, size=4) as started:
        time.sleep(0.5)  # imports
        for process in started:
            go(process)
        assert [process.wait(timeout=50) for process in started] == [0] * 3
    with SqlStore.open(path) as store:
        for name in names:
            assert batch_sizes(store, name) == dict.fromkeys(range(25), 4)


def test_a_killed_process_loses_no_record_whose_append_returned(tmp_path: Path) -> None:
    """20 processes, two at a time on one file, killed at random moments; batches are there whole or not at all."""
    path = tmp_path / "records.sqlite"
    moments = random.Random(0)
    acknowledged = 0
    names = [f"w{n}" for n in range(20)]
    with writers(path, names, batches=10_000, size=5) as started:
        for first in range(0, len(names), 2):
            pair = dict(zip(names[first : first + 2], started[first : first + 2], strict=True))
            for process in pair.values():
                go(process)
            for process in pair.values():
                process.stdout.readline()  # it is at work
            printed = {}
            for name, process in pair.items():
                time.sleep(moments.uniform(0.0, 0.05))
                process.kill()
                printed[name] = 1 + process.stdout.read().count("\n")
                assert process.wait() == -9
            with SqlStore.open(path) as store:
                for name, count in printed.items():
                    sizes = batch_sizes(store, name)
                    assert set(sizes.values()) == {5}, "a batch is stored whole"
                    assert list(sizes) == list(range(len(sizes)))
                    assert count <= len(sizes) <= count + 1, "at most the batch in flight is more than acknowledged"
                    acknowledged += count
                assert store.damaged == 0
    assert acknowledged > 40
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_store_carried_over_a_fork_refuses_to_work(path: Path) -> None:
    with SqlStore.open(path) as store:
        store._pid += 1  # what a child sees
        with pytest.raises(InternalError, match="open it again in process"):
            store.records()
        store._pid -= 1
        assert len(store.records()) == 3


def test_a_locked_file_is_waited_for_and_then_named(path: Path) -> None:
    with SqlStore.open(path, timeout_s=0.2) as store, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match=r"records\.sqlite is locked by another process"):
            store.append([record(3)])
        assert indices(store) == [0, 1, 2], "readers do not wait for writers"
        other.rollback()
        store.append([record(3)])
        assert indices(store) == [0, 1, 2, 3]


def test_an_interrupt_inside_an_append_stores_nothing_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SqlStore.open(path) as store:

        @sa.event.listens_for(store._engine, "commit")
        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.append([record(3)])
        sa.event.remove(store._engine, "commit", interrupt)
        assert indices(store) == [0, 1, 2]
        store.append([record(4)])
        assert indices(store) == [0, 1, 2, 4]


# ---- files that are not ours, or not well


@pytest.mark.parametrize("content", [b"ONNX model, surely", b"\x08\x07" * 5000, b"SQLite format 3\0" + b"\xff" * 500])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"model\.onnx is (not a database|damaged)"):
        SqlStore.open(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    tampered(path, "CREATE TABLE meta (key TEXT, value TEXT)", "INSERT INTO meta VALUES ('schema_version', '1')")
    content = path.read_bytes()
    with pytest.raises(DatabaseError, match="not of calumma's"):
        SqlStore.open(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("value", "what"),
    [("2", "schema version 2.*upgrade calumma"), ("one", "not of calumma's"), ("0", "not of calumma's")],
)
def test_a_schema_version_that_cannot_be_read(path: Path, value: str, what: str) -> None:
    tampered(path, f"UPDATE meta SET value = '{value}'")
    with pytest.raises(DatabaseError, match=what):
        SqlStore.open(path)


def test_a_missing_table_or_column_is_damage(path: Path) -> None:
    tampered(path, "ALTER TABLE records DROP COLUMN seed")
    with SqlStore.open(path) as store, pytest.raises(DatabaseError, match="damaged"):
        store.records()
    tampered(path, "DROP TABLE records")
    with pytest.raises(DatabaseError, match="not of calumma's"):
        SqlStore.open(path)


def test_damaged_pages_are_a_clear_error(path: Path) -> None:
    with SqlStore.open(path) as store:
        store.append([record(i, session="s" * 500) for i in range(500)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"records\.sqlite is damaged"), SqlStore.open(path) as store:
        store.records()


def test_a_truncated_file_is_a_clear_error(path: Path) -> None:
    with SqlStore.open(path) as store:
        store.append([record(i, session="s" * 500) for i in range(500)])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DatabaseError, match=r"records\.sqlite is damaged"), SqlStore.open(path) as store:
        store.records()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE records SET config = '{\"i\": ' WHERE id = 2",
        "UPDATE records SET config = '{} {}' WHERE id = 2",
        "UPDATE records SET config = '[1]' WHERE id = 2",
        "UPDATE records SET config = '{\"i\": null}' WHERE id = 2",
        "UPDATE records SET config = x'ff' WHERE id = 2",
        "UPDATE records SET status = 'excellent' WHERE id = 2",
        "UPDATE records SET status = 'run_error' WHERE id = 2",
        "UPDATE records SET latencies_s = '[-1.0]' WHERE id = 2",
        "UPDATE records SET latencies_s = '[1e999]' WHERE id = 2",
        'UPDATE records SET phases_s = \'{"run": "long"}\' WHERE id = 2',
        "UPDATE records SET seed = 'seven' WHERE id = 2",
        "UPDATE records SET time_s = 'yesterday' WHERE id = 2",
        "UPDATE records SET reason = CAST(x'fffe' AS TEXT) WHERE id = 2",
        "UPDATE records SET workload = 'none' WHERE id = 2",
        "UPDATE records SET hardware = 'none' WHERE id = 2",
    ],
)
def test_a_damaged_record_costs_only_itself(path: Path, damage: str) -> None:
    tampered(path, damage)
    with SqlStore.open(path) as store:
        with pytest.warns(UserWarning, match=r"1 damaged rows are left out, first records 2"):
            assert indices(store) == [0, 2]
        assert store.damaged == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert indices(store) == [0, 2], "warned of once"
        store.append([record(3)])
        assert indices(store) == [0, 2, 3]
        assert store.damaged == 1


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE workloads SET text = x'00'",
        "UPDATE workloads SET text = substr(text, 1, 5)",
        "UPDATE workloads SET text = 'text'",
        "UPDATE hardware SET l1_bytes = 1",
        "UPDATE hardware SET l1_bytes = 'big'",
    ],
)
def test_a_damaged_workload_or_hardware_costs_its_records(path: Path, damage: str) -> None:
    tampered(path, damage)
    with SqlStore.open(path) as store:
        with pytest.warns(UserWarning, match="3 damaged rows"):
            assert store.records() == []
        assert store.damaged == 3


def test_a_workload_that_unpacks_without_end_is_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calumma.database.sql, "_MAX_TEXT_BYTES", 3)
    with SqlStore.open(path) as store, pytest.warns(UserWarning, match="more than 3 bytes"):
        assert store.records() == []


def test_a_damaged_session_costs_only_itself(path: Path) -> None:
    with SqlStore.open(path) as store:
        bad, good = store.start_session("a", "1", {}), store.start_session("b", "2", {})
    tampered(path, f"UPDATE sessions SET options = '[]' WHERE id = '{bad}'")
    with SqlStore.open(path) as store, pytest.warns(UserWarning, match=bad):
        assert [session.id for session in store.sessions()] == [good]


# ---- places that cannot be written


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """A folder owned by, and code run as, a user whom permissions bind; root is not bound."""
    user = os.geteuid() or NOBODY
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, user, -1)
    before = os.geteuid()
    os.seteuid(user)
    try:
        yield folder
    finally:
        os.seteuid(before)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_a_read_only_folder_or_file_is_named() -> None:
    with ordinary_user() as folder:
        path = folder / "records.sqlite"
        SqlStore.open(path).close()
        path.chmod(0o400)
        with pytest.raises(DatabaseError, match="must be writable"), SqlStore.open(path) as store:
            store.append([record()])
        path.unlink()
        folder.chmod(0o500)
        with pytest.raises(DatabaseError, match="must be writable"):
            SqlStore.open(path)
        with pytest.raises(DatabaseError, match="folder cannot be made"):
            SqlStore.open(folder / "deeper" / "records.sqlite")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match="folder cannot be made"):
        SqlStore.open(tmp_path / "file" / "records.sqlite")
    with pytest.raises(DatabaseError, match="is a folder, expected a file"):
        SqlStore.open(tmp_path)


def test_a_full_disk_is_named_and_nothing_is_lost(path: Path) -> None:
    big = "".join(random.Random(0).choices("0123456789abcdef", k=1 << 20))
    with SqlStore.open(path) as store:
        with store._engine.connect() as connection:  # the pool hands this one connection out again
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(DatabaseError, match=r"records\.sqlite: the disk is full"):
            store.append([record(3, text="x"), record(4, session=big)])
        assert indices(store) == [0, 1, 2]
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        store.append([record(5)])
        assert indices(store) == [0, 1, 2, 5]


def test_a_write_the_system_refuses_is_named_and_nothing_is_lost(path: Path) -> None:
    """The limit on the size of files stands in for a failing disk: the system call itself fails."""
    big = "".join(random.Random(0).choices("0123456789abcdef", k=1 << 20))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SqlStore.open(path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, hard))
        try:
            with pytest.raises(DatabaseError, match="reading or writing failed"):
                store.append([record(3, session=big)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert indices(store) == [0, 1, 2]
        store.append([record(4)])
        assert indices(store) == [0, 1, 2, 4]


# ---- names of databases


def test_paths_and_urls_name_the_same_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    for name in (
        path,
        str(path),
        "records.sqlite",
        "~/records.sqlite",
        f"sqlite:///{path}",
        "sqlite:///records.sqlite",
    ):
        with SqlStore.open(name) as store:
            assert store.path == path
            assert len(store.records()) == 3


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql://me:secret@host/db", "postgresql:// databases are not supported"),
        ("sqlite://", "does not name a file"),
        ("sqlite:///:memory:", "does not name a file"),
        ("sqlite:///a.sqlite?mode=ro", "does not name a file"),
        ("a\0b", "null byte"),
        ("://", "cannot be read"),
    ],
)
def test_urls_that_name_no_sqlite_file(url: str, what: str) -> None:
    with pytest.raises(DatabaseError, match=what) as raised:
        SqlStore.open(url)
    assert "secret" not in str(raised.value)


def test_the_default_is_the_environments_or_in_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALUMMA_DB", str(tmp_path / "mine.sqlite"))
    assert default_path() == str(tmp_path / "mine.sqlite")
    with SqlStore.open() as store:
        assert store.path == tmp_path / "mine.sqlite"
    monkeypatch.delenv("CALUMMA_DB")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == str(tmp_path / "calumma" / "records.sqlite")
