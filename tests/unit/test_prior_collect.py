"""Collecting with a simulated runner: shares, turns, budgets, going on where the last session stopped."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from calumma import api
from calumma.cli import main
from calumma.core.errors import InputError
from calumma.core.values import COLLECTION, Budget, Candidate, MeasureResult, Status
from calumma.database import MemoryStore
from calumma.prior.collection import (
    DEFAULT,
    FINALIST,
    RANDOM,
    Collection,
    CollectProgress,
    CollectResult,
    CollectSettings,
    FamilyProgress,
)
from calumma.prior.workloads import TrainingWorkload, drawn_workloads
from calumma.testing import SimulatedRunner
from tests import isas

FAMILIES = ("pointwise", "depthwise", "dense")
ONCE = CollectSettings(finalists=0)
LEVEL = "x86-64-v4"
"""What is collected for, on any CPU: nothing runs. All spaces of its first dozen workloads hold 24 and more."""


@pytest.fixture(scope="module")
def workloads() -> list[TrainingWorkload]:
    return dozen(LEVEL)


def dozen(level: str) -> list[TrainingWorkload]:
    return list(itertools.islice(drawn_workloads(isas.target(level), families=FAMILIES), 12))


class KeyedRunner(SimulatedRunner):
    """Latencies that depend on the configuration, Ctrl-C or failures where they are wanted."""

    def __init__(self, interrupt_after: int | None = None, failing: Callable[[Candidate], bool] = lambda c: False):
        super().__init__()
        self._interrupt_after = interrupt_after
        self._failing = failing
        self._measured = 0

    def outcome(self, candidate: Candidate) -> MeasureResult:
        if self._measured == self._interrupt_after:
            raise KeyboardInterrupt
        self._measured += 1
        phases_s = {"run": 0.2}
        if self._failing(candidate):
            return MeasureResult(Status.BUILD_ERROR, phases_s=phases_s)
        return MeasureResult(Status.OK, (1e-3 * (1 + int(candidate.key, 16) % 97 / 97),), phases_s=phases_s)

    def verdict(self, candidate: Candidate) -> MeasureResult:
        raise AssertionError("a collection verifies nothing")


def collect(
    workloads: Sequence[TrainingWorkload] | Iterator[TrainingWorkload],
    store: MemoryStore,
    runner: KeyedRunner | None = None,
    budget: Budget | None = None,
    level: str = LEVEL,
    **options: Any,
) -> CollectResult:
    runner = runner or KeyedRunner()
    options.setdefault("settings", ONCE)
    collection = Collection(
        iter(workloads),
        runner,
        store,
        budget or Budget(),
        target=isas.target(level),
        toolchain="toy",
        clock=runner.clock,
        **options,
    )
    return collection.run()


def origins(store: MemoryStore) -> Counter[str]:
    return Counter(record.strategy for record in store.records())


def test_every_workload_gets_its_configurations_once(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    result = collect(workloads, store)
    records = store.records()
    assert len({record.candidate.key for record in records}) == len(records) == 12 * 24
    assert Counter(record.candidate.workload.hash for record in records) == {
        workload.task.workload.hash: 24 for workload in workloads
    }
    assert result.exhausted and not result.interrupted
    assert (result.progress.workloads, result.progress.trials, result.progress.failures) == (12, 288, 0)
    assert result.statuses == {"ok": 288}


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3"])
def test_a_space_of_fewer_configurations_than_a_turn_is_measured_whole(level: str) -> None:
    """On narrow vectors the tiles of one depthwise convolution leave 21 configurations, 3 fewer than others get."""
    store, workloads = MemoryStore(), dozen(level)
    result = collect(workloads, store, level=level)
    counts = Counter(record.candidate.workload.hash for record in store.records())
    (small,) = (workload for workload in workloads if counts[workload.task.workload.hash] != 24)
    assert (small.family, counts[small.task.workload.hash]) == ("depthwise", 21)
    assert result.exhausted and result.progress.workloads == 12
    assert collect(workloads, store, level=level).progress.trials == 0


def test_half_is_random_and_half_a_search_that_begins_with_the_default(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    collect(workloads, store)
    assert origins(store) == {DEFAULT: 12, RANDOM: 12 * 12, "evolutionary": 12 * 11}
    first = store.records(workloads=[workloads[0].task.workload.hash])[0]
    assert first.strategy == DEFAULT


@pytest.mark.parametrize(("share", "random"), [(0.0, 3), (1.0, 23)])
def test_the_random_share_is_a_setting(workloads: list[TrainingWorkload], share: float, random: int) -> None:
    store = MemoryStore()
    collect(workloads[:1], store, settings=CollectSettings(random_share=share, finalists=0))
    assert origins(store)[RANDOM] == random  # the first turn is random but for the default: nothing is known yet


def test_a_stopped_collection_is_balanced(workloads: list[TrainingWorkload]) -> None:
    store, runner = MemoryStore(), KeyedRunner()
    result = collect(workloads, store, runner, Budget(trials=100))
    assert len(store.records()) == result.progress.trials == 100
    assert result.progress.trials_left == 0 and not result.exhausted
    assert len(runner.batches[0]) == 8  # until it is known how long a candidate takes
    of_batch = Counter(candidate.workload.hash for candidate in runner.batches[1])
    assert set(of_batch.values()) == {4} and len(of_batch) == 8


def test_a_budget_in_seconds_ends_it(workloads: list[TrainingWorkload]) -> None:
    store, runner = MemoryStore(), KeyedRunner()
    result = collect(workloads, store, runner, Budget(seconds=10.0))
    assert 9.0 < runner.now_s <= 10.0
    assert result.progress.seconds_left is not None and result.progress.seconds_left < 1.0


def test_another_session_goes_on_where_one_stopped(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    collect(workloads, store, budget=Budget(trials=101))
    runner = KeyedRunner()
    result = collect(workloads, store, runner)
    assert sum(map(len, runner.batches)) == 12 * 24 - 101
    assert result.progress.recalled == 101
    keys = [record.candidate.key for record in store.records()]
    assert len(set(keys)) == len(keys) == 12 * 24
    assert origins(store) == {DEFAULT: 12, RANDOM: 12 * 12, "evolutionary": 12 * 11}
    # Of a workload that is known the best is passed on, so that slow candidates stop early.
    assert runner.best_s[0]
    finished = collect(workloads, store)
    assert (finished.progress.trials, finished.progress.workloads, finished.exhausted) == (0, 12, True)


class LuckyRunner(KeyedRunner):
    """Whatever is measured for the first time may come out twice as fast as it is, by luck."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Counter[str] = Counter()

    def outcome(self, candidate: Candidate) -> MeasureResult:
        result = super().outcome(candidate)
        self._seen[candidate.key] += 1
        if self._seen[candidate.key] > 1 or int(candidate.key, 16) % 3:
            return result
        return MeasureResult(Status.OK, (result.latency_s / 2,), phases_s=result.phases_s)


@pytest.mark.parametrize("stop", [None, 26, 30])
def test_the_best_and_the_default_are_measured_again(workloads: list[TrainingWorkload], stop: int | None) -> None:
    store, runner = MemoryStore(), LuckyRunner()
    settings = CollectSettings(most_again=100)
    if stop is not None:
        collect(workloads[:1], store, runner, Budget(trials=stop), settings=settings)
    result = collect(workloads[:1], store, runner, settings=settings)
    measured: dict[str, list[float]] = {}
    for record in store.records():
        measured.setdefault(record.candidate.key, []).append(record.result.latency_s)
    default = store.records()[0]
    order = sorted(measured, key=lambda key: median(measured[key]))
    assert default.strategy == DEFAULT
    assert {len(measured[key]) for key in (*order[:3], default.candidate.key)} == {3}
    assert origins(store)[FINALIST] == sum(len(values) - 1 for values in measured.values())
    assert len(measured) == 24 and result.exhausted
    # In every batch a finalist is measured once at most, so that its measurements lie apart.
    assert all(len({c.key for c in batch}) == len(batch) for batch in runner.batches)
    assert collect(workloads[:1], store, runner, settings=settings).progress.trials == 0


def test_measuring_again_has_a_limit(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    collect(workloads[:1], store, LuckyRunner(), settings=CollectSettings(most_again=5))
    assert origins(store)[FINALIST] == 5


def test_records_under_other_conditions_do_not_count(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    collect(workloads[:1], store)
    runner = KeyedRunner()
    runner.threads = 1
    collect(workloads[:1], store, runner)
    assert sum(map(len, runner.batches)) == 24


def test_ctrl_c_keeps_what_was_measured(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    result = collect(workloads, store, KeyedRunner(interrupt_after=45))
    assert result.interrupted and not result.exhausted
    assert len(store.records()) == result.progress.trials == 45
    (session,) = store.sessions()
    assert session.summary is not None and session.summary["interrupted"] is True
    again = collect(workloads, store)
    assert again.progress.recalled + again.progress.trials == 12 * 24


def test_a_hopeless_workload_is_given_up(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    bad = workloads[0].task.workload.hash
    result = collect(workloads[:2], store, KeyedRunner(failing=lambda c: c.workload.hash == bad))
    assert len(store.records(workloads=[bad])) == 8
    assert len(store.records()) == 8 + 24
    assert result.progress.failures == result.statuses["build_error"] == 8


def test_a_small_space_is_measured_whole() -> None:
    store = MemoryStore()
    (softmax,) = itertools.islice(drawn_workloads(isas.target(LEVEL), families=("rows",)), 1)
    collect([softmax], store, settings=CollectSettings(configs=1000, finalists=0))
    keys = [record.candidate.key for record in store.records()]
    assert 5 < len(keys) < 100 and len(set(keys)) == len(keys)
    assert collect([softmax], store, settings=CollectSettings(configs=1000, finalists=0)).progress.trials == 0


def test_the_session_says_what_it_was(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    seen: list[CollectProgress] = []
    result = collect(workloads[:3], store, seed=7, options={"families": ["pool"]}, progress=seen.append)
    (session,) = store.sessions()
    assert session.id == result.session
    assert session.options == {"kind": COLLECTION, "seed": 7, "families": ["pool"]}
    assert session.summary is not None and session.summary["trials"] == 72
    assert {(record.session, record.seed, record.toolchain) for record in store.records()} == {(session.id, 7, "toy")}
    assert [progress.trials for progress in seen] == sorted(progress.trials for progress in seen)
    assert seen[-1] == result.progress
    assert {family.family for family in result.progress.families} == {w.family for w in workloads[:3]}


def test_the_same_seed_measures_the_same(workloads: list[TrainingWorkload]) -> None:
    def keys(seed: int) -> list[str]:
        store = MemoryStore()
        collect(workloads[:2], store, seed=seed)
        return [record.candidate.key for record in store.records()]

    assert keys(0) == keys(0) != keys(1)


@pytest.mark.parametrize(
    "settings", [{"configs": 0}, {"random_share": 1.5}, {"strategy": "guessing"}, {"together": 0}, {"turn": 0}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CollectSettings(**settings)


def test_other_hardware_has_its_own_records(workloads: list[TrainingWorkload]) -> None:
    store = MemoryStore()
    collect(workloads[:1], store)
    other = replace(isas.target(LEVEL), cpu_model="Another CPU")
    runner = KeyedRunner()
    collection = Collection(
        iter(workloads[:1]), runner, store, Budget(), target=other, toolchain="toy", settings=ONCE, clock=runner.clock
    )
    collection.run()
    assert sum(map(len, runner.batches)) == 24


def test_the_command_passes_every_option_and_prints_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = CollectProgress(
        families=(FamilyProgress("conv", 5, 130, 2), FamilyProgress("pool", 1, 20, 0)),
        recalled=3,
        elapsed_s=60.0,
        seconds_left=0.0,
        trials_left=None,
        eta_s=0.0,
        candidates_per_s=2.5,
    )
    asked: list[tuple[Any, dict[str, Any]]] = []

    def answer(models: Any, **options: Any) -> CollectResult:
        options.pop("on_progress")(progress)
        asked.append((models, options))
        return CollectResult("20260131-120000", progress, {"ok": 148, "run_timeout": 2}, True, False)

    monkeypatch.setattr(api, "collect", answer)
    model, out = tmp_path / "model.onnx", tmp_path / "out.json"
    model.write_bytes(b"never read here")
    options = (
        "--budget 2m --trials 9 --seed 3 --threads 1 --configs 8 --families conv,pool --exclude resnet50 "
        "--cache-state warm --mcpu x86-64-v3"
    )
    given = [*options.split(), "--exclude-model", str(model), "--db", "r.sqlite", "--json", str(out)]
    assert main(["collect", *given]) == 130
    assert asked == [
        (
            (),
            {
                "budget": Budget(seconds=120.0, trials=9),
                "database": "r.sqlite",
                "seed": 3,
                "threads": 1,
                "mcpu": "x86-64-v3",
                "families": ("conv", "pool"),
                "exclude": ("resnet50",),
                "exclude_models": (model,),
                "configs": 8,
                "cache_state": "warm",
            },
        )
    ]
    captured = capsys.readouterr()
    assert "60 s, 6 workloads finished, 150 trials, 3 known from before, 2.5/s, 0 s left, 2 failed" in captured.out
    assert "interrupted: the same command goes on from here" in captured.out
    assert "150 trials" in captured.err
    first, last = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["event"], first["workloads"], first["families"][0]["failures"]) == ("progress", 6, 2)
    assert (last["event"], last["interrupted"], last["statuses"]["ok"]) == ("result", True, 148)


def test_a_budget_in_trials_alone_has_no_limit_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[Budget] = []

    def answer(models: Any, *, budget: Budget, **options: Any) -> CollectResult:
        budgets.append(budget)
        raise InputError("enough")

    monkeypatch.setattr(api, "collect", answer)
    assert main(["collect", "--trials", "5"]) == 2
    assert main(["collect"]) == 2
    assert budgets == [Budget(trials=5), Budget(seconds=600.0)]
