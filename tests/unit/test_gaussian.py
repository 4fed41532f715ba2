"""Gaussian process and committee: what they predict, and where they know nothing."""

from __future__ import annotations

import numpy as np
import pytest

from calumma.cost_model import Committee, GaussianProcess, GaussianSettings
from calumma.cost_model.trees import standing

FEATURES = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
SCORES = 1 / (1 + ((FEATURES[:, :3] - 0.5) ** 2).sum(axis=1))


def fitted(n: int, **settings) -> GaussianProcess:
    model = GaussianProcess(FEATURES, GaussianSettings(**settings))
    model.fit(FEATURES[:n], SCORES[:n])
    return model


def test_predictions_are_the_equations():
    model = fitted(40, lengths=(2.0,), noises=(0.1,))
    x = ((FEATURES - FEATURES.mean(axis=0)) / FEATURES.std(axis=0)).astype(np.float64)
    kernel = np.exp(-np.linalg.norm(x[:, None] - x[None, :40], axis=2) / 2.0)
    z = standing(SCORES[:40])
    expected = z.mean() + kernel @ np.linalg.inv(kernel[:40] + 0.1 * np.eye(40)) @ (z - z.mean())
    np.testing.assert_allclose(model.predict(FEATURES), expected, atol=1e-4)


def test_it_orders_what_it_has_not_seen():
    predicted = fitted(150).predict(FEATURES[150:])
    assert np.corrcoef(standing(predicted), standing(SCORES[150:]))[0, 1] > 0.7


def test_the_likelihood_tells_a_rough_landscape_from_noise():
    noise = np.random.default_rng(1).permutation(SCORES[:150])
    model = GaussianProcess(FEATURES)
    model.fit(FEATURES[:150], noise)
    assert model.predict(FEATURES[150:]).std() < 0.75 * fitted(150).predict(FEATURES[150:]).std()


def test_it_knows_nothing_before_anything_is_measured_or_while_all_is_equal():
    model = GaussianProcess(FEATURES)
    np.testing.assert_array_equal(model.predict(FEATURES), 0)
    model.fit(FEATURES[:0], SCORES[:0])
    np.testing.assert_array_equal(model.predict(FEATURES), 0)
    model.fit(FEATURES[:5], np.zeros(5))
    assert np.ptp(model.predict(FEATURES)) == 0
    assert len(model.predict(FEATURES[:0])) == 0


def test_columns_that_are_constant_do_not_matter():
    wider = np.concatenate([FEATURES, np.full((300, 1), 7, np.float32)], axis=1)
    model = GaussianProcess(wider)
    model.fit(wider[:50], SCORES[:50])
    np.testing.assert_allclose(model.predict(wider), fitted(50).predict(FEATURES))


def test_of_many_the_fastest_are_learnt():
    model = fitted(300, most=20)
    fastest = np.argsort(-SCORES)[:20]
    alone = GaussianProcess(FEATURES, GaussianSettings(most=20))
    alone.fit(FEATURES, SCORES)
    np.testing.assert_array_equal(model.predict(FEATURES), alone.predict(FEATURES))
    assert np.corrcoef(model.predict(FEATURES[fastest]), SCORES[fastest])[0, 1] > 0.7


def test_a_committee_predicts_the_mean():
    members = [fitted(30, lengths=(length,)) for length in (1.0, 5.0)]
    committee = Committee([GaussianProcess(FEATURES, GaussianSettings(lengths=(length,))) for length in (1.0, 5.0)])
    committee.fit(FEATURES[:30], SCORES[:30])
    expected = np.mean([member.predict(FEATURES) for member in members], axis=0)
    assert committee.predict(FEATURES) == pytest.approx(expected)
