"""Full disks, folders that may not be written, databases that cannot be used: the command line, one line, status 2."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from calumma.cli import main
from calumma.core.values import Candidate, Hardware, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import SqlStore
from tests.integration.command_line import assert_refused, calumma, read_only, small_disk
from tests.onnx_models import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions and a product: an artifact of 200 kB."""
    m = Model()
    x = m.op("Relu", m.conv(m.input(1, 3, 12, 10), (3, 32)))
    x = m.op("Flatten", m.op("GlobalAveragePool", m.conv(x, (32, 64))))
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    path.write_bytes(m.bytes(m.op("Gemm", x, m.random(10, 64), m.random(10), transB=1)))
    return path


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    folder.chmod(0o700)


# -- full disks ---------------------------------------------------------------------------------------


def test_no_room_for_the_artifact(model: Path, place: Path, tmp_path: Path) -> None:
    disk = small_disk(place, 64)
    done = calumma("compile", model, "-o", place / "out.so", "--db", tmp_path / "db.sqlite", prefix=disk)
    assert_refused(done, "cannot write", "out.so")
    assert done.stdout == ""  # the listing of what is left there
    assert not list(place.iterdir())


def test_no_room_for_temporary_files(model: Path, place: Path, tmp_path: Path) -> None:
    """LLVM ends the process where it cannot write an object file, and linkers die: neither may be seen."""
    out = tmp_path / "out.so"
    out.write_bytes(b"the artifact of yesterday")
    disk = small_disk(place, 16)
    done = calumma(
        "compile", model, "-o", out, "--force", "--db", tmp_path / "db.sqlite", prefix=disk, TMPDIR=str(place)
    )
    assert_refused(done, "cannot link the artifact")
    assert out.read_bytes() == b"the artifact of yesterday"


def test_no_room_for_records(model: Path, place: Path, tmp_path: Path) -> None:
    disk = small_disk(place, 128)
    database, out = place / "db.sqlite", tmp_path / "out.so"
    done = calumma("tune", model, "-o", out, "--db", database, "--trials", 60, "--threads", 1, prefix=disk)
    assert_refused(done, "db.sqlite")
    assert not out.exists()
    if database.exists():  # the limit on the size of files stood in for the disk
        with SqlStore.open(database) as store:
            store.records()
            assert store.damaged == 0


def test_no_room_for_json(tmp_path: Path) -> None:
    done = calumma("records", "--db", tmp_path / "db.sqlite", "--json", "/dev/full")
    assert_refused(done, "No space left on device")


# -- folders that may not be written ------------------------------------------------------------------


def test_read_only_output_and_database(model: Path, place: Path, tmp_path: Path) -> None:
    prefix = read_only(place)
    assert_refused(calumma("compile", model, "-o", place / "out.so", prefix=prefix), "cannot be written")
    assert_refused(calumma("tasks", model, "--json", place / "out.json", prefix=prefix), "cannot be written")
    assert_refused(calumma("records", "--db", place / "db.sqlite", prefix=prefix), "db.sqlite")


def test_a_cache_that_cannot_be_written_is_done_without(model: Path, place: Path, tmp_path: Path) -> None:
    done = calumma(
        "compile",
        model,
        "-o",
        tmp_path / "out.so",
        "--db",
        tmp_path / "db.sqlite",
        prefix=read_only(place),
        XDG_CACHE_HOME=str(place),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.so").exists()


# -- databases ----------------------------------------------------------------------------------------


def _tampered(statement: str) -> Callable[[Path], None]:
    def tamper(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(statement)
            connection.commit()

    return tamper


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _scratched(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "db.sqlite"
    hardware = Hardware("CPU", "znver5", 512, 48 << 10, 1 << 20, 32 << 20, 8)
    with SqlStore.open(path) as store:
        store.append(
            [
                MeasureRecord(
                    Candidate(Workload(f"w{i}", "text"), "conv2d", 1, {"tile": i}),
                    MeasureResult(Status.OK, (1e-3,)),
                    hardware,
                    2,
                    "cold",
                    "tvm",
                    session="s" * 500,
                )
                for i in range(200)
            ]
        )
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")  # everything in the one file
    return path


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_tampered("UPDATE meta SET value = '99'"), "schema version 99"),
        (_tampered("DROP TABLE records"), "not of calumma's"),
        (_cut, "damaged"),
        (_scratched, "damaged"),
        (lambda path: path.write_bytes(b"SELECT * FROM records;\n" * 100), "not a database"),
    ],
    ids=["newer", "foreign", "cut off", "scratched", "text"],
)
def test_a_database_that_cannot_be_used_stays_as_it_is(
    database: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(database)
    content = database.read_bytes()
    assert_refused(calumma("records", "--db", database), "db.sqlite", words)
    assert database.read_bytes() == content


def test_tuning_stops_at_a_newer_database_before_it_works(model: Path, database: Path, tmp_path: Path) -> None:
    _tampered("UPDATE meta SET value = '99'")(database)
    content = database.read_bytes()
    done = calumma("tune", model, "-o", tmp_path / "out.so", "--db", database)
    assert_refused(done, "schema version 99", "upgrade calumma")
    assert database.read_bytes() == content
    assert not (tmp_path / "out.so").exists()


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Another program writes, and does not come to an end."""
    with contextlib.closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.rollback()


def _opened_elsewhere(file: Path) -> bool:
    """Whether another process has the file open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # the process may be gone, or not ours
            if descriptor.readlink() == file and descriptor.parts[2] != str(os.getpid()):
                return True
    return False


def test_a_locked_database_is_waited_for(database: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with _locked(database):
            running = pool.submit(calumma, "records", "--db", database)
            while not _opened_elsewhere(database):
                assert not running.done(), running.result()
                time.sleep(0.01)
            time.sleep(0.2)
            assert not running.done(), running.result()
        done = running.result()
    assert done.returncode == 0, done.stderr
    assert "w199" in done.stdout


def test_a_database_that_stays_locked_is_named(
    model: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SqlStore.open.__func__.__kwdefaults__, "timeout_s", 0.2)  # type: ignore[attr-defined]
    with _locked(database):
        assert main(["compile", str(model), "-o", str(tmp_path / "out.so"), "--db", str(database)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("calumma: error: ") and "db.sqlite is locked by another process" in error
    assert not (tmp_path / "out.so").exists()


@pytest.mark.long
def test_a_locked_database_is_waited_for_and_then_named(model: Path, database: Path, tmp_path: Path) -> None:
    with _locked(database):
        done = calumma("tune", model, "-o", tmp_path / "out.so", "--db", database)
    assert_refused(done, "locked by another process")
    with SqlStore.open(database) as store:
        assert len(store.records()) == 200
