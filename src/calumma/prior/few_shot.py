"""The few-shot model: the prior's forest, refitted to a handful of measurements of one task.

Notation: n measurements with columns x_i, y_i = log latency, weights w_i = (best / latency_i)^2; f(x) the mean of the
members' predictions; k(x, x') the share of all trees in which both rows end in the same leaf, which makes trees a
kernel (Breiman, "Some infinity theory for predictor ensembles", 2000; Geurts et al., Machine Learning 2006).

    f'(x) = f(x) + sum over i of a_i k(x, x_i),   (K + ridge diag(1 / w)) a = y - f(X) - its weighted mean

That is a Gaussian process whose mean is what other workloads taught and whose kernel is what they taught to be alike,
and a ridge regression of all leaves at once that begins at their trained values: so f' is a forest again, of the same
questions and other leaves. Nothing is trained by steps, and with nothing measured it is the prior itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices, SearchSpace
from calumma.cost_model.scoring import Features, Scores
from calumma.prior.forest import Floats, Forest
from calumma.prior.predictor import TaskPredictor
from calumma.prior.training import EMPHASIS
from calumma.search.views import View

RIDGE = 0.3
"""Chosen on three recordings of held-out convolutions (docs/results/prior.md)."""
MOST = 512
"""Learns from so many of the fastest at most: the time of a fit grows with their number cubed."""


class FewShotForest:
    """A `CostModel` of one task, whose features are the forest's columns.

    Scores are throughputs in any unit; a failure (0) is twice as slow as the worst.
    """

    def __init__(self, forest: Forest, ridge: float = RIDGE) -> None:
        self._forest = forest
        self._ridge = ridge
        self._refitted = forest

    def fit(self, features: Features, scores: Scores) -> None:
        if not scores.any():
            return
        fastest = np.argsort(-scores, kind="stable")[:MOST]
        features, scores = features[fastest], scores[fastest]
        y = log_latencies(scores)
        weights = np.exp(-EMPHASIS * (y - y.min()))
        residuals = y - self._forest.predict(features).mean(axis=0, dtype=np.float64)
        residuals -= np.average(residuals, weights=weights)
        places = self._forest.places(features)
        shares = np.linalg.solve(_alike(places) + self._ridge * np.diag(1 / weights), residuals)
        self._refitted = replace(self._forest, leaves=self._forest.leaves + _spread(places, shares, self._forest))

    def predict(self, features: Features) -> Scores:
        return -self._refitted.predict(features).mean(axis=0, dtype=np.float64)


def log_latencies(scores: Scores) -> NDArray[np.float64]:
    """Throughputs (N,), some of them positive -> logarithms of latencies up to a constant.

    A failure (0) is twice as slow as the worst.
    """
    return -np.log(np.where(scores > 0, scores, scores[scores > 0].min() / 2))


def _alike(places: NDArray[np.intp]) -> NDArray[np.float64]:
    """Leaves (E, T, N) -> k (N, N)."""
    same = np.zeros((places.shape[2], places.shape[2]))
    for member in places:
        same += (member[:, :, None] == member[:, None, :]).sum(axis=0)
    return same / (places.shape[0] * places.shape[1])


def _spread(places: NDArray[np.intp], shares: NDArray[np.float64], forest: Forest) -> Floats:
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
