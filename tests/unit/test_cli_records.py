"""`calumma records` on a real database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calumma.cli import main
from calumma.core.values import Candidate, Hardware, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import SqlStore

HARDWARE = Hardware("Some CPU", "znver5", 512, 32 << 10, 1 << 20, 32 << 20, 2)


def record(workload: str, tile: int, latency_s: float | None, threads: int = 2) -> MeasureRecord:
    result = (
        MeasureResult(Status.BUILD_ERROR, reason="too many registers")
        if latency_s is None
        else MeasureResult(Status.OK, (latency_s,))
    )
    candidate = Candidate(Workload(workload, "{}"), "conv2d", 1, {"tile": tile})
    return MeasureRecord(candidate, result, HARDWARE, threads, "cold", "tvm 0.27", "session-1", "random", 0, 1e9)


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "records.sqlite"
    with SqlStore.open(path) as store:
        store.append(
            [
                record("aaaa", 1, 2e-3),
                record("aaaa", 2, 1e-3),
                record("aaaa", 4, None),
                record("bbbb", 1, 5e-3, threads=1),
            ]
        )
    return str(path)


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["records", *arguments, "--json", "-"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return found


def test_the_best_of_every_workload(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = {row["workload"]: row for row in rows(capsys, "--db", database)}
    assert found.keys() == {"aaaa", "bbbb"}
    best = found["aaaa"]
    assert (best["latency_ms"], best["trials"], best["failed"], best["template"]) == (1.0, 3, 1, "conv2d v1")


def test_filters(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["workload"] for row in rows(capsys, "--db", database, "--workload", "bb")] == ["bbbb"]
    assert [row["workload"] for row in rows(capsys, "--db", database, "--threads", "1")] == ["bbbb"]
    assert rows(capsys, "--db", database, "--session", "another") == []


def test_all_shows_failures_with_their_reasons(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = [row for row in rows(capsys, "--db", database, "--all") if row["status"] != "ok"]
    assert [(row["status"], row["reason"], row["latency_ms"]) for row in failed] == [
        ("build_error", "too many registers", None)
    ]
    assert main(["records", "--db", database, "--all"]) == 0
    assert "too many registers" in capsys.readouterr().out


def test_sessions(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"trials": 3, "interrupted": False, "contest": {"tuned_s": 0.25, "default_s": 0.5}}
    with SqlStore.open(database) as store:
        finished = store.start_session("resnet50.onnx", "cafe", {"strategy": "random"})
        store.finish_session(finished, summary)
        killed = store.start_session("vgg19.onnx", "beef", {})
    first, second = sorted(rows(capsys, "--db", database, "--sessions"), key=lambda row: str(row["model"]))
    assert (first["session"], first["model"], first["strategy"]) == (finished, "resnet50.onnx", "random")
    assert (first["trials"], first["tuned_ms"], first["default_ms"], first["end"]) == (3, 250.0, 500.0, "finished")
    assert first["summary"] == summary
    assert (second["session"], second["trials"], second["tuned_ms"], second["end"]) == (
        killed,
        None,
        None,
        "unfinished",
    )
    assert main(["records", "--db", database, "--sessions"]) == 0
    text = capsys.readouterr().out
    assert "resnet50.onnx" in text and "250" in text and "{" not in text


def test_export_and_import(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = str(tmp_path / "out.jsonl"), str(tmp_path / "other.sqlite")
    assert main(["records", "--db", database, "--export", file]) == 0
    assert main(["records", "--db", other, "--import", file]) == 0
    assert main(["records", "--db", other, "--import", file]) == 0
    text = capsys.readouterr().out
    assert "4 records from" in text
    assert "4 new records from" in text
    assert "0 new records from" in text
    assert rows(capsys, "--db", other) == rows(capsys, "--db", database)


def test_an_empty_database_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["records", "--db", str(tmp_path / "new.sqlite")]) == 0
    assert "calumma tune" in capsys.readouterr().out


def test_bad_input(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junk = tmp_path / "junk"
    junk.write_text("this is neither SQLite nor JSON lines, and long enough to be looked at\n" * 50)
    for arguments in (
        ["--db", str(junk)],
        ["--db", database, "--import", str(junk)],
        ["--db", database, "--import", str(tmp_path / "absent")],
        ["--db", database, "--import", str(junk), "--export", str(tmp_path / "x")],
    ):
        assert main(["records", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("calumma: error: ")
        assert error.count("\n") == 1
