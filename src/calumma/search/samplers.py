"""Samplers: which of the explored candidates are worth a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.search.history import History
from calumma.search.kmeans import Clustering, grow
from calumma.search.strategy import Explored, Score
from calumma.search.synthesis import synthesise


class EpsilonGreedySampler:
    """The best predicted; each with probability `epsilon` replaced by a random configuration of the space.

    Equal predictions (trees give many) are broken at random, or a flat region would be searched in one corner only.
    """

    def __init__(self, rng: np.random.Generator, epsilon: float = 0.1) -> None:
        self._rng = rng
        self._epsilon = epsilon

    def choose(self, explored: Explored, score: Score, history: History, n: int) -> Indices:
        n_random = int(self._rng.binomial(n, self._epsilon))
        greedy = explored.indices[_ranking(explored.scores, self._rng)[: n - n_random]]
        if n_random == 0:
            return greedy
        return history.fresh(np.concatenate([greedy, history.draw(self._rng, n_random)]))


class GreedyPlanSampler:
    """AutoTVM's plan: the best predicted, and as its last part random configurations."""

    def __init__(self, rng: np.random.Generator, plan: int = 64, random_share: float = 0.05) -> None:
        self._rng = rng
        self._plan = plan
        self._random_share = random_share

    def choose(self, explored: Explored, score: Score, history: History, n: int) -> Indices:
        plan = max(n, self._plan)
        greedy = explored.indices[_ranking(explored.scores, self._rng)[: plan - int(self._random_share * plan)]]
        # Twice as many draws as are missing, because some may be among the greedy ones.
        return history.fresh(np.concatenate([greedy, history.draw(self._rng, 2 * plan - len(greedy))]))[:plan]


Representative = Literal["best", "centroid", "top"]

_SYNTHESISED = 2
"""Synthesised configurations of a cluster that compete to stand for it."""


@dataclass(frozen=True)
class AdaptiveSettings:
    """The growth and the threshold of k are those published."""

    pool: int = 64
    """How many of the best predicted candidates are clustered."""
    growth: int = 8
    """k = growth, 2 growth, ... `most`."""
    most: int = 64
    threshold: float = 2.5
    """k stops growing once `threshold` x its loss is no less than the loss of the k before."""
    representative: Representative = "best"
    """What stands for a cluster. "centroid": its rounded centroid, or where that is invalid or known a synthesised
    configuration, as published. "best": whichever is predicted best of these and of the members. "top" is the control
    that finds k in the same way and then takes the k best predicted, whatever their cluster."""


class AdaptiveSampler:
    """Adaptive sampling (Ahn et al., ICLR 2020): one configuration for each cluster of the candidates.

    All knobs count, each scaled to [0, 1] by its number of values.
    """

    def __init__(self, rng: np.random.Generator, settings: AdaptiveSettings | None = None) -> None:
        self._rng = rng
        self._settings = settings or AdaptiveSettings()

    def choose(self, explored: Explored, score: Score, history: History, n: int) -> Indices:
        ranking = _ranking(explored.scores, self._rng)[: max(n, self._settings.pool)]
        pool, predicted = explored.indices[ranking], explored.scores[ranking]
        scale = np.maximum([len(knob.values) - 1 for knob in history.space.knobs], 1).astype(np.float64)
        clustering = self._clusters(pool / scale, n)
        if self._settings.representative == "top":
            chosen = pool[: clustering.k]
        else:
            chosen = self._representatives(pool, predicted, clustering, scale, score, history)
        if len(chosen) < n:
            # Of the pool and n + |chosen| draws at least n are distinct, where the space has as many.
            drawn = history.draw(self._rng, n + len(chosen))
            chosen = history.fresh(np.concatenate([chosen, pool, drawn]))[:n]
        return chosen

    def _clusters(self, points: NDArray[np.float64], n: int) -> Clustering:
        """Grow k to the knee of the loss, and further if more than that are asked for."""
        settings = self._settings
        previous = np.inf
        ks = [*range(settings.growth, settings.most + 1, settings.growth), *([n] if n > settings.most else [])]
        for clustering in grow(points, ks, self._rng):
            knee = settings.threshold * clustering.loss >= previous or clustering.loss == 0
            if knee and clustering.k >= min(n, len(points)):
                break
            previous = clustering.loss
        return clustering

    def _representatives(
        self,
        pool: Indices,
        predicted: NDArray[np.float64],
        clustering: Clustering,
        scale: NDArray[np.float64],
        score: Score,
        history: History,
    ) -> Indices:
        """One fresh valid configuration per cluster, the cluster of the best predicted first.

        A cluster whose options all stand for others already has none.
        """
        # The pool is in the order of the predictions, so the first member of a cluster is its best.
        _, first = np.unique(clustering.labels, return_index=True)
        clusters = [np.flatnonzero(clustering.labels == label) for label in np.argsort(first)]
        centroids = history.space.canonical(np.rint(clustering.centroids * scale).astype(np.int32))
        usable = history.space.valid(centroids)
        usable[usable] = history.is_fresh(centroids[usable])
        made = [
            np.concatenate(
                [
                    centroids[label : label + 1][usable[label : label + 1]],
                    synthesise(pool[rows], history, self._rng, _SYNTHESISED),
                ]
            )
            for label, rows in zip(np.argsort(first), clusters, strict=True)
        ]
        by_score = self._settings.representative == "best"
        scores = np.split(score(np.concatenate(made)), np.cumsum([len(rows) for rows in made])[:-1]) if by_score else []
        chosen: dict[bytes, Indices] = {}
        for i, rows in enumerate(clusters):
            options = np.concatenate([made[i], pool[rows]])
            if by_score:
                options = options[np.argsort(-np.concatenate([scores[i], predicted[rows]]), kind="stable")]
            for option in options:
                if chosen.setdefault(option.tobytes(), option) is option:
                    break
        return np.stack(list(chosen.values()))


def _ranking(predicted: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions, best predicted first, equals in random order."""
    shuffled = rng.permutation(len(predicted))
    return shuffled[np.argsort(-predicted[shuffled], kind="stable")]
