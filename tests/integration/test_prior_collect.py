"""`calumma collect` as a process: real measurements, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from calumma.cli import main
from calumma.core.values import COLLECTION, MeasureRecord
from calumma.database import SqlStore
from calumma.prior.collection import FINALIST
from calumma.report import collect as report_of
from tests.integration.command_line import ROOT, calumma
from tests.onnx_models import Model

pytestmark = pytest.mark.xdist_group("measures")

QUICK = ("--families", "pool,elementwise", "--configs", "6", "--threads", "1")


def records_of(database: Path) -> list[MeasureRecord]:
    if not database.exists():
        return []
    with SqlStore.open(database) as store:
        return store.records()


def distinct(records: list[MeasureRecord]) -> list[MeasureRecord]:
    """The records of configurations measured for the first time: one of each."""
    first = [record for record in records if record.strategy != FINALIST]
    assert {record.candidate.key for record in records} == {record.candidate.key for record in first}
    assert len({record.candidate.key for record in first}) == len(first)
    return first


def test_killed_and_started_again_it_goes_on(tmp_path: Path) -> None:
    database = tmp_path / "records.sqlite"
    command = [sys.executable, "-m", "calumma", "collect", *QUICK, "--budget", "5m", "--db", str(database)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 120
    while len(records_of(database)) < 10:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = records_of(database)

    done = calumma("collect", *QUICK, "--trials", 20, "--db", database, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    result = lines[-1]
    assert (result["event"], result["trials"], result["recalled"]) == ("result", 20, len(before))
    assert {line["event"] for line in lines[:-1]} == {"progress"}
    records = records_of(database)
    assert len(records) == len(before) + 20
    first = distinct(records)
    assert max(Counter(record.candidate.workload.hash for record in first).values()) == 6
    assert {record.strategy for record in first} == {"default", "random", "evolutionary"}
    assert sum(record.result.status == "ok" for record in records) > 20
    with SqlStore.open(database) as store:
        killed, finished = store.sessions()
        assert killed.summary is None
        assert finished.summary is not None and finished.summary["trials"] == 20
        assert killed.options["kind"] == finished.options["kind"] == COLLECTION
        with pytest.raises(Exception, match="no tuning session"):
            report_of(store)
        with pytest.raises(Exception, match="tuned no model"):
            report_of(store, finished.id)


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    database = tmp_path / "records.sqlite"
    command = [sys.executable, "-m", "calumma", "collect", *QUICK, "--budget", "5m", "--db", str(database)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    deadline_s = time.monotonic() + 120
    while len(records_of(database)) < 5:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the same command goes on from here" in text
    with SqlStore.open(database) as store:
        (session,) = store.sessions()
        assert session.summary is not None and session.summary["interrupted"]
        # It may have come between a record and its counting.
        assert len(store.records()) - session.summary["trials"] in (0, 1)


def test_the_workloads_of_a_users_own_model(tmp_path: Path) -> None:
    m = Model()
    model = tmp_path / "own.onnx"
    model.write_bytes(m.bytes(m.op("Softmax", m.linear(m.input(4, 32), (32, 16)), axis=-1)))
    database = tmp_path / "records.sqlite"
    done = calumma("collect", model, "--configs", 5, "--budget", "2m", "--threads", 1, "--db", database)
    assert done.returncode == 0, done.stderr
    assert "own" in done.stdout and "nothing is left to measure" in done.stdout
    records = records_of(database)
    assert len(distinct(records)) == 10
    assert {record.candidate.template for record in records} == {"matmul", "rows"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--families convolution", ("convolution", "pointwise")),
        ("--exclude resnet51", ("resnet51", "resnet50")),
        ("--budget soon", ("soon", "length of time")),
        ("--configs 0", ("--configs", "0")),
        ("--threads 100000", ("100000", "cores")),
        ("missing.onnx", ("missing.onnx",)),
        ("{model} --families pool", ("families", "leave them out")),
        ("{model} --db {folder}", ("is a folder",)),
        ("--exclude-model {damaged}", ("damaged.onnx", "not")),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, words: tuple[str, ...]
) -> None:
    m = Model()
    model, damaged = tmp_path / "model.onnx", tmp_path / "damaged.onnx"
    model.write_bytes(m.bytes(m.op("Relu", m.input(1, 4))))
    damaged.write_bytes(b"no model")
    given = arguments.format(model=model, damaged=damaged, folder=tmp_path).split()
    assert main(["collect", "--db", str(tmp_path / "records.sqlite"), *given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("calumma: error: ")
    assert all(word in lines[0] for word in words)
