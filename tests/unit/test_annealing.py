"""Simulated annealing, AutoTVM's genetic algorithm, and k-means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from calumma.core.protocols import Indices
from calumma.search import History, SearchStats
from calumma.search.annealing import AnnealingExplorer, AnnealingSettings
from calumma.search.genetic import GeneticSettings, GeneticStrategy
from calumma.search.kmeans import grow
from calumma.testing import ToySpace

LARGE = ToySpace(width=56, extra=6)


def score(indices: Indices) -> NDArray[np.float64]:
    columns = LARGE.columns(indices)
    return -np.abs(columns["tile_x"] * columns["tile_c"] - 28.0) - np.abs(columns["split_k"] - 8.0)


def test_annealing_returns_the_best_it_came_by_and_nothing_known() -> None:
    rng, scored = np.random.default_rng(0), []
    history = History(LARGE)
    known = LARGE.sample(rng, 400)
    history.tell(known, np.ones(400))

    def watched(indices: Indices) -> NDArray[np.float64]:
        scored.append(indices.copy())
        return score(indices)

    explored = AnnealingExplorer(LARGE, rng).explore(history, watched, SearchStats())
    assert len(explored.indices) == 64 and LARGE.valid(explored.indices).all()
    np.testing.assert_array_equal(explored.scores, score(explored.indices))
    assert (np.diff(explored.scores) <= 0).all()
    seen = history.fresh(np.concatenate(scored))
    np.testing.assert_array_equal(np.sort(score(seen))[::-1][:64], explored.scores)


def test_a_step_of_annealing_changes_one_knob_of_every_chain() -> None:
    rng, scored = np.random.default_rng(0), []

    def flat(indices: Indices) -> NDArray[np.float64]:
        scored.append(indices.copy())
        return np.zeros(len(indices))

    settings = AnnealingSettings(steps=20, start=1.0, end=1.0)
    AnnealingExplorer(LARGE, rng, settings).explore(History(LARGE), flat, SearchStats())
    assert all(len(batch) == 128 and LARGE.valid(batch).all() for batch in scored) and len(scored) == 21
    for before, after in itertools.pairwise(scored):  # exp(0) = 1: every move is accepted
        assert ((before != after).sum(axis=1) == 1).mean() > 0.95


def test_annealing_stops_when_nothing_new_is_found() -> None:
    steps = []

    def flat(indices: Indices) -> NDArray[np.float64]:
        steps.append(len(indices))
        return np.zeros(len(indices))

    settings = AnnealingSettings(keep=8, patience=10)
    AnnealingExplorer(LARGE, np.random.default_rng(0), settings).explore(History(LARGE), flat, SearchStats())
    assert len(steps) == 1 + 10, "the starts, the first step and those that brought nothing"


@pytest.mark.parametrize("persistent", [True, False])
def test_chains_go_on_where_they_were(persistent: bool) -> None:
    rng = np.random.default_rng(0)
    explorer = AnnealingExplorer(LARGE, rng, AnnealingSettings(steps=10, persistent=persistent))
    batches: list[Indices] = []

    def watched(indices: Indices) -> NDArray[np.float64]:
        batches.append(indices.copy())
        return score(indices)

    explorer.explore(History(LARGE), watched, SearchStats())
    seen = {row.tobytes() for row in np.concatenate(batches)}
    batches.clear()
    explorer.explore(History(LARGE), watched, SearchStats())
    known = np.mean([row.tobytes() in seen for row in batches[0]])
    assert known == 1 if persistent else known < 0.5


def test_a_generation_descends_from_the_fastest() -> None:
    rng = np.random.default_rng(0)
    strategy = GeneticStrategy(LARGE, rng, GeneticSettings(population=40))
    means = []
    for _ in range(8):
        batch = strategy.ask(40)
        means.append((score(batch) >= -8).mean())
        strategy.tell(batch, np.exp(score(batch) / 4))
    assert strategy.stats.steps == 0 and strategy.stats.plans == 8
    assert np.mean(means[-2:]) > 2 * means[0]


def test_clusters_that_are_apart_are_found_and_the_loss_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    centres = 10.0 * rng.permutation(8)[:, None] + np.zeros((8, 3))
    points = np.repeat(centres, 20, axis=0) + rng.normal(size=(160, 3))
    (clustering,) = grow(points, [8], rng)
    expected, labels = kmeans2(points, centres, minit="matrix")
    assert clustering.k == 8
    np.testing.assert_allclose(np.sort(clustering.centroids, axis=0), np.sort(expected, axis=0), atol=1e-9)
    assert clustering.loss == pytest.approx(((points - expected[labels]) ** 2).sum())


def test_growing_lowers_the_loss_and_leaves_no_cluster_empty() -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, 4, size=(100, 3)).astype(float)
    distinct = len(np.unique(points, axis=0))
    clusterings = list(grow(points, range(4, 100, 4), rng))
    losses = [clustering.loss for clustering in clusterings]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(losses))
    for clustering in clusterings:
        assert (np.bincount(clustering.labels, minlength=clustering.k) > 0).all()
        nearest = ((points[:, None, :] - clustering.centroids) ** 2).sum(axis=2)
        assert clustering.loss == pytest.approx(nearest[np.arange(100), clustering.labels].sum())
    assert clusterings[-1].k == distinct and clusterings[-1].loss == pytest.approx(0, abs=1e-9)
