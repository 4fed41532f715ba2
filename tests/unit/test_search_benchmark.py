"""The metrics of the search benchmark on curves made by hand, and the replay of a small recording."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from tvm import topi

from benchmarks import corpora, live, metaschedule_baseline, search, sessions
from benchmarks.corpora import Source
from benchmarks.curves import Comparison, Improvement, Recorder, Run, metrics, ratio
from benchmarks.sessions import RunLog
from benchmarks.subspace import part_of
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.values import Candidate, MeasureResult, Status, Workload
from calumma.database import MemoryStore
from calumma.prior import library
from calumma.space.generated import GeneratedSpace
from calumma.testing import SimulatedRunner
from tests.prim_funcs import prim_func, tvm


def run(strategy, *improvements, workload="w", seed=0, seconds=100.0, steps=1000, budget=256, **more):
    """A run; an improvement is (trial, seconds, steps, throughput)."""
    found = tuple(Improvement(trial, at, done, 1 / throughput) for trial, at, done, throughput in improvements)
    phases = {
        "build": 0.5 * seconds,
        "run": 0.3 * seconds,
        "search": 0.1 * seconds,
        "model": 0.1 * seconds,
        "other": 0.0,
    }
    more = {"trials": budget, "failed": 0, "phases_s": phases, **more}
    return Run(workload, strategy, seed, budget, seconds=seconds, steps=steps, improvements=found, **more)


BASE = run("autotvm", (1, 1.0, 10, 50), (100, 40.0, 500, 99.5), (200, 80.0, 900, 100.0))
QUICK = run("chameleon", (1, 1.0, 10, 50), (20, 10.0, 100, 99.2), (40, 16.0, 120, 105.0), seconds=50.0)
NEVER = run("random", (1, 1.0, 0, 50), (10, 5.0, 0, 90.0), steps=0)


def test_a_level_costs_what_was_spent_until_then():
    assert [BASE.cost(q, 99) for q in ("seconds", "trials", "steps")] == [40.0, 100, 500]
    assert [QUICK.cost(q, 99) for q in ("seconds", "trials", "steps")] == [10.0, 20, 100]


def test_a_run_that_never_reaches_it_counts_its_whole_budget():
    assert [NEVER.cost(q, 99) for q in ("seconds", "trials", "steps")] == [100.0, 256, 0]
    early = run("x", (1, 1.0, 10, 50), trials=30, seconds=12.0)
    assert (early.cost("trials", 99), early.cost("seconds", 99)) == (256, 12.0)


def test_best_after_trials_and_seconds():
    assert QUICK.best_after(trials=39) == pytest.approx(99.2)
    assert QUICK.best_after(seconds=15.9) == pytest.approx(99.2)
    assert QUICK.best_after(seconds=16.0) == pytest.approx(105)
    assert QUICK.best_after(seconds=0.5) == 0


def test_metrics_of_hand_made_curves():
    found = metrics(Comparison([BASE, QUICK, NEVER], "autotvm"), "chameleon", search.RIVALS)
    assert found["time_speedup_vs_autotvm"] == pytest.approx(4.0)
    assert found["measurement_reduction_vs_autotvm"] == pytest.approx(5.0)
    assert found["step_reduction_vs_autotvm"] == pytest.approx(5.0)
    assert found["throughput_vs_autotvm"] == pytest.approx(1.05)
    assert found["throughput_at_equal_time_vs_autotvm"] == pytest.approx(1.05)
    assert found["time_speedup_vs_random"] == pytest.approx(10.0)
    assert found["measurement_reduction_vs_random"] == pytest.approx(12.8)
    assert found["never_reached_share_random"] == 1
    assert (found["never_reached_share"], found["never_reached_share_autotvm"]) == (0, 0)
    assert found["search_overhead_share"] == pytest.approx(0.2)
    assert "step_reduction_vs_random" not in found, "random takes no steps"
    assert not any("metaschedule" in name or "topk" in name for name in found), "they did not run"


def test_the_level_is_the_median_of_the_baselines_final_throughputs():
    others = [run("autotvm", (1, 1.0, 1, final), seed=seed) for seed, final in enumerate((80, 100, 120))]
    assert Comparison(others, "autotvm").final["w"] == pytest.approx(100)
    assert Comparison(others, "autotvm").missed("autotvm") == pytest.approx(1 / 3)


def test_workloads_weigh_alike_however_long_they_take():
    runs = []
    for workload, scale, speedup in (("long", 1000.0, 2.0), ("short", 1.0, 8.0)):
        runs += [
            run("autotvm", (4, 4 * scale, 4, 1.0), workload=workload, seconds=9 * scale),
            run("chameleon", (4, 4 * scale / speedup, 4, 1.0), workload=workload, seconds=9 * scale),
        ]
    assert Comparison(runs, "autotvm").fewer("seconds", "chameleon").value == pytest.approx(4.0)


def test_equal_time_is_a_share_of_the_baselines_session():
    comparison = Comparison([BASE, QUICK], "autotvm")
    assert comparison.faster("chameleon", share=0.1).value == pytest.approx(99.2 / 50)
    assert comparison.faster("chameleon", share=0.4).value == pytest.approx(105 / 99.5)
    assert comparison.faster("chameleon", trials=10).value == pytest.approx(1.0)


def test_an_interval_covers_seeds_and_workloads():
    rng = np.random.default_rng(0)
    below = {f"w{i}": list(rng.uniform(1, 2, 5)) for i in range(8)}
    doubled = ratio({w: [2 * x for x in values] for w, values in below.items()}, below)
    assert doubled.value == pytest.approx(2.0)
    assert 1 < doubled.low < 2 < doubled.high < 4
    assert doubled.beats
    same = ratio(below, below)
    assert (same.value, same.beats) == (1.0, False)
    exact = ratio({"w": [6.0, 6.0]}, {"w": [2.0, 2.0]})
    assert (exact.value, exact.low, exact.high) == pytest.approx((3, 3, 3))
    assert ratio(below, below) == same, "the resampling is seeded"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="no run of 'autotvm'"):
        Comparison([QUICK], "autotvm")
    with pytest.raises(InputError, match="share no workload"):
        ratio({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(InputError, match="positive"):
        ratio({"a": [0.0]}, {"a": [1.0]})


def test_a_recorder_keeps_improvements_and_counts_failures():
    recorder = Recorder("w", "s", 0, 4)
    for at, latency in enumerate((math.inf, 3.0, 4.0, 2.0), start=1):
        recorder.add(latency, float(at), 10 * at)
    found = recorder.finish(5.0, 50, {"build": 2.0, "run": 1.0})
    assert (found.trials, found.failed) == (4, 1)
    assert [(i.trial, i.seconds, i.steps, i.latency_s) for i in found.improvements] == [
        (2, 2, 20, 3.0),
        (4, 4, 40, 2.0),
    ]
    assert found.phases_s["other"] == pytest.approx(2.0)
    assert sum(found.phases_s.values()) == pytest.approx(found.seconds)
    assert Run.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(InputError, match="not a run"):
        Run.from_json({"workload": "w"})


# -- replay ---------------------------------------------------------------------------------------


class _Bowl(SimulatedRunner):
    """Latencies that fall towards one corner of the space, so that there is something to learn."""

    def outcome(self, candidate):
        distance = sum(zlib.crc32(f"{k}={v}".encode()) % 97 for k, v in candidate.config.items())
        return MeasureResult(Status.OK, (1e-5 * (1 + distance / 100),), "", {"build": 0.1, "run": 0.05})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    hardware = tvm_compat.hardware_for("x86-64-v3")
    func = prim_func(lambda x, y: topi.einsum("bij,blj->bil", x, y), (2, 16, 24), (2, 12, 24))
    part = part_of(GeneratedSpace(func, hardware, 2), np.random.default_rng(0), 150, 220)
    workload = Workload("feed", str(tvm.ir.save_json(func)))
    source = Source("a model", "a task", "generated")
    recorded = corpora.record(
        "toy", workload, part, _Bowl(), MemoryStore(), hardware, source=source, say=lambda line: None
    )
    path = tmp_path_factory.mktemp("corpora")
    corpora.save(recorded, path)
    return path


def test_a_replay_charges_the_recorded_seconds(folder):
    found = sessions.replay("toy", "random", 0, folder=folder, budget=40, batch=16, overhead=False)
    assert (found.trials, found.failed) == (40, 0)
    assert found.phases_s["build"] == pytest.approx(40 * 0.1)
    assert found.phases_s["run"] == pytest.approx(40 * 0.05)
    assert found.seconds == pytest.approx(6.0)
    first = found.improvements[0]
    assert (first.trial, first.seconds) == (1, pytest.approx(16 * 0.1 + 0.05)), "a batch is built before it is run"


def test_a_cold_start_is_the_same_random_configuration_for_all(folder):
    def first(strategy, **options):
        options = {"budget": 1, "batch": 1, "overhead": False, "folder": folder, **options}
        return sessions.replay("toy", strategy, 0, **options).improvements[0].latency_s

    cold = {first(strategy, cold_start=True) for strategy in ("random", "evolutionary", "autotvm")}
    assert len(cold) == 1
    assert cold != {first("random")}


def test_overhead_is_counted_on_top(folder):
    found = sessions.replay("toy", "evolutionary", 0, folder=folder, budget=40, batch=16)
    assert found.seconds > 6.0
    assert found.phases_s["model"] > 0
    assert found.steps > 0
    assert sum(found.phases_s.values()) == pytest.approx(found.seconds)


def test_a_space_that_is_used_up_ends_the_run(folder):
    size = len(corpora.load("toy", folder).results)
    found = sessions.replay("toy", "random", 0, folder=folder, budget=500, overhead=False)
    assert found.trials == size
    assert found.throughput == pytest.approx(corpora.load("toy", folder).throughputs.max())


@pytest.mark.parametrize("strategy", ["random", "genetic", "evolutionary", "autotvm", "sa+as", "chameleon+prior"])
def test_every_strategy_repeats_itself(folder, strategy):
    def once():
        return sessions.replay("toy", strategy, 1, folder=folder, budget=24, batch=8, overhead=False)

    assert once() == once()
    assert once() != sessions.replay("toy", strategy, 2, folder=folder, budget=24, batch=8, overhead=False)


def test_with_a_prior_a_search_is_guided_as_in_tune(monkeypatch):
    recording = corpora.load("conv3x3")
    asked = []

    def once(strategy):
        return sessions.replay("conv3x3", strategy, 0, budget=16, batch=8, overhead=False)

    assert once("evolutionary+prior").best_after(trials=8) > once("evolutionary").best_after(trials=8)
    monkeypatch.setattr(sessions, "predictor_of", lambda *conditions: asked.append(conditions))
    unknown = once("evolutionary+prior")
    assert unknown == replace(once("evolutionary"), strategy="evolutionary+prior"), "the same where no prior fits"
    assert [(workload, threads) for workload, _, _, threads in asked] == [(recording.workload, recording.threads)]


def test_the_shipped_prior_has_seen_none_of_the_recordings():
    recordings = [corpora.load(name) for name in corpora.names()]
    data = library.data_for("shipped", recordings[0].hardware, recordings[0].toolchain)
    seen = {group.workload for group in data.groups}
    assert seen
    assert not seen & {recording.workload.hash for recording in recordings}


def test_the_command_gives_the_same_figures_as_any_other_process(folder, tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["--replay", "--no-overhead", "--strategies", "random,evolutionary", "--seeds", "2", "--trials", "32"]
    arguments += ["--batch", "16", "--baseline", "random", "--subject", "evolutionary", "--corpora", str(folder)]
    assert search.main([*arguments, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    here = [
        sessions.replay("toy", strategy, seed, folder=folder, budget=32, batch=16, overhead=False)
        for strategy in ("random", "evolutionary")
        for seed in range(2)
    ]
    assert [Run.from_json(run) for run in document["runs"]] == here
    assert document["metrics"] == metrics(Comparison(here, "random"), "evolutionary", {"random": "random"})
    assert "time_speedup_vs_random" in capsys.readouterr().out


def test_a_stopped_replay_goes_on(folder, tmp_path, monkeypatch):
    arguments = ["--replay", "--no-overhead", "--seeds", "2", "--trials", "16", "--baseline", "random"]
    arguments += ["--subject", "random", "--corpora", str(folder), "--runs", str(tmp_path / "runs.jsonl")]
    assert search.main([*arguments, "--strategies", "random", "--json", str(tmp_path / "first.json")]) == 0
    asked = []

    def performed(jobs, settings, n):
        asked.extend(jobs)
        return (search._one(job, settings) for job in jobs)

    monkeypatch.setattr(search, "_performed", performed)
    wanted = ["--strategies", "random,genetic", "--json", str(tmp_path / "second.json")]
    assert search.main([*arguments, *wanted]) == 0
    assert asked == [("default", "toy", "genetic", 0), ("default", "toy", "genetic", 1)]
    first, second = (json.loads((tmp_path / f"{name}.json").read_text())["runs"] for name in ("first", "second"))
    assert [run for run in second if run["strategy"] == "random"] == first
    assert search.main([*arguments, *wanted]) == 0
    assert len(asked) == 2, "nothing is left to do"


def test_both_starts_are_compared_each_for_itself(folder, tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["--replay", "--no-overhead", "--strategies", "random,genetic", "--seeds", "1", "--trials", "32"]
    arguments += ["--baseline", "random", "--subject", "genetic", "--corpora", str(folder), "--json", str(path)]
    assert search.main([*arguments, "--starts", "default,random"]) == 0
    document = json.loads(path.read_text())
    both = [Run.from_json(run) for run in document["runs"]]
    for start, prefix in (("default", ""), ("random", "from_random_")):
        alone = [run for run in both if run.start == start]
        assert len(alone) == 2
        expected = metrics(Comparison(alone, "random"), "genetic", {"random": "random"})
        assert {prefix + name: value for name, value in expected.items()}.items() <= document["metrics"].items()
    published = [run for run in both if (run.strategy, run.start) in {("random", "random"), ("genetic", "default")}]
    expected = metrics(Comparison(published, "random"), "genetic", {"random": "random"})
    assert {f"published_{name}": value for name, value in expected.items()}.items() <= document["metrics"].items()
    said = capsys.readouterr().out
    assert "Every search from the random configuration" in said
    assert "Against random as published, which has no reasoned default" in said
    with pytest.raises(SystemExit):
        search.main([*arguments, "--starts", "nowhere"])
    assert "expected one or both of default, random" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "fastest"], "no strategy is called 'fastest'"),
        (["--strategies", "random", "--workloads", "nowhere"], "no corpus 'nowhere'"),
    ],
)
def test_wrong_names_are_one_line_and_status_2(folder, capsys, arguments, message):
    assert search.main(["--replay", "--corpora", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err.strip()


def test_an_empty_folder_is_one_line_and_status_2(tmp_path, capsys):
    assert search.main(["--replay", "--corpora", str(tmp_path)]) == 2
    assert "no recordings in" in capsys.readouterr().err


# -- log ------------------------------------------------------------------------------------------


def test_a_log_survives_a_torn_line_and_refuses_other_settings(tmp_path):
    path = tmp_path / "folder" / "runs.jsonl"
    log = RunLog(path, {"trials": 8})
    log.add({"run": QUICK.to_json()})
    with path.open("ab") as stream:
        stream.write(b'{"run": {"workl')
    again = RunLog(path, {"trials": 8})
    assert [Run.from_json(entry["run"]) for entry in again.entries] == [QUICK]
    again.add({"run": BASE.to_json()})
    assert len(RunLog(path, {"trials": 8}).entries) == 2
    with pytest.raises(InputError, match="was begun with trials 8, now it is 9"):
        RunLog(path, {"trials": 9})
    path.write_text("rubbish\n")
    with pytest.raises(InputError, match="is not a log"):
        RunLog(path, {"trials": 8})


# -- live -----------------------------------------------------------------------------------------


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
    made, races = [], []

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
