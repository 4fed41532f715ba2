"""The prior's forest, refitted to the measurements of one task."""

from __future__ import annotations

import numpy as np

from calumma.prior.few_shot import MOST, FewShotForest
from calumma.prior.forest import Forest

COLUMNS = 5


def forest(seed: int = 0, members: int = 2, trees: int = 6, depth: int = 3) -> Forest:
    rng = np.random.default_rng(seed)
    shape = (members, trees, 2**depth - 1)
    return Forest(
        tuple(map(str, range(COLUMNS))),
        rng.integers(0, COLUMNS, shape).astype(np.int32),
        rng.normal(size=shape).astype(np.float32),
        rng.normal(scale=0.1, size=(members, trees, 2**depth)).astype(np.float32),
    )


def rows(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, COLUMNS)).astype(np.float32)


def speeds(table: np.ndarray) -> np.ndarray:
    """A task that is unlike the forest."""
    return np.exp(np.sin(2 * table[:, 0]) + 0.5 * (table[:, 1] > 0)).astype(np.float64)


def test_places_are_the_leaves_that_predictions_come_from():
    known, table = forest(), rows(50)
    places = known.places(table)
    assert places.shape == (2, 6, 50)
    values = np.take_along_axis(known.leaves, places, axis=2)
    np.testing.assert_allclose(values.sum(axis=1), known.predict(table), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(known.places(table[7:8])[:, :, 0], places[:, :, 7])


def test_with_nothing_that_worked_it_is_the_prior():
    known, table = forest(), rows(30)
    model = FewShotForest(known)
    prior = -known.predict(table).mean(axis=0)
    np.testing.assert_allclose(model.predict(table), prior, rtol=1e-6)
    model.fit(table[:8], np.zeros(8))
    model.fit(table[:0], np.zeros(0))
    np.testing.assert_allclose(model.predict(table), prior, rtol=1e-6)


def test_it_is_a_kernel_ridge_regression_of_what_the_prior_got_wrong():
    known, table = forest(), rows(60)
    support, scores, ridge = table[:12], speeds(table[:12]), 0.4
    model = FewShotForest(known, ridge)
    model.fit(support, scores)

    leaves = known.places(table).reshape(-1, len(table))
    alike = np.array([[np.mean(leaves[:, i] == leaves[:, j]) for j in range(12)] for i in range(len(table))])
    weights = (scores / scores.max()) ** 2
    wrong = -np.log(scores) - known.predict(support).mean(axis=0)
    wrong -= (weights * wrong).sum() / weights.sum()
    shares = np.linalg.solve(alike[:12] + ridge * np.diag(1 / weights), wrong)
    expected = known.predict(table).mean(axis=0) + alike @ shares
    np.testing.assert_allclose(model.predict(table), -expected, rtol=1e-4, atol=1e-5)


def test_measurements_make_the_order_better_and_their_unit_does_not_matter():
    table = rows(400)
    truth = speeds(table)
    models = [FewShotForest(forest(trees=40, depth=4)) for _ in range(2)]
    before = np.corrcoef(models[0].predict(table), np.log(truth))[0, 1]
    for model, unit in zip(models, (1.0, 1e7), strict=True):
        model.fit(table[:200], unit * truth[:200])
    after = np.corrcoef(models[0].predict(table[200:]), np.log(truth[200:]))[0, 1]
    assert after > before + 0.1
    np.testing.assert_allclose(models[0].predict(table), models[1].predict(table), rtol=1e-3, atol=1e-4)


def test_a_fit_replaces_the_one_before_and_a_failure_counts_as_slow():
    table = rows(40)
    scores = speeds(table)
    once, twice = FewShotForest(forest()), FewShotForest(forest())
    twice.fit(table[:20], scores[:20])
    for model in (once, twice):
        model.fit(table, scores)
    np.testing.assert_array_equal(once.predict(table), twice.predict(table))
    failed = scores.copy()
    failed[3] = 0.0
    twice.fit(table, failed)
    assert twice.predict(table)[3] < once.predict(table)[3]


def test_of_many_measurements_the_fastest_count():
    table = rows(MOST + 40)
    scores = speeds(table)
    fastest = np.argsort(-scores, kind="stable")[:MOST]
    models = [FewShotForest(forest()) for _ in range(2)]
    models[0].fit(table, scores)
    models[1].fit(table[fastest], scores[fastest])
    np.testing.assert_array_equal(models[0].predict(table), models[1].predict(table))
