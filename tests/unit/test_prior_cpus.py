"""Priors of several CPUs: what they may say of one that they have not seen, and how measurements move them there."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calumma import tvm_compat
from tests import prior_data

from calumma.operators import design_space  # isort: skip  (after prior_data)
from calumma.prior import adaptation, dataset, judging, learning, library, machines, weights  # isort: skip
from calumma.prior.adaptation import Adaptation  # isort: skip
from calumma.prior.few_shot import log_latencies  # isort: skip
from calumma.prior.predictor import Gains, Predictor, TaskPredictor  # isort: skip
from calumma.prior.weights import ADAPTED, UNSEEN, Prior, Trust  # isort: skip

SURE = Trust(1.0, 0.02)


@functools.cache
def of_both() -> Prior:
    return learning.learn(prior_data.of_both_cpus(), "both", settings=prior_data.QUICK)


@functools.cache
def of_one() -> Prior:
    return learning.learn(prior_data.small_dataset(), "one", settings=prior_data.QUICK)


def trusting(prior: Prior, **trusts: Trust) -> Prior:
    family = prior.families["matmul"]
    return replace(prior, families={"matmul": replace(family, trusts={**family.trusts, **trusts})})


def task_of(predictor: Predictor, number: int) -> TaskPredictor:
    """What a prior says of a workload of the other CPU."""
    func = prior_data.workloads(number + 1, prior_data.OTHER)[number].function
    found = predictor.task(func, design_space(func, prior_data.other_cpu(), prior_data.THREADS))
    assert found is not None
    return found


def test_a_prior_of_two_cpus_is_judged_on_each_without_it() -> None:
    prior = of_both()
    cpus = {machine.hardware.fingerprint for machine in prior.trained_on}
    metrics = prior.metrics["matmul"]
    assert len(cpus) == 2 and set(metrics["unseen"]) == set(metrics["adapted"]) == cpus
    for values in (*metrics["unseen"].values(), *metrics["adapted"].values()):
        assert values["judged"] == prior_data.WORKLOADS and values["top8"] >= values["top1"] > 0.5, metrics
    places = {machines.place(machine.hardware, prior_data.THREADS) for machine in prior.trained_on}
    assert set(prior.families["matmul"].trusts) == places | {UNSEEN, ADAPTED}
    assert {values["workloads"] for values in prior.data["cpus"].values()} == {prior_data.WORKLOADS}
    assert any(name.startswith(machines.CPU) for name in prior.families["matmul"].columns)
    # The other CPU has less of everything that a column could have room for.
    assert "accumulators/room" in prior.families["matmul"].columns


def test_the_same_layer_is_known_on_cpus_of_other_vectors() -> None:
    layers: dict[str, set[str]] = {}
    for example in learning.examples(prior_data.of_both_cpus()):
        layers.setdefault(example.cpu, set()).add(example.layer)
    here, there = layers.values()
    assert len(here & there) >= prior_data.WORKLOADS // 2


def test_what_is_said_of_a_cpu_never_seen() -> None:
    third = replace(prior_data.other_cpu(), cpu_model="A third CPU")
    sure = trusting(of_both(), **{UNSEEN: SURE})
    assert sure.mismatch(third.hardware, prior_data.THREADS) == "" and sure.beats_defaults == ("matmul",)
    predictor = Predictor(sure, third, prior_data.THREADS)
    assert not predictor.seen and task_of(predictor, 0).trust == SURE
    unsure = trusting(of_both(), **{UNSEEN: Trust()})
    assert "did not beat the defaults" in unsure.mismatch(third.hardware, prior_data.THREADS)
    assert "need not hold for another" in of_one().mismatch(
        replace(tvm_compat.target_for(), cpu_model="A third CPU").hardware, prior_data.THREADS
    )
    assert "128 bits it has seen none" in sure.mismatch(replace(third, vector_bits=128).hardware, prior_data.THREADS)
    assert "not with 7" in sure.mismatch(third.hardware, 7)
    # Where all is measured before it is used, any prior may be asked.
    assert not Predictor(unsure, third, prior_data.THREADS, measuring=True).seen


def test_beating_the_defaults_needs_all_cpus() -> None:
    """Gains of 10 % with little scatter, on one CPU; on the other the same, nothing, or a loss."""

    def seen(gain: float) -> list[judging.Seen]:
        (example, *_) = learning.examples(
            replace(prior_data.small_dataset(), groups=prior_data.small_dataset().groups[:1])
        )
        made = replace(example, target=np.array([0.0, -gain]), default_row=0)
        return [judging.Seen(Gains(np.array([0.0, 0.3]), np.zeros(2)), made)] * judging.LEAST_GROUPS

    assert judging.trust([seen(0.1)]).any
    assert not judging.trust([seen(0.1)], elsewhere=True).any
    assert judging.trust([seen(0.1), seen(0.09)], elsewhere=True).any
    assert not judging.trust([seen(0.1), seen(0.0)], elsewhere=True).any
    assert not judging.trust([seen(0.2), seen(0.15), seen(0.18), seen(-0.01)], elsewhere=True).any
    assert not judging.trust([seen(0.1), seen(0.1)[:4]], elsewhere=True).any


def test_measurements_move_a_prior_to_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "user_folder", lambda: tmp_path)
    monkeypatch.setattr(library, "SHIPPED", tmp_path / "nothing")
    other, threads = prior_data.other_cpu(), prior_data.THREADS
    base = trusting(of_one(), **{ADAPTED: SURE})
    weights.save(base, tmp_path / "one.safetensors")
    chosen, note = library.choose(other.hardware, threads, measuring=True)
    assert chosen is not None and chosen.digest == base.digest and "has not seen this CPU" in note
    assert library.choose(other.hardware, threads)[0] is None

    data = prior_data.made(prior_data.records(prior_data.OTHER))
    moved = adaptation.by_records(base, data, threads)
    assert moved is not None and (moved.moved_rows, moved.trained_on) == (data_rows(data), base.trained_on)
    judgements = []
    for prior in (base, moved):
        task = task_of(Predictor(prior, other, threads, measuring=True), prior_data.WORKLOADS)
        rows = task.view.space.sample(np.random.default_rng(0), 300)
        cost = prior_data.cost_of(task.view.space, rows, 0.0)
        judgements.append(judging.correlation(task.predict(rows).gain, -cost))
    assert judgements[1] > judgements[0] + 0.05

    path = adaptation.keep(moved)
    path.with_name(path.name.replace(f"-v{weights.VERSION}", "-v0")).write_bytes(b"of an older version")
    assert [entry.origin for entry in library.entries()] == ["moved", "own"]
    kept, note = library.choose(other.hardware, threads)
    assert kept is not None and kept.digest == moved.digest and note == ""
    assert kept.has_moved(other.hardware, threads) and not kept.has_moved(other.hardware, threads + 1)
    assert Predictor(kept, other, threads).seen
    assert kept.families["matmul"].trust(machines.place(other.hardware, threads)) == SURE


def data_rows(data: dataset.Dataset) -> int:
    return sum(int(np.isfinite(group.latency_s).sum()) for group in data.groups)


def test_tasks_of_a_session_share_what_is_measured_on_a_new_cpu() -> None:
    predictor = Predictor(of_one(), prior_data.other_cpu(), prior_data.THREADS, measuring=True)
    session = adaptation.begin(predictor)
    assert isinstance(session, Adaptation) and session.prior() is None
    first, second = (task_of(predictor, number) for number in range(2))
    models = [session.model(f"task {number}", task) for number, task in enumerate((first, second))]
    rows = second.view.space.sample(np.random.default_rng(0), 100)
    before = models[1].predict(second.table(rows))
    measured = first.view.space.sample(np.random.default_rng(1), 100)
    scores = 1 / prior_data.cost_of(first.view.space, measured, 0.0)
    models[0].fit(first.table(measured[:20]), scores[:20])
    assert session.prior() is None  # that is no minute
    models[0].fit(first.table(measured), np.where(np.arange(len(scores)) == 3, 0.0, scores))
    after = models[1].predict(second.table(rows))
    cost = prior_data.cost_of(second.view.space, rows, 0.0)
    assert judging.correlation(after, -cost) > judging.correlation(before, -cost)
    moved = session.prior()
    assert moved is not None and moved.moved_rows == len(scores) - 1  # a failure says nothing of the CPU
    assert {"task 0"} <= set(moved.data["workloads"])
    # A CPU that the prior was trained on is not moved to.
    assert adaptation.begin(Predictor(of_one(), tvm_compat.target_for(), prior_data.THREADS)) is None
    assert adaptation.begin(None) is None and log_latencies(scores).shape == scores.shape
