"""Strategies: random, and the one that an explorer, a sampler and a cost model make up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import DesignSpace, Indices
from calumma.cost_model import CostModel
from calumma.search.history import History

Score = Callable[[Indices], NDArray[np.float64]]
"""Configurations (N, D) -> predicted scores (N,), higher is better; thousands within milliseconds."""

_DRAWS = 128


class Explorer(Protocol):
    """Walks a design space with the cost model as its map; nothing is measured."""

    def explore(self, history: History, score: Score) -> Indices:
        """Return distinct valid configurations (m, D) that look good; some may have been measured before."""
        ...


class Sampler(Protocol):
    """Chooses what to measure among what an explorer found."""

    def choose(self, candidates: Indices, predicted: NDArray[np.float64], history: History, n: int) -> Indices:
        """Fresh candidates (m, D) and their predicted scores (m,) -> up to `n` valid configurations, best first."""
        ...


class RandomStrategy:
    """The default, then uniform draws without repetition: the baseline every other strategy has to beat."""

    name = "random"

    def __init__(self, space: DesignSpace, rng: np.random.Generator) -> None:
        self._history = History(space)
        self._default = space.default()
        self._rng = rng

    def ask(self, n: int) -> Indices:
        return self._history.complete(self._history.fresh(self._default[None, :])[:n], self._rng, n)

    def tell(self, indices: Indices, scores: NDArray[np.float64]) -> None:
        self._history.tell(indices, scores)


class GuidedStrategy:
    """An explorer proposes, a sampler chooses, a cost model that learns from every outcome guides both."""

    def __init__(
        self,
        name: str,
        space: DesignSpace,
        rng: np.random.Generator,
        *,
        explorer: Explorer,
        sampler: Sampler,
        model: CostModel,
        warm_up: int = 4,
    ) -> None:
        """Wire the parts; until `warm_up` outcomes are known it asks neighbours of the best and random draws."""
        self.name = name
        self._history = History(space)
        self._default = space.default()
        self._rng = rng
        self._explorer = explorer
        self._sampler = sampler
        self._model = model
        self._warm_up = warm_up

    def ask(self, n: int) -> Indices:
        chosen = self._first(n) if len(self._history.scores) < self._warm_up else self._next(n)
        return self._history.complete(chosen, self._rng, n)

    def tell(self, indices: Indices, scores: NDArray[np.float64]) -> None:
        self._history.tell(indices, scores)
        self._model.fit(self._history.features, self._history.scores)

    def _score(self, indices: Indices) -> NDArray[np.float64]:
        return self._model.predict(self._history.space.features(indices))

    def _first(self, n: int) -> Indices:
        """The default, then the best-looking neighbours of the best so far and the best-looking random draws."""
        history = self._history
        chosen = history.fresh(self._default[None, :])[:n]
        start = next(iter(history.best(1)), self._default)
        near = self._ranked(history.fresh(history.space.neighbours(start)))[: (n - len(chosen) + 1) // 2]
        far = self._ranked(history.draw(self._rng, _DRAWS))
        return history.fresh(np.concatenate([chosen, near, far]))[:n]

    def _next(self, n: int) -> Indices:
        candidates = self._history.fresh(self._explorer.explore(self._history, self._score))
        if len(candidates) == 0:
            return candidates
        return self._history.fresh(self._sampler.choose(candidates, self._score(candidates), self._history, n))[:n]

    def _ranked(self, indices: Indices) -> Indices:
        """Best predicted first, equals in random order."""
        if len(indices) == 0:
            return indices
        shuffled = self._rng.permutation(indices)
        return shuffled[np.argsort(-self._score(shuffled), kind="stable")]
