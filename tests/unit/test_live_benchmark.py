"""The live comparison: races between strategies, what a comparison decides, sessions that go on."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from benchmarks import live, metaschedule_baseline, search
from calumma.core.values import Candidate, MeasureResult, Status, Workload
from calumma.testing import SimulatedRunner
from tests.search_runs import QUICK, run


def test_a_race_has_the_last_word():
    assert live.with_latencies(QUICK, [0.02, 0.01, 0.009]).throughput == pytest.approx(1 / 0.009)
    luck = live.with_latencies(QUICK, [0.02, 0.01, 0.011])
    assert [found.trial for found in luck.improvements] == [1, 20], "the last one was no improvement after all"
    assert [f.trial for f in live.with_latencies(QUICK, [0.0, 0.01, 0.009]).improvements] == [20, 40]
    assert live.with_latencies(QUICK, [0.0, 0.0, 0.0]).throughput == 0


class _Scripted(SimulatedRunner):
    """Latencies of each candidate in the order of its measurements, None for a failure."""

    def __init__(self, latencies):
        super().__init__()
        self.left = {name: list(values) for name, values in latencies.items()}
        self.measured = []

    def outcome(self, candidate):
        name = candidate.config["who"]
        self.measured.append(name)
        latency = self.left[name].pop(0)
        if latency is None:
            return MeasureResult(Status.RUN_TIMEOUT, (), "late", {"build": 0.1, "run": 0.05})
        return MeasureResult(Status.OK, (latency,), "", {"build": 0.1, "run": 0.05})


def _asked(*who):
    return [Candidate(Workload("feed", "{}"), "toy", 1, {"who": name}) for name in who]


def test_what_looks_best_is_compared_with_the_best_in_turns():
    # The machine is half as fast while they are compared: that is in both.
    script = _Scripted(
        {
            "first": [1.0, 2.0, 2.2, 2.0],
            "better": [1.08, 1.8, 1.98, 1.8],
            "worse": [1.09, 2.4],
            "slow": [2.0],
            "ill": [None],
        }
    )
    runner, seen = live.Comparing(script), []
    assert runner.measure(_asked("first"))[0].latency_s == 1.0
    asked = _asked("slow", "ill", "worse", "better")
    results = runner.measure(asked, {"feed": 1.0}, lambda i, result: seen.append((i, result.latency_s)))
    rounds = ["first", "better", "worse", "better", "first", "first", "better"]
    assert script.measured == ["first", "slow", "ill", "worse", "better", *rounds]
    latencies = [result.latency_s for result in results]
    assert latencies == [2.0, math.inf, (1.09 + 2.4) / 2, math.nextafter(1.0, 0)], "the best of all, since it has won"
    assert seen == [(i, result.latency_s) for i, result in enumerate(results)]
    spent = [result.phases_s["build"] for result in results]
    assert sum(spent) == pytest.approx(0.1 * len(script.measured[1:])), "all of it is charged"


def test_who_was_not_compared_does_not_win():
    compared = {name: [0.9, 1.1] for name in "abcd"}
    script = _Scripted({"first": [1.0, 1.0], **compared, "lucky": [0.95], "far": [1.5]})
    runner = live.Comparing(script)
    runner.measure(_asked("first"))
    asked = _asked("lucky", "far", *compared)
    latencies = [result.latency_s for result in runner.measure(asked, {"feed": 1.0})]
    assert latencies == [1.0, 1.5, *[1.0] * 4], "nobody else is told to be faster than the incumbent"
    assert script.measured == ["first", "lucky", "far", *"abcd", "first", *"abcd"], "one comparison was enough"


def test_what_fails_in_a_comparison_keeps_its_measurement_and_does_not_win():
    script = _Scripted({"first": [1.0, 1.0, 1.0], "ill": [0.9, 0.8, None], "dead": [0.95, None]})
    runner = live.Comparing(script)
    runner.measure(_asked("first"))
    results = runner.measure(_asked("ill", "dead"), {"feed": 1.0})
    assert [(result.status, result.latency_s) for result in results] == [(Status.OK, 1.0)] * 2
    script.left |= {"next": [0.9, 0.9], "first": [None]}
    assert runner.measure(_asked("next"), {"feed": 1.0})[0].latency_s == 1.0, "the incumbent failed: nothing is known"


def test_the_first_batch_is_compared_with_its_fastest():
    script = _Scripted({"ill": [None], "lucky": [1.0, 1.2, 1.2, 1.2], "best": [1.1, 1.08, 1.08, 1.08]})
    runner = live.Comparing(script)
    assert math.isinf(runner.measure(_asked("ill"))[0].latency_s)
    latencies = [result.latency_s for result in runner.measure(_asked("best", "lucky"))]
    assert latencies == [1.08, 1.2]


class _Machine(SimulatedRunner):
    """Measures by a function of the candidate and of how often it was measured before; every state lasts some time."""

    def __init__(self, latency_s):
        super().__init__()
        self.latency_s, self.counted = latency_s, {}

    def __call__(self, *_, **__):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def outcome(self, candidate):
        who = candidate.config["who"]
        self.counted[who] = self.counted.get(who, 0) + 1
        latency_s = self.latency_s(who, self.counted[who])
        if latency_s is None:
            return MeasureResult(Status.RUN_TIMEOUT, (), "late", {})
        state = 1 + (sum(self.counted.values()) // 7) % 5 / 2
        return MeasureResult(Status.OK, (latency_s * state,), "", {})

    def verify(self, candidates):
        return [MeasureResult(Status.WRONG_OUTPUT if c.config["who"] == "wrong" else Status.OK) for c in candidates]


def test_the_race_decides_between_the_close_by_what_both_have_in_a_pass(monkeypatch):
    machine = _Machine(lambda who, _: {"a": 1.0, "b": 1.02, "far": 3.0}[who])
    monkeypatch.setattr(live, "LocalRunner", machine)
    asked = _asked("a", "b", "far", "wrong")
    found = live.race(asked, None, 2)
    assert machine.counted == {"a": 18, "b": 18, "far": 3}
    latencies = [found[candidate.key] for candidate in asked]
    assert latencies[1] / latencies[0] == pytest.approx(1.02, abs=0.01) and latencies[2] > latencies[1]
    assert latencies[3] == 0, "it computes something else"


def test_the_race_bears_failures(monkeypatch):
    seldom = _Machine(lambda who, count: None if who == "a" and count == 9 else {"a": 1.0, "b": 1.02}[who])
    monkeypatch.setattr(live, "LocalRunner", seldom)
    asked = _asked("a", "b")
    latencies = list(live.race(asked, None, 2).values())
    assert latencies[1] / latencies[0] == pytest.approx(1.02, abs=0.01)
    often = _Machine(lambda who, count: None if who == "a" and count > 3 else 1.0)
    monkeypatch.setattr(live, "LocalRunner", often)
    assert all(0 < latency_s < math.inf for latency_s in live.race(asked, None, 2).values())
    never = _Machine(lambda who, count: None)
    monkeypatch.setattr(live, "LocalRunner", never)
    assert live.race(asked, None, 2) == {candidate.key: 0.0 for candidate in asked}


def test_metaschedules_profile_by_our_phases():
    spent = {
        "SendToBuilder": 10.0,
        "SendToRunner": 1.0,
        "JoinRunnerFutures": 4.0,
        "EvoSearch/Evolve/Mutation": 2.0,
        "EvoSearch/Evolve/PredictNormalizedScore": 3.0,
        "MeasureCallback/UpdateCostModel": 0.5,
        "InitializeTask": 7.0,
        "Total": 30.0,
    }
    assert metaschedule_baseline.phases(spent) == {"build": 10.0, "run": 5.0, "search": 2.0, "model": 3.5}


def test_a_stopped_live_session_goes_on_with_the_first_missing_run(tmp_path, monkeypatch, capsys):
    task = live.Task("net/conv2d", Workload("feed", "{}"), None)
    made: list[Any] = []
    races: list[Any] = []

    def ours(task, start, strategy, seed, options, store, hardware, threads):
        if len(made) == stop_after:
            raise KeyboardInterrupt
        made.append((strategy, seed))
        throughput = 100.0 if strategy == "random" else 110.0
        found = seed + 1, 1.0, 1, throughput
        finished = run(strategy, found, workload=task.name, seed=seed, budget=8, start=start)
        return finished, [Candidate(task.workload, "toy", 1, {"who": strategy, "seed": seed})]

    def race(candidates, hardware, threads):
        races.append(len(candidates))
        return {c.key: 0.01 if c.config["who"] == "random" else 0.008 for c in candidates}

    monkeypatch.setattr(live, "tasks", lambda hardware, threads: [task])
    monkeypatch.setattr(live, "_ours", ours)
    monkeypatch.setattr(live, "race", race)
    arguments = ["--live", "--strategies", "random,evolutionary", "--seeds", "2", "--trials", "8", "--threads", "2"]
    arguments += ["--subject", "evolutionary", "--baseline", "random", "--json", str(tmp_path / "out.json")]
    arguments += ["--runs", str(tmp_path / "runs.jsonl"), "--database", str(tmp_path / "live.db")]
    stop_after = 3
    assert search.main(arguments) == 130
    assert len(made) == 3 and not races
    stop_after = 99
    assert search.main([*arguments, "--budget", "0s"]) == 0
    assert "1 of 1 runs are left" in capsys.readouterr().out
    assert len(made) == 3 and races == [3], "what there is counts"
    assert search.main(arguments) == 0
    assert made == [("random", 0), ("evolutionary", 0), ("random", 1), ("evolutionary", 1)]
    assert search.main(arguments) == 0
    assert (len(made), races) == (4, [3, 4]), "nothing is left to do"
    found = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert found["throughput_vs_random"] == pytest.approx(1.25), "by the race, not by the session"
    assert search.main([*arguments, "--starts", "default,random"]) == 0
    assert made[4:] == [("random", 0), ("evolutionary", 0), ("random", 1), ("evolutionary", 1)], "the other start"
    assert search.main([*arguments, "--trials", "9"]) == 2
    assert "was begun with trials 8, now it is 9" in capsys.readouterr().err
