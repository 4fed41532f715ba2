"""The JSON form of progress events: what docs/tuning.md promises to programs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from calumma.cli.output import plain
from calumma.core.values import Budget, MeasureResult, Status
from calumma.tuner import PhaseStarted, to_json
from tests.toy_tuning import Landscape, World, task

KEYS = {
    "phase_started": {"phase"},
    "session_started": {"session", "recalled", "unreadable", "progress", "rows"},
    "round_started": {"number", "shares", "progress"},
    "trials_done": {"number", "trials", "progress", "rows"},
    "new_best": {"workload", "name", "latency_s", "previous_s", "config"},
    "task_finished": {"workload", "name", "reason"},
    "final_check_started": {"tasks", "progress"},
    "winners_measured": {"number", "trials", "progress", "rows"},
    "session_finished": {"session", "interrupted", "phases_s", "progress", "rows"},
}
PROGRESS = {
    "trials",
    "elapsed_s",
    "seconds_left",
    "trials_left",
    "eta_s",
    "candidates_per_s",
    "latency_s",
    "default_latency_s",
}
ROW = {
    "workload",
    "name",
    "weight",
    "status",
    "latency_s",
    "default_latency_s",
    "bound_s",
    "trials",
    "failures",
    "roofline_share",
}
TRIAL = {"workload", "name", "config", "strategy", "status", "latency_s", "reason", "phases_s"}


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """The events of a session of two tasks, one near its bound, one with failures, as read from a stream."""
    world = World([task("good"), task("bad", width=14)], [Landscape(1e-3, top=2.0), Landscape(2e-3)])

    def fault(candidate: Any, result: MeasureResult) -> MeasureResult:
        if candidate.workload.hash == "hash of bad" and candidate.config["unroll"]:
            return replace(result, status=Status.RUN_ERROR, latencies_s=(), reason="segmentation fault")
        return result

    world.runner.fault = fault
    world.session(Budget(seconds=20.0)).run()
    events = [PhaseStarted("import"), *world.events]
    return [json.loads(json.dumps(plain(to_json(event)), allow_nan=False)) for event in events]


def test_keys_are_as_documented(lines: list[dict[str, Any]]) -> None:
    assert {line["event"] for line in lines} == KEYS.keys()
    for line in lines:
        assert line.keys() == {"event", *KEYS[line["event"]]}
        assert "progress" not in line or line["progress"].keys() == PROGRESS
        assert all(row.keys() == ROW for row in line.get("rows", ()))
        assert all(trial.keys() == TRIAL for trial in line.get("trials", ()))


def test_rows_are_those_that_changed(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        if line["event"] in ("trials_done", "winners_measured"):
            assert {row["workload"] for row in line["rows"]} == {trial["workload"] for trial in line["trials"]}
        elif "rows" in line:
            assert {row["name"] for row in line["rows"]} == {"good", "bad"}


def test_the_last_rows_are_what_the_trials_add_up_to(lines: list[dict[str, Any]]) -> None:
    trials = [trial for line in lines for trial in line.get("trials", ())]
    for row in lines[-1]["rows"]:
        own = [trial for trial in trials if trial["workload"] == row["workload"] and trial["strategy"] != "remeasure"]
        assert row["trials"] == len(own)
        assert row["failures"] == sum(trial["status"] != "ok" for trial in own)
    failed = [trial for trial in trials if trial["status"] == "run_error"]
    assert failed
    assert all(trial["latency_s"] is None and trial["reason"] == "segmentation fault" for trial in failed)
    assert "text" not in json.dumps(trials)
