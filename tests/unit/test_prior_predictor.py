"""Training, weights and predictions: reproducible, independent of batch-mates, refused where they do not fit."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from calumma import tvm_compat
from calumma.core.errors import InputError
from tests import prior_data

from calumma.operators import design_space  # isort: skip  (after prior_data)
from calumma.prior import judging, learning, library, ranking, training, weights  # isort: skip
from calumma.prior.predictor import Predictor, TaskPredictor  # isort: skip
from calumma.prior.weights import Prior, Trust  # isort: skip


@functools.cache
def trained() -> Prior:
    return learning.learn(prior_data.small_dataset(), "small", settings=prior_data.QUICK)


@pytest.fixture(scope="module")
def task() -> TaskPredictor:
    """The prior's view of a workload that it has not seen."""
    workload = prior_data.workloads(prior_data.WORKLOADS + 1)[-1]
    assert workload.task.workload.hash not in trained().data["workloads"]
    target = tvm_compat.target_for()
    space = design_space(workload.function, target, prior_data.THREADS)
    found = Predictor(trained(), target, prior_data.THREADS).task(workload.function, space)
    assert found is not None
    return found


def test_the_same_seed_gives_the_same_weights() -> None:
    again = learning.learn(prior_data.small_dataset(), "again", settings=prior_data.QUICK)
    assert again.digest == trained().digest
    assert again.metrics == trained().metrics
    other = learning.learn(prior_data.small_dataset(), "other", seed=1, settings=prior_data.QUICK)
    assert other.digest != trained().digest


def test_it_learns_what_there_is_to_learn() -> None:
    metrics = trained().metrics["matmul"]
    assert metrics["workloads"] == metrics["judged"] == prior_data.WORKLOADS
    assert metrics["correlation"] > 0.7
    assert metrics["top8"] >= metrics["top1"] > 0.7


def test_predictions_do_not_depend_on_batch_mates(task: TaskPredictor) -> None:
    rows = task.view.space.sample(np.random.default_rng(0), 300)
    together = task.predict(rows)
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = task.predict(rows[order])
    for name in ("latency_s", "gain", "deviation", "error"):
        whole = getattr(together, name)
        assert np.array_equal(getattr(shuffled, name), whole[order])
        for i in (0, 1, len(rows) - 1):
            assert getattr(task.predict(rows[i : i + 1]), name)[0] == whole[i]


def test_an_unseen_task_is_ranked(task: TaskPredictor) -> None:
    found = task.rank()
    space = task.view.space
    assert space.valid(found.indices).all()
    assert len(np.unique(found.indices, axis=0)) == len(found.indices)
    score = found.predictions.score
    assert (np.diff(score) <= 0).all()
    assert np.array_equal(task.rank().indices, found.indices)
    cost = prior_data.cost_of(space, found.indices)
    rows = space.sample(np.random.default_rng(0), 300)
    everywhere = prior_data.cost_of(space, rows)
    assert judging.correlation(task.predict(rows).gain, -everywhere) > 0.6
    assert everywhere.min() / cost[:8].min() > 0.8


def test_a_large_space_is_searched_well() -> None:
    workload = prior_data.workloads()[0]
    space = design_space(workload.function, tvm_compat.target_for(), prior_data.THREADS)
    names = space.feature_names

    def score(indices: np.ndarray) -> np.ndarray:
        table = space.features(indices).astype(np.float64)
        return table[:, names.index("accumulators")] - table[:, names.index("k_unroll")]

    whole, scores = ranking.best(space, score, np.random.default_rng(0), ranking.RankingSettings(exhaustive=1 << 20))
    walked, best = ranking.best(space, score, np.random.default_rng(0), ranking.RankingSettings(0, 32, 4))
    assert len(walked) < len(whole)
    assert best[0] == scores[0]


def test_the_file_gives_the_same_predictions(tmp_path: Path, task: TaskPredictor) -> None:
    path = tmp_path / "small.safetensors"
    weights.save(trained(), path)
    again = weights.load(path)
    assert (again.digest, again.data, again.metrics) == (trained().digest, trained().data, trained().metrics)
    twin = TaskPredictor(again.families["matmul"], task.view, task.trust, 0)
    rows = task.view.space.sample(np.random.default_rng(0), 10)
    assert np.array_equal(twin.predict(rows).latency_s, task.predict(rows).latency_s)


def changed(path: Path, **entries: object) -> None:
    """Rewrite a prior's header."""
    with safetensors.safe_open(str(path), framework="np") as file:
        header = json.loads(file.metadata()["calumma"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    header.update(entries)
    path.write_bytes(safetensors.numpy.save(tensors, {"calumma": json.dumps(header)}))


@pytest.mark.parametrize(
    "damage",
    ["cut", "flipped", "empty", "version", "features", "format", "no metadata", "digest", "columns", "spread"],
)
def test_damaged_or_mismatched_weights_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "small.safetensors"
    weights.save(trained(), path)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-100])
    elif damage == "flipped":
        path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 0x40]) + whole[-99:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no metadata":
        path.write_bytes(safetensors.numpy.save({"x": np.zeros(3, np.float32)}))
    elif damage in ("version", "features"):
        changed(path, **{damage: 99})
    elif damage == "columns":
        changed(path, families=[{**family_entry(), "columns": ["one"]}])
    elif damage == "spread":
        changed(path, families=[{**family_entry(), "spread": float("nan")}])
    else:
        changed(path, **{damage: "something else"})
    with pytest.raises(InputError, match=r"small\.safetensors cannot be used") as refused:
        weights.load(path)
    assert "\n" not in str(refused.value)


def family_entry() -> dict[str, object]:
    family = trained().families["matmul"]
    return {
        "template": "matmul",
        "version": family.version,
        "columns": list(family.columns),
        "spread": family.spread,
        "level_error": family.level_error,
        "trusts": {"unseen": {"caution": 1.0, "least_gain": 0.1}},
    }


def test_another_machine_or_thread_count_is_refused() -> None:
    here = tvm_compat.target_of(trained().trained_on[0].hardware)
    with pytest.raises(InputError, match=r"trained on .* need not hold for another"):
        Predictor(trained(), replace(here, cpu_model="another"), prior_data.THREADS)
    with pytest.raises(InputError, match="2 threads, not with 7"):
        Predictor(trained(), here, 7)


def test_an_unknown_template_version_is_left_alone(task: TaskPredictor) -> None:
    target = tvm_compat.target_for()
    workload = prior_data.workloads()[0]
    space = design_space(workload.function, target, prior_data.THREADS)
    family = trained().families["matmul"]
    newer = replace(trained(), families={"matmul": replace(family, version=family.version + 1)})
    assert Predictor(newer, target, prior_data.THREADS).task(workload.function, space) is None
    assert Predictor(replace(trained(), families={}), target, prior_data.THREADS).task(workload.function, space) is None


def test_without_trust_the_default_stays(task: TaskPredictor) -> None:
    order = task.family.order
    flat = replace(order, leaves=np.zeros_like(order.leaves))
    assert not TaskPredictor(replace(task.family, order=flat), task.view, Trust(1.0, 0.02), 0).rank().trusted


def test_trees_as_arrays_predict_what_xgboost_does() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((500, 6)).astype(np.float32)
    target = table[:, 0] * (table[:, 1] > 0.3) + 0.1 * table[:, 2]
    settings = replace(prior_data.QUICK, depth=4)
    parts = (table, target.astype(np.float64), np.ones(500), 0, settings, 30, 4)
    booster = training._boosted(*parts)
    forest = training._forest([f"column {i}" for i in range(6)], [booster], 4)
    expected = booster.inplace_predict(table)
    np.testing.assert_allclose(forest.predict(table)[0], expected, rtol=1e-4, atol=1e-5)


def test_too_little_data_is_said(tmp_path: Path) -> None:
    data = prior_data.small_dataset()
    with pytest.raises(InputError, match="nothing to learn from"):
        learning.learn(replace(data, groups=data.groups[:3]), "few", settings=prior_data.QUICK)


def test_folds_keep_networks_whole() -> None:
    networks = ["a", "b", "a", "c", "d", "b"]
    found = judging.folds(networks, 3)
    assert found[0] == found[2] and found[1] == found[5]
    assert judging.folds(["b", "a"], 3) != judging.folds(["b", "a", "c"], 1)
    assert set(judging.folds(["a"] * 4, 3)) == {0}


def test_the_newest_prior_that_fits_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    own.mkdir()
    shipped.mkdir()
    monkeypatch.setattr(library, "user_folder", lambda: own)
    monkeypatch.setattr(library, "SHIPPED", shipped)
    here = tvm_compat.target_for().hardware
    (cpu,), another = trained().trained_on, replace(here, cpu_model="another")
    assert library.choose(here, 2)[0] is None
    weights.save(replace(trained(), name="shipped"), shipped / "shipped.safetensors")
    weights.save(replace(trained(), name="old"), own / "old.safetensors")
    weights.save(replace(trained(), name="new"), own / "new.safetensors")
    weights.save(
        replace(trained(), name="other", trained_on=(replace(cpu, hardware=another),)), own / "other.safetensors"
    )
    for age, name in enumerate(("other", "new", "old")):
        stamp = 1_000_000_000 - age
        (own / f"{name}.safetensors").touch()
        os.utime(own / f"{name}.safetensors", (stamp, stamp))
    chosen, note = library.choose(here, prior_data.THREADS)
    assert chosen is not None and chosen.name == "new" and note == ""
    nothing, note = library.choose(replace(here, cpu_model="a third one"), prior_data.THREADS)
    assert nothing is None and "calumma tune" in note and "calumma collect" in note and "\n" not in note
    assert library.find("shipped").name == "shipped"
    with pytest.raises(InputError, match="no such prior"):
        library.find("nobody")


@pytest.mark.parametrize("name", ["auto", "none", "a/b", "", ".hidden", "x" * 200])
def test_names_that_no_prior_can_have(name: str) -> None:
    with pytest.raises(InputError):
        library.destination(name)


def test_data_of_another_toolchain_does_not_mix() -> None:
    data = prior_data.small_dataset()
    with pytest.raises(InputError, match="do not go together"):
        data.merged(replace(data, toolchain="tvm 9"))
