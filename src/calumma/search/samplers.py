"""Samplers: which of the explored candidates are worth a measurement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.search.history import History


class EpsilonGreedySampler:
    """The best predicted; each with probability `epsilon` replaced by a random configuration of the space.

    Equal predictions (trees give many) are broken at random, or a flat region would be searched in one corner only.
    """

    def __init__(self, rng: np.random.Generator, epsilon: float = 0.1) -> None:
        self._rng = rng
        self._epsilon = epsilon

    def choose(self, candidates: Indices, predicted: NDArray[np.float64], history: History, n: int) -> Indices:
        shuffled = self._rng.permutation(len(candidates))
        order = shuffled[np.argsort(-predicted[shuffled], kind="stable")]
        n_random = int(self._rng.binomial(n, self._epsilon))
        greedy = candidates[order[: n - n_random]]
        if n_random == 0:
            return greedy
        return np.concatenate([greedy, history.draw(self._rng, n_random)])
