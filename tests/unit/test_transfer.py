"""Standings, committees, and what a search makes of a cost model that knows something before it measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.prior_informed import InformedCommittee, InformedTrees
from calumma.core.rng import generator
from calumma.cost_model import ScaledCommittee
from calumma.cost_model.trees import GradientBoostedTrees, TreeSettings, standing
from calumma.search import Explored, History, make_strategy, strategy_names
from calumma.search.strategy import climbed, one_knob_away
from calumma.testing import ToySpace

SPACE = ToySpace(width=56, extra=4)


def wanted(space: ToySpace, rows):
    return 1.0 / (1 + np.abs(space.columns(rows)["split_k"] - 4.0)) + 0.1 * space.columns(rows)["tile_x"]


def test_a_standing_is_the_share_that_is_slower():
    np.testing.assert_allclose(standing(np.array([3.0, 0.0, 5.0, 4.0])), [0.25, 0, 0.75, 0.5])
    np.testing.assert_allclose(standing(np.array([1.0, 1.0, 7.0])), [1 / 6, 1 / 6, 2 / 3])
    assert len(standing(np.zeros(0))) == 0


def test_standings_do_not_depend_on_the_unit():
    rows = SPACE.sample(np.random.default_rng(0), 300)
    features, scores = SPACE.features(rows), wanted(SPACE, rows)
    trees = [GradientBoostedTrees(0, TreeSettings(standings=True)) for _ in range(2)]
    trees[0].fit(features, scores)
    trees[1].fit(features, scores**3 * 1e6)
    np.testing.assert_array_equal(trees[0].predict(features), trees[1].predict(features))


def test_trees_are_of_the_priors_opinion_until_something_worked():
    rows = SPACE.sample(np.random.default_rng(1), 50)
    features = np.concatenate([SPACE.features(rows), np.linspace(0, 1, 50, dtype=np.float32)[:, None]], axis=1)
    model = InformedTrees()
    np.testing.assert_array_equal(model.predict(features), features[:, -1])
    model.fit(features, np.zeros(50))
    np.testing.assert_array_equal(model.predict(features), features[:, -1])
    model.fit(features, wanted(SPACE, rows))
    assert not np.array_equal(model.predict(features), features[:, -1])


class Knowing:
    """A cost model that knows a space before anything is measured."""

    def __init__(self, space: ToySpace) -> None:
        self._trees = GradientBoostedTrees(0, TreeSettings(standings=True))
        rows = space.sample(np.random.default_rng(0), 2000)
        self._trees.fit(space.features(rows), wanted(space, rows))

    def fit(self, features, scores):
        pass

    def predict(self, features):
        return self._trees.predict(features)


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_uses_what_a_model_knows_or_leaves_it(name):
    """With a model that is right the first batch is better than without; who makes no use of it is not changed."""
    space = ToySpace(width=720, extra=4)
    model = Knowing(space)

    def first(seed, **more):
        return make_strategy(name, space, generator(seed, "test"), **more).ask(8)

    if name in ("random", "genetic", "autotvm", "autotvm-regression", "autotvm-knobs"):
        np.testing.assert_array_equal(first(0), first(0, model=model))
    else:
        with_it, without = (
            np.mean([wanted(space, first(seed, **more))[1:].mean() for seed in range(3)])
            for more in ({"model": model}, {})
        )
        assert with_it > without


class Fixed:
    """Predicts the first column, whatever it is told."""

    def fit(self, features, scores):
        pass

    def predict(self, features):
        return features[:, 0].astype(np.float64)


class Negative:
    """Predicts minus the second column, whatever it is told."""

    def fit(self, features, scores):
        pass

    def predict(self, features):
        return -features[:, 1].astype(np.float64)


def test_members_of_different_units_weigh_alike_once_something_worked():
    features = (np.random.default_rng(0).normal(size=(100, 2)) * [1, 50] + [3, -7]).astype(np.float32)
    model = ScaledCommittee([Fixed(), Negative()], features)
    first, second = ((column - column.mean()) / column.std() for column in (features[:, 0], -features[:, 1]))
    np.testing.assert_array_equal(model.predict(features), features[:, 0])
    model.fit(features[:8], np.zeros(8))
    np.testing.assert_array_equal(model.predict(features), features[:, 0])
    model.fit(features[:8], np.ones(8))
    np.testing.assert_allclose(model.predict(features), (first + second) / 2, atol=1e-6)


def test_an_opinion_has_a_vote_that_fades():
    features = (np.random.default_rng(0).normal(size=(400, 2)) * [1, 50] + [3, -7]).astype(np.float32)
    model = InformedCommittee([Fixed()], features, worth=16)
    learnt, opinion = ((column - column.mean()) / column.std() for column in features.T)
    np.testing.assert_allclose(model.predict(features), opinion, rtol=1e-6)
    model.fit(features[:16], np.zeros(16))  # nothing has worked: there is nothing to learn from
    np.testing.assert_allclose(model.predict(features), opinion, rtol=1e-6)
    for measured in (16, 48, 400):
        model.fit(features[:measured], np.ones(measured))  # all alike, which neither confirms nor contradicts: r = 0
        trust = 8 / (8 + measured)
        share = 16 * trust / (16 * trust + measured)
        np.testing.assert_allclose(model.predict(features), share * opinion + (1 - share) * learnt, atol=1e-6)


def test_the_vote_goes_by_what_measurements_say_of_the_opinion():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 2)).astype(np.float32)
    learnt, opinion = ((column - column.mean()) / column.std() for column in features.T)

    def share(scores):
        model = InformedCommittee([Fixed()], features, worth=16)
        model.fit(features[: len(scores)], scores)
        # predict = share * opinion + (1 - share) * learnt
        return float(np.polyfit(opinion - learnt, model.predict(features) - learnt, 1)[0])

    likes = np.exp(features[:16, 1].astype(np.float64))
    trust = (8 * 0.66 + 16 * 1) / 24 / 0.66
    assert share(likes) == pytest.approx(16 * trust / (16 * trust + 16), rel=1e-5)
    assert share(likes) > 0.5 > share(rng.permutation(likes)) > share(1 / likes) == pytest.approx(0, abs=1e-6)


def test_an_opinion_that_never_varies_is_none():
    features = np.stack([np.arange(8.0), np.full(8, 0.5)], axis=1).astype(np.float32)
    model = InformedCommittee([Fixed()], features, worth=16)
    model.fit(features, np.ones(8))
    assert (np.diff(model.predict(features)) > 0).all()


def test_the_first_plan_has_the_neighbours_of_the_default_that_the_model_likes():
    liked = one_knob_away(SPACE, SPACE.default())[3]

    class Liking(Negative):
        def predict(self, features):
            return (features == SPACE.features(liked[None, :])).all(axis=1).astype(np.float64)

    first = make_strategy("chameleon", SPACE, np.random.default_rng(0), model=Liking()).ask(8)
    assert (first[0] == SPACE.default()).all() and (first == liked).all(axis=1).any()


def test_climbing_finds_a_summit_that_no_draw_is_near():
    scored: list[Any] = []

    def score(rows):
        scored.extend(row.tobytes() for row in rows)
        return -np.abs(rows - goal).sum(axis=1).astype(np.float64)

    rng = np.random.default_rng(0)
    goal = SPACE.sample(rng, 1)[0]
    history = History(SPACE)
    drawn = history.draw(rng, 4)
    before = Explored(drawn, score(drawn))
    after = climbed(before, history, score, len(goal) + 1)
    assert before.scores.max() < 0 and after.scores.max() == 0
    assert len(scored) == len(set(scored)) == len(after.indices)
    assert SPACE.valid(after.indices).all()
    np.testing.assert_array_equal(after.indices[:4], drawn)
    np.testing.assert_array_equal(climbed(before, history, score, 0).indices, drawn)
