"""The metrics of the search benchmark on curves made by hand, and the replay of a small recording."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from tvm import topi

from benchmarks import corpora, search, sessions
from benchmarks.curves import Comparison, Recorder, Run, metrics, ratio
from benchmarks.sessions import RunLog
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.values import WEIGHTS, MeasureResult, Status, Workload
from calumma.database import MemoryStore
from calumma.measure import recorder, recording
from calumma.measure.recording import RecordedKernel
from calumma.prior import library
from calumma.space.generated import GeneratedSpace
from calumma.space.subspace import part_of
from calumma.testing import SimulatedRunner
from tests.prim_funcs import prim_func, tvm
from tests.search_runs import BASE, NEVER, QUICK, run


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
    target = tvm_compat.target_for("x86-64-v3")
    func = prim_func(lambda x, y: topi.einsum("bij,blj->bil", x, y), (2, 16, 24), (2, 12, 24)).with_attr(WEIGHTS, [])
    part = part_of(GeneratedSpace(func, target, 2), np.random.default_rng(0), 150, 220)
    workload = Workload("feed", str(tvm.ir.save_json(func)))
    source = RecordedKernel("a model", "a task", "generated")
    recorded = recorder.record(
        "toy", workload, part, _Bowl(), MemoryStore(), target, source=source, say=lambda line: None
    )
    path = tmp_path_factory.mktemp("corpora")
    recording.save(recorded, path)
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
    size = len(recording.load("toy", folder).results)
    found = sessions.replay("toy", "random", 0, folder=folder, budget=500, overhead=False)
    assert found.trials == size
    assert found.throughput == pytest.approx(recording.load("toy", folder).throughputs.max())


@pytest.mark.parametrize("strategy", ["random", "genetic", "evolutionary", "autotvm", "sa+as", "chameleon+prior"])
def test_every_strategy_repeats_itself(folder, strategy):
    def once():
        return sessions.replay("toy", strategy, 1, folder=folder, budget=24, batch=8, overhead=False)

    assert once() == once()
    assert once() != sessions.replay("toy", strategy, 2, folder=folder, budget=24, batch=8, overhead=False)


def test_with_a_prior_a_search_is_guided_as_in_tune(monkeypatch):
    recorded = recording.load("conv3x3", corpora.FOLDER)
    asked = []

    def once(strategy):
        return sessions.replay("conv3x3", strategy, 0, budget=16, batch=8, overhead=False)

    assert once("evolutionary+prior").best_after(trials=8) > once("evolutionary").best_after(trials=8)
    monkeypatch.setattr(sessions, "predictor_of", lambda *conditions: asked.append(conditions))
    unknown = once("evolutionary+prior")
    assert unknown == replace(once("evolutionary"), strategy="evolutionary+prior"), "the same where no prior fits"
    assert [(workload, threads) for workload, _, _, threads in asked] == [(recorded.workload, recorded.threads)]


def test_the_shipped_prior_has_seen_none_of_the_recordings():
    recordings = [recording.load(name, corpora.FOLDER) for name in corpora.names()]
    data = library.data_for("shipped", recordings[0].toolchain)
    seen = {group.workload for group in data.groups}
    assert seen
    assert not seen & {each.workload.hash for each in recordings}


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
