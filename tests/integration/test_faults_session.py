"""Whole tuning sessions under faults: bad candidates, SIGKILL at any moment, competition, a clock that jumps."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calumma import api, tvm_compat
from calumma.artifact import file_format
from calumma.core.values import Budget, Status, Task
from calumma.database import MemoryStore, SqlStore
from calumma.measure import LocalRunner
from calumma.tuner import REMEASURED, TuningResult
from calumma.tuner.tuning_session import TuningSession
from tests import measure_spaces
from tests.integration import faulty_space
from tests.integration.command_line import ROOT
from tests.onnx_models import Model, assert_close, reference

pytestmark = pytest.mark.xdist_group("measures")

TUNE = """
import sys
from pathlib import Path
from calumma import api
from calumma.core.values import Budget
from calumma.tuner.events import TrialsDone

def on_event(event):
    if isinstance(event, TrialsDone):
        for record in event.records:
            print(record.session, record.candidate.key, flush=True)

model, output, database, trials, seed = sys.argv[1:]
print("ready", flush=True)
api.tune(
    Path(model), output=output, database=database, budget=Budget(trials=int(trials)), threads=1, seed=int(seed),
    on_event=on_event,
)
print("done", flush=True)
"""


def _network() -> tuple[Model, bytes]:
    m = Model()
    x = m.op("Relu", m.conv(m.input(1, 16, 12, 12), (16, 32)))
    return m, m.bytes(m.op("Add", m.conv(x, (32, 32)), m.op("Tanh", x)))


def _tuning(folder: Path, trials: int, seed: int = 0, output: str = "out.so") -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    arguments = (folder / "model.onnx", folder / output, folder / "db.sqlite", trials, seed)
    return subprocess.Popen(
        [sys.executable, "-c", TUNE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder / "tmp")},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "model.onnx").write_bytes(_network()[1])
    return tmp_path


# -- bad candidates -----------------------------------------------------------------------------------


def _session(store: MemoryStore | SqlStore, budget: Budget) -> TuningResult:
    target = tvm_compat.target_for()
    function = measure_spaces.scale()
    workload = measure_spaces.workload_of(function)
    task = Task(workload, "scale", 1, "toy", 1e4, 1e4, ((((32, 64), "float32"),) * 2))
    limits = {"memory_bytes": 1 << 30, "build_timeout_s": 20.0, "run_timeout_s": 3.0}
    with LocalRunner(target, 1, space_entry=faulty_space.SPACE_ENTRY, **limits) as runner:  # type: ignore[arg-type]
        session = TuningSession(
            [(task, faulty_space.FaultySpace(function))],
            runner,
            store,
            budget,
            hardware=target.hardware,
            toolchain="test",
            bounds={},
        )
        return session.run()


def test_a_session_survives_every_fault_and_records_why() -> None:
    store = MemoryStore()
    result = _session(store, Budget(trials=2 * len(faulty_space.FAULTS)))
    (task,) = result.tasks
    assert task.config["fault"] == ""
    assert task.latency_s is not None
    outcomes: dict[str, set[Status]] = {}
    for record in store.records():
        fault = str(record.candidate.config["fault"])
        outcomes.setdefault(fault, set()).add(record.result.status)
        assert bool(record.result.reason) == (record.result.status is not Status.OK)
    # A wrong result that is also slow is never verified, for it never counts.
    assert outcomes.pop("wrong") <= {Status.WRONG_OUTPUT, Status.OK}
    assert outcomes == {
        "": {Status.OK},
        "invalid": {Status.INVALID_CONFIG},
        "build_error": {Status.BUILD_ERROR},
        "build_memory": {Status.BUILD_ERROR},
        "build_crash": {Status.WORKER_LOST},
        "run_crash": {Status.WORKER_LOST},
        "run_hang": {Status.RUN_TIMEOUT},
        "run_memory": {Status.RUN_ERROR},
    }


# -- a clock that jumps -------------------------------------------------------------------------------


def test_a_wall_clock_that_jumps_breaks_neither_budgets_nor_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + moments.choice([-3e8, -3600.0, 0.0, 3600.0, 3e8]))
    start = time.monotonic()
    with SqlStore.open(tmp_path / "db.sqlite") as store:
        first = _session(store, Budget(seconds=4.0))
        second = _session(store, Budget(trials=3))
        elapsed_s = time.monotonic() - start
        assert 0 < first.seconds < elapsed_s
        assert 0 < second.seconds < elapsed_s
        assert second.trials <= 3
        records = store.records()
        assert store.damaged == 0
        assert {session.id for session in store.sessions()} == {first.session, second.session}
        assert {record.session for record in records} <= {first.session, second.session}
        proposed = Counter(r.candidate.key for r in records if r.strategy != REMEASURED)
        assert sum(proposed.values()) == first.trials + second.trials
        assert set(proposed.values()) == {1}, "what was measured is known in spite of its date"


# -- SIGKILL ------------------------------------------------------------------------------------------


def _kill_and_resume(folder: Path, kills: int) -> None:
    """Kill as many sessions, each somewhere in its life, then let one finish."""
    moments = random.Random(1)
    acknowledged: Counter[str] = Counter()
    survivors = 0
    interrupted = 0  # killed after the first record
    life_s = 8.0
    for number in range(kills):
        start = time.monotonic()
        process = _tuning(folder, 4, seed=number)
        assert process.stdout is not None
        # Half of them anywhere, imports included; the others while they measure, build and save.
        first = ""
        if number % 2:
            first = next((line for line in process.stdout if len(line.split()) == 2), "")
            time.sleep(moments.uniform(0.0, 0.5))
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moments.uniform(0.0, life_s))
        process.kill()
        printed, complaint = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), complaint
        reported = [line.split()[1] for line in (first + printed).splitlines() if len(line.split()) == 2]
        if process.returncode == 0:
            survivors += 1
            life_s = max(1.0, 0.9 * (time.monotonic() - start))
        else:
            interrupted += bool(reported)
            life_s *= 1.1
        acknowledged.update(reported)
        _assert_sound(folder, acknowledged)
    assert survivors < kills, "no session was killed"
    assert interrupted, "no session was killed that had reported a record"
    last = _tuning(folder, 4, seed=kills)
    printed, complaint = last.communicate(timeout=300)
    assert last.returncode == 0, complaint
    assert printed.endswith("done\n")
    acknowledged.update(line.split()[1] for line in printed.splitlines() if len(line.split()) == 2)
    _assert_sound(folder, acknowledged)
    model, data = _network()
    feeds = model.feeds()
    assert_close(api.load(folder / "out.so").run(feeds), reference(data, feeds))
    deadline = time.monotonic() + 30
    while (left := list((folder / "tmp").glob("calumma-measure-*"))) and time.monotonic() < deadline:
        time.sleep(0.1)  # fork servers notice the end of their runner by themselves
    assert not left


def _assert_sound(folder: Path, acknowledged: Counter[str]) -> None:
    database, artifact = folder / "db.sqlite", folder / "out.so"
    if database.exists():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with SqlStore.open(database) as store:
            records = store.records()
            assert store.damaged == 0
        stored = Counter(record.candidate.key for record in records)
        assert not acknowledged - stored, "a record that was reported is gone"
        proposed = Counter(r.candidate.key for r in records if r.strategy != REMEASURED)
        assert not proposed or set(proposed.values()) == {1}, "measured twice"
    else:
        assert not acknowledged
    if artifact.exists():
        _assert_whole(artifact)


def _assert_whole(artifact: Path) -> np.ndarray:
    contents = file_format.read(artifact)
    with contents.file:
        contents.check_code()
        weights = np.empty(contents.weights_bytes, np.uint8)
        contents.read_weights(weights)
    return weights


def test_killed_sessions_lose_and_repeat_nothing(folder: Path) -> None:
    _kill_and_resume(folder, 2)


@pytest.mark.long
def test_fifty_killed_sessions_lose_and_repeat_nothing(folder: Path) -> None:
    _kill_and_resume(folder, 50)


WRITE = """
import sys
from pathlib import Path
import numpy as np
from calumma.artifact import file_format
path, library = map(Path, sys.argv[1:])
number = 0
while True:
    number += 1
    file_format.write(path, library, [np.full(1 << 22, number % 251, np.uint8)] * 4, {"number": number})
    print(number, flush=True)
"""


def _kill_writers(folder: Path, kills: int) -> None:
    """Kill processes that write artifacts of 16 MB over and over: the file is always one of them as a whole."""
    moments = random.Random(2)
    library, artifact = folder / "code.bin", folder / "kept.so"
    library.write_bytes(b"\x7fELF" + bytes(1000))
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    for _ in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, str(artifact), str(library)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        ) as process:
            assert process.stdout is not None
            written = int(process.stdout.readline())
            time.sleep(moments.uniform(0.0, 0.2))
            process.kill()
            written = max([written, *map(int, process.stdout.read().split())])
        weights = _assert_whole(artifact)
        assert len(np.unique(weights)) == 1, "half of one artifact and half of another"
        assert weights[0] in (written % 251, (written + 1) % 251)
        left = list(folder.glob(".kept.so.*"))
        assert len(left) <= 1
        for file in left:
            assert file.stat().st_mode & 0o077 == 0, "others can read what is not finished"
            file.unlink()


def test_a_killed_writer_leaves_the_old_artifact_or_the_new(tmp_path: Path) -> None:
    _kill_writers(tmp_path, 5)


@pytest.mark.long
def test_fifty_killed_writers_leave_the_old_artifact_or_the_new(tmp_path: Path) -> None:
    _kill_writers(tmp_path, 50)


# -- competition --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ended(*processes: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_tunings_share_one_database(folder: Path) -> None:
    tunings = [_tuning(folder, 6, seed, f"out{seed}.so") for seed in (0, 1)]
    with _ended(*tunings):
        printed = [tuning.communicate(timeout=300) for tuning in tunings]
    assert [tuning.returncode for tuning in tunings] == [0, 0], printed
    model, data = _network()
    feeds = model.feeds()
    with SqlStore.open(folder / "db.sqlite") as store:
        by_session = Counter(record.session for record in store.records())
        assert store.damaged == 0
        assert len(store.sessions()) == 2
        assert all(session.finished_s is not None for session in store.sessions())
    for seed, (lines, _) in enumerate(printed):
        reported = Counter(line.split()[0] for line in lines.splitlines() if len(line.split()) == 2)
        ((session, count),) = reported.items()
        assert by_session[session] >= count >= 6  # the final check's measurements are not reported
        assert_close(api.load(folder / f"out{seed}.so").run(feeds), reference(data, feeds))
