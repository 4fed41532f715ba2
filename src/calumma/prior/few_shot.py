"""The few-shot model: the prior's forest, refitted to a handful of measurements of one task, or of several.

Notation: n measurements with columns x_i, y_i = log latency, weights w_i = (best / latency_i)^2; f(x) the mean of the
members' predictions; k(x, x') the share of all trees in which both rows end in the same leaf, which makes trees a
kernel (Breiman, "Some infinity theory for predictor ensembles", 2000; Geurts et al., Machine Learning 2006).

    f'(x) = f(x) + sum over i of a_i k(x, x_i),   (K + ridge diag(1 / w)) a = y - f(X) - its task's weighted mean

That is a Gaussian process whose mean is what other workloads taught and whose kernel is what they taught to be alike,
and a ridge regression of all leaves at once that begins at their trained values: so f' is a forest again, of the same
questions and other leaves. Nothing is trained by steps, and with nothing measured it is the prior itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices, SearchSpace
from calumma.cost_model.scoring import Features, Scores
from calumma.prior.forest import Floats, Forest
from calumma.prior.predictor import TaskPredictor
from calumma.prior.training import EMPHASIS
from calumma.search.views import View

Floats64 = NDArray[np.float64]

RIDGE = 0.3
"""Chosen on three recordings of held-out convolutions (docs/results/prior.md)."""
SHARED_RIDGE = 3.0
"""For tasks together, on a CPU that the forest was not trained on. Of 0.3, 1, 3, 10 and 30 the best rank correlation
of convolutions on three CPUs left out in turns, after 10 workloads of 8 configurations (docs/results/prior.md)."""
MOST = 512
"""Learns from so many of the fastest at most: the time of a fit grows with their number cubed."""
LEAST = 8
"""Of each task that it learns from, if there are so many."""


class FewShotForest:
    """A `CostModel` of one task, whose features are the forest's columns.

    Scores are throughputs in any unit; a failure (0) is twice as slow as the worst.
    """

    def __init__(self, forest: Forest, ridge: float = RIDGE) -> None:
        self._forest = forest
        self._ridge = ridge
        self._refitted = forest

    def fit(self, features: Features, scores: Scores) -> None:
        if scores.any():
            self._refitted = refitted(self._forest, [(features, log_latencies(scores))], self._ridge)

    def predict(self, features: Features) -> Scores:
        return -self._refitted.predict(features).mean(axis=0, dtype=np.float64)


def refitted(forest: Forest, tasks: Sequence[tuple[Features, Floats64]], ridge: float = RIDGE) -> Forest:
    """The forest after measurements of one task or several, of which only the fastest count if there are too many.

    Args:
        forest: over the columns of the features.
        tasks: columns (n, F) of each task's configurations, and log latencies (n,) up to a constant.
        ridge: how little a measurement is believed.
    """
    tasks = tasks[: MOST // LEAST]
    features, weights, residuals = [], [], []
    for rows, y in tasks:
        fastest = np.argsort(y, kind="stable")[: MOST // len(tasks)]
        rows, y = rows[fastest], y[fastest]
        weight = np.exp(-EMPHASIS * (y - y.min()))
        residual = y - forest.predict(rows).mean(axis=0, dtype=np.float64)
        features.append(rows)
        weights.append(weight)
        residuals.append(residual - np.average(residual, weights=weight))
    places = forest.places(np.concatenate(features))
    penalty = ridge * np.diag(1 / np.concatenate(weights))
    shares = np.linalg.solve(_alike(places) + penalty, np.concatenate(residuals))
    return replace(forest, leaves=forest.leaves + _spread(places, shares, forest))


def log_latencies(scores: Scores) -> Floats64:
    """Throughputs (N,), some of them positive -> logarithms of latencies up to a constant.

    A failure (0) is twice as slow as the worst.
    """
    return -np.log(np.where(scores > 0, scores, scores[scores > 0].min() / 2))


def _alike(places: NDArray[np.intp]) -> Floats64:
    """Leaves (E, T, N) -> k (N, N)."""
    same = np.zeros((places.shape[2], places.shape[2]))
    for member in places:
        same += (member[:, :, None] == member[:, None, :]).sum(axis=0)
    return same / (places.shape[0] * places.shape[1])


def _spread(places: NDArray[np.intp], shares: Floats64, forest: Forest) -> Floats:
    """What a_i (N,) adds to every leaf (E, T, 2^D): a member predicts the sum of its trees, the forest their mean."""
    members, trees, _ = places.shape
    added = np.zeros(forest.leaves.shape)
    np.add.at(added, (np.arange(members)[:, None, None], np.arange(trees)[:, None], places), shares / trees)
    return added.astype(np.float32)


class KnownSpace(View):
    """A design space whose features are the columns that a prior knows it by."""

    def __init__(self, space: SearchSpace, task: TaskPredictor) -> None:
        super().__init__(space)
        self._task = task
        self.feature_names = task.family.columns

    def features(self, indices: Indices) -> Features:
        """(N, D) -> (N, F)."""
        return self._task.table(indices)
