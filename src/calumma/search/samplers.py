"""Samplers: which of the explored candidates are worth a measurement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.search.history import History
from calumma.search.strategy import Explored, Score


class EpsilonGreedySampler:
    """The best predicted; each with probability `epsilon` replaced by a random configuration of the space.

    Equal predictions (trees give many) are broken at random, or a flat region would be searched in one corner only.
    """

    def __init__(self, rng: np.random.Generator, epsilon: float = 0.1) -> None:
        self._rng = rng
        self._epsilon = epsilon

    def choose(self, explored: Explored, score: Score, history: History, n: int) -> Indices:
        n_random = int(self._rng.binomial(n, self._epsilon))
        greedy = explored.indices[ranking(explored.scores, self._rng)[: n - n_random]]
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
        greedy = explored.indices[ranking(explored.scores, self._rng)[: plan - int(self._random_share * plan)]]
        # Twice as many draws as are missing, because some may be among the greedy ones.
        return history.fresh(np.concatenate([greedy, history.draw(self._rng, 2 * plan - len(greedy))]))[:plan]


def ranking(predicted: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions, best predicted first, equals in random order."""
    shuffled = rng.permutation(len(predicted))
    return shuffled[np.argsort(-predicted[shuffled], kind="stable")]
