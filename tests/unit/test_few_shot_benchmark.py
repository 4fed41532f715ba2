"""The few-shot benchmark on a small task made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import prior_few_shot
from benchmarks.curves import Comparison, Improvement, Run
from benchmarks.prior_few_shot import SHOTS, Contender, Recording, SeenSpace, measurement_ratio, plot, shots
from benchmarks.prior_networks import Ensemble, MetaTrainedModel, adapted, embedded
from calumma.core.errors import InputError
from calumma.cost_model import GradientBoostedTrees
from calumma.cost_model.scoring import Features, Scores
from calumma.testing import ToySpace


class Oracle:
    """Knows the answer, which is the first column."""

    def fit(self, features: Features, scores: Scores) -> None:
        pass

    def predict(self, features: Features) -> Scores:
        return features[:, 0].astype(np.float64)


class Corpus:
    throughputs = np.random.default_rng(3).random(300) + 0.1


def rows(models: tuple[str, ...]) -> list[dict[str, object]]:
    return [
        {"part": "few-shot", "model": model, "shots": k, "rank_correlation": 0.5, "top_k_recall": 0.2}
        for model in models
        for k in SHOTS
    ]


def test_shots_judge_on_what_was_not_measured():
    table = np.random.default_rng(0).random((300, 3)).astype(np.float32)
    contenders = {
        "xgboost": Contender(table, GradientBoostedTrees),
        "oracle": Contender(Corpus.throughputs[:, None].astype(np.float32), lambda _: Oracle()),
    }
    found = shots({"toy": Recording(Corpus(), None, contenders)}, lambda line: None, draws=2)  # type: ignore[arg-type]
    assert [(row["model"], row["shots"]) for row in found] == [(m, k) for k in SHOTS for m in contenders]
    for row in found:
        if row["model"] == "oracle":
            assert (row["rank_correlation"], row["top_k_recall"]) == (pytest.approx(1.0), 1.0)
        elif row["shots"] == 0:
            assert (row["rank_correlation"], row["top_k_recall"]) == (0.0, 0.0)
        else:  # features that say nothing
            assert abs(row["rank_correlation"]) < 0.3


def test_a_space_is_seen_through_a_table():
    space = ToySpace(width=28)
    members = space.sample(np.random.default_rng(0), 50)
    table = np.arange(len(members), dtype=np.float32)[:, None]
    space.members = members  # type: ignore[attr-defined]
    seen = SeenSpace(space, table)  # type: ignore[arg-type]
    np.testing.assert_array_equal(seen.features(members[[7, 3, 3]])[:, 0], [7, 3, 3])
    assert seen.features(members[:0]).shape == (0, 1) and len(seen.feature_names) == 1 and seen.knobs == space.knobs


def test_an_adapted_network_is_the_network_with_another_last_layer():
    rng = np.random.default_rng(0)
    shapes = ((4, 8), (8, 6), (6, 1))
    network = Ensemble(
        tuple("abcd"),
        np.zeros(4, np.float32),
        np.ones(4, np.float32),
        tuple(rng.normal(size=(3, *shape)).astype(np.float32) for shape in shapes),
        tuple(np.zeros((3, 1, shape[1]), np.float32) for shape in shapes),
    )
    table, scores = rng.normal(size=(40, 4)).astype(np.float32), rng.random(10) + 0.1
    features = embedded(network, table)
    model = MetaTrainedModel(network.members, ridge=0.5)
    np.testing.assert_allclose(model.predict(features), -network.predict(table).mean(axis=0), rtol=1e-4, atol=1e-5)
    model.fit(features[:10], np.zeros(10))
    np.testing.assert_allclose(model.predict(features), -network.predict(table).mean(axis=0), rtol=1e-4, atol=1e-5)
    model.fit(features[:10], scores)
    hidden, outputs = network.layers(table)
    delta = adapted(hidden[:, :10], outputs[:, :10], -np.log(scores), 0.5)
    expected = -(outputs + (hidden @ delta)[:, :, 0]).mean(axis=0)
    np.testing.assert_allclose(model.predict(features), expected, rtol=1e-3, atol=1e-4)


def test_the_ratio_is_of_measurements_over_the_baselines():
    def run(model: str, seed: int, trial: int) -> Run:
        found = (Improvement(1, 0.0, 0, 1 / 50), Improvement(trial, 1.0, 10, 1 / 100))
        return Run("w", model, seed, 128, 128, 0, 2.0, 10, {}, found)

    runs = [run("xgboost", seed, 40) for seed in range(3)] + [run("few-shot", seed, 10) for seed in range(3)]
    ratio = measurement_ratio(Comparison(runs, "xgboost"))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.25, 0.25, 0.25))


def test_all_models_are_on_one_plot(tmp_path):
    models = tuple(f"model {i}" for i in range(len(prior_few_shot._COLOURS)))
    path = tmp_path / "curves.svg"
    plot(rows(models), path)
    text = path.read_text()
    assert all(model in text for model in models) and len(text) < 100_000
    again = tmp_path / "again.svg"
    plot(rows(models), again)
    assert again.read_text() == text
    with pytest.raises(InputError, match="cannot be written"):
        plot(rows(models), tmp_path / "curves.nothing")
