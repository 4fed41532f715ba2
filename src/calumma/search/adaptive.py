"""Adaptive sampling: one measurement for each group of alike candidates. Needs scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calumma.core.keys import Key, key_of, keys_of
from calumma.core.protocols import Indices
from calumma.search.history import History
from calumma.search.kmeans import Clustering, grow
from calumma.search.samplers import ranking
from calumma.search.strategy import Explored, Score, one_knob_away
from calumma.search.synthesis import synthesise

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
    """Less than `growth`: k is what is asked for."""
    threshold: float = 2.5
    """k stops growing once `threshold` x its loss is no less than the loss of the k before."""
    representative: Representative = "best"
    """What stands for a cluster. "centroid": its rounded centroid, or where that is invalid or known a synthesised
    configuration, as published. "best": whichever is predicted best of these and of the members. "top" is the control
    that finds k in the same way and then takes the k best predicted, whatever their cluster."""
    near: float = 0.0
    """Part of the plan that goes to the best predicted among those which differ in one knob from one of the best
    measured; the rest is sampled as above. Nothing of it is published."""
    around: int = 2
    """Of how many of the best measured the neighbours are looked at."""


class AdaptiveSampler:
    """Adaptive sampling (Ahn et al., ICLR 2020): one configuration for each cluster of the candidates.

    All knobs count, each scaled to [0, 1] by its number of values.
    """

    def __init__(self, rng: np.random.Generator, settings: AdaptiveSettings | None = None) -> None:
        self._rng = rng
        self._settings = settings or AdaptiveSettings()

    def choose(self, explored: Explored, score: Score, history: History, n: int) -> Indices:
        near = self._near(score, history, int(self._settings.near * n))
        taken = set(keys_of(near))
        apart = np.array([key not in taken for key in keys_of(explored.indices)], dtype=bool)
        chosen = near
        if apart.any():
            far = self._far(Explored(explored.indices[apart], explored.scores[apart]), score, history, n - len(near))
            chosen = history.fresh(np.concatenate([near, far]))  # what stands for a cluster may be near as well
        if len(chosen) < n:
            # Of n + |chosen| draws at least n are others, where the space has as many.
            drawn = history.draw(self._rng, n + len(chosen))
            chosen = history.fresh(np.concatenate([chosen, drawn]))[:n]
        return chosen

    def _near(self, score: Score, history: History, n: int) -> Indices:
        """The `n` best predicted of those that are one knob from one of the best measured."""
        around = [one_knob_away(history.space, best) for best in history.best(self._settings.around)] if n else []
        options = history.fresh(np.concatenate(around)) if around else history.indices[:0]
        return options[ranking(score(options), self._rng)[:n]] if len(options) else options

    def _far(self, explored: Explored, score: Score, history: History, n: int) -> Indices:
        best = ranking(explored.scores, self._rng)[: max(n, self._settings.pool)]
        pool, predicted = explored.indices[best], explored.scores[best]
        scale = np.maximum([len(knob.values) - 1 for knob in history.space.knobs], 1).astype(np.float64)
        clustering = self._clusters(pool / scale, n)
        if self._settings.representative == "top":
            chosen = pool[: clustering.k]
        else:
            chosen = self._representatives(pool, predicted, clustering, scale, score, history)
        return chosen if len(chosen) >= n else history.fresh(np.concatenate([chosen, pool]))[:n]

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
        chosen: dict[Key, Indices] = {}
        for i, rows in enumerate(clusters):
            options = np.concatenate([made[i], pool[rows]])
            if by_score:
                options = options[np.argsort(-np.concatenate([scores[i], predicted[rows]]), kind="stable")]
            for option in options:
                if chosen.setdefault(key_of(option), option) is option:
                    break
        return np.stack(list(chosen.values()))
