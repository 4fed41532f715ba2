"""Parts of search: history, explorer, sampler, and the cost model they use."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.core.errors import InternalError
from calumma.core.protocols import Indices
from calumma.cost_model import ConstantModel, CostModel, GradientBoostedTrees, SharedTrees
from calumma.search import Explored, History, SearchStats
from calumma.search.evolution import EvolutionaryExplorer
from calumma.search.samplers import EpsilonGreedySampler
from calumma.testing import ToySpace

LARGE = ToySpace(width=56, extra=12)


def no_score(indices: Indices) -> NDArray[np.float64]:
    raise AssertionError("this sampler makes nothing up")


def test_history_keeps_the_last_outcome_and_the_order() -> None:
    space = ToySpace()
    a, b, c = space.sample(np.random.default_rng(0), 3)
    history = History(space)
    history.tell(np.stack([a, b]), np.array([1.0, 2.0]))
    history.tell(np.stack([c, a, c]), np.array([0.0, 3.0, 0.5]))
    np.testing.assert_array_equal(history.indices, [a, b, c])
    np.testing.assert_array_equal(history.scores, [3.0, 2.0, 0.5])
    np.testing.assert_array_equal(history.features, space.features(history.indices))
    np.testing.assert_array_equal(history.best(2), [a, b])


def test_history_finds_no_best_among_failures() -> None:
    space = ToySpace()
    history = History(space)
    history.tell(space.sample(np.random.default_rng(0), 5), np.zeros(5))
    assert len(history.best(3)) == 0


def test_history_refuses_scores_that_do_not_match() -> None:
    space = ToySpace()
    with pytest.raises(InternalError, match="3 configurations were told with 2 scores"):
        History(space).tell(space.sample(np.random.default_rng(0), 3), np.zeros(2))


def test_draws_are_fresh_until_none_is_left() -> None:
    space = ToySpace(width=2)
    total = len(space.enumerate())
    history, rng = History(space), np.random.default_rng(0)
    for left in range(total, 0, -5):
        drawn = history.draw(rng, 5)
        assert len(drawn) == len(history.fresh(drawn)) == min(5, left)
        history.take(drawn)
    assert len(history.draw(rng, 5)) == 0


@pytest.mark.parametrize("space", [ToySpace(), LARGE], ids=["exhaustive", "bred"])
def test_exploration_is_distinct_valid_and_finds_what_the_model_likes(space: ToySpace) -> None:
    rng = np.random.default_rng(0)
    history = History(space)

    def score(indices):
        columns = space.columns(indices)
        return -np.abs(columns["tile_x"] * columns["tile_c"] - 28.0) - np.abs(columns["split_k"] - 8.0)

    found = EvolutionaryExplorer(space, rng).explore(history, score, SearchStats()).indices
    assert space.valid(found).all() and len(np.unique(found, axis=0)) == len(found)
    assert score(found).max() == 0


def test_sampler_takes_the_best_and_breaks_ties_at_random() -> None:
    space = ToySpace()
    rng = np.random.default_rng(0)
    candidates = space.sample(rng, 50)
    predicted = np.zeros(50)
    predicted[[7, 11]] = 1.0
    chosen = EpsilonGreedySampler(rng, epsilon=0.0).choose(Explored(candidates, predicted), no_score, History(space), 4)
    assert {row.tobytes() for row in chosen[:2]} == {candidates[7].tobytes(), candidates[11].tobytes()}
    assert not np.array_equal(chosen[2:], candidates[:2])


def test_sampler_with_epsilon_one_draws_from_the_whole_space() -> None:
    space = ToySpace()
    candidates = space.sample(np.random.default_rng(0), 2)
    sampler = EpsilonGreedySampler(np.random.default_rng(1), epsilon=1.0)
    chosen = sampler.choose(Explored(candidates, np.zeros(2)), no_score, History(space), 20)
    assert len(chosen) == 20 and len(np.unique(chosen, axis=0)) == 20


@pytest.mark.parametrize("model", [ConstantModel(), GradientBoostedTrees(), SharedTrees().member()])
def test_before_data_all_configurations_are_equal(model: CostModel) -> None:
    model.fit(np.empty((0, 4), dtype=np.float32), np.empty(0))
    np.testing.assert_array_equal(model.predict(np.ones((3, 4), dtype=np.float32)), np.zeros(3))


def test_trees_rank() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((200, 20), dtype=np.float32)
    scores = 1e9 * (features[:, 0] * features[:, 1] + 0.2 * features[:, 2]).astype(np.float64)
    scores[::10] = 0.0  # failures
    model = GradientBoostedTrees()
    model.fit(features, scores)
    unseen = rng.random((500, 20), dtype=np.float32)
    truth = unseen[:, 0] * unseen[:, 1] + 0.2 * unseen[:, 2]
    ranks = [np.argsort(np.argsort(values)) for values in (truth, model.predict(unseen))]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.7


def test_shared_trees_carry_what_one_task_learnt_to_another() -> None:
    rng = np.random.default_rng(0)
    shared = SharedTrees()
    teacher, pupil = shared.member(), shared.member()
    features = rng.random((100, 5), dtype=np.float32)
    teacher.fit(features, 1.0 + features[:, 3].astype(np.float64))
    unseen = rng.random((100, 5), dtype=np.float32)
    assert np.corrcoef(pupil.predict(unseen), unseen[:, 3])[0, 1] > 0.9
