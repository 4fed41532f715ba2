"""Strategies: random, and the one that an explorer, a sampler and a cost model make up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from calumma.core.keys import Key, keys_of
from calumma.core.protocols import Indices, SearchSpace, Strategy
from calumma.cost_model import CostModel
from calumma.search.history import History
from calumma.search.stats import SearchStats

Score = Callable[[Indices], NDArray[np.float64]]
"""Configurations (N, D) -> predicted scores (N,), higher is better; thousands within milliseconds. Every row counts as
one step."""

_DRAWS = 128
_SUMMITS = 8


@dataclass(frozen=True)
class Explored:
    """Distinct valid configurations (m, D) and what the cost model predicts of them (m,)."""

    indices: Indices
    scores: NDArray[np.float64]

    @staticmethod
    def distinct(indices: Indices, scores: NDArray[np.float64]) -> Explored:
        """Leave repeated rows out; the order of the first occurrences stays."""
        _, first = np.unique(indices, axis=0, return_index=True)
        first.sort()
        return Explored(indices[first], scores[first])


class Explorer(Protocol):
    """Walks a design space with the cost model as its map; nothing is measured."""

    def explore(self, history: History, score: Score, stats: SearchStats) -> Explored:
        """Return configurations that look good; some may have been measured before."""
        ...


class Sampler(Protocol):
    """Chooses what to measure among what an explorer found."""

    def choose(self, explored: Explored, score: Score, history: History, n: int) -> Indices:
        """Candidates that are all fresh -> distinct, valid, fresh configurations to measure, in this order.

        At least `n` of them where the space has as many; more from a sampler that plans ahead. What it makes up beyond
        the candidates it can have scored.
        """
        ...


@runtime_checkable
class SearchStrategy(Strategy, Protocol):
    """A strategy that says what it has cost."""

    stats: SearchStats


class RandomStrategy:
    """The default, then uniform draws without repetition: the baseline every other strategy has to beat."""

    name = "random"

    def __init__(self, space: SearchSpace, rng: np.random.Generator) -> None:
        self.stats = SearchStats()
        self._history = History(space)
        self._default = space.default()
        self._rng = rng

    def ask(self, n: int) -> Indices:
        with self.stats.charge("explore"):
            return self._history.complete(self._history.fresh(self._default[None, :])[:n], self._rng, n)

    def tell(self, indices: Indices, scores: NDArray[np.float64]) -> None:
        self._history.tell(indices, scores)


class GuidedStrategy:
    """An explorer proposes, a sampler chooses, a cost model that learns from every outcome guides both.

    What the sampler chooses beyond what was asked for is the plan of the next asks; only then is the cost model fitted
    again and the space explored anew.
    """

    def __init__(
        self,
        name: str,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        explorer: Explorer,
        sampler: Sampler,
        model: CostModel,
        warm_up: int = 0,
        draws: int = 1024,
        climbs: int = 0,
    ) -> None:
        """Wire the parts.

        Args:
            name: what it is called.
            space: the design space.
            rng: source of its own randomness.
            explorer: proposes.
            sampler: chooses.
            model: guides.
            warm_up: until so many outcomes are known it asks neighbours of the best and random draws.
            draws: before anything has worked, the sampler chooses among so many random draws instead.
            climbs: for a model that knows something before anything is measured: the neighbours of the default join
                these draws, and then, so many times over, the neighbours of the best predicted (`climbed`). 0: neither.
        """
        self.name = name
        self.stats = SearchStats()
        self._history = History(space)
        self._default = space.default()
        self._rng = rng
        self._explorer = explorer
        self._sampler = sampler
        self._model = model
        self._warm_up = warm_up
        self._draws = draws
        self._climbs = climbs
        self._plan = np.empty((0, len(space.knobs)), dtype=np.int32)
        self._stale = False

    def ask(self, n: int) -> Indices:
        with self.stats.charge("explore"):
            if len(self._history.scores) < self._warm_up:
                return self._history.complete(self._first(n), self._rng, n)
            chosen = self._planned(n)
            if len(chosen) < n:
                self._plan = self._next(n - len(chosen))
                chosen = np.concatenate([chosen, self._planned(n - len(chosen))])
            return self._history.complete(chosen, self._rng, n)

    def tell(self, indices: Indices, scores: NDArray[np.float64]) -> None:
        self._history.tell(indices, scores)
        self._stale = True
        if len(self._plan) == 0:
            self._fit()

    def _fit(self) -> None:
        if self._stale:
            with self.stats.charge("fit"):
                self._model.fit(self._history.features, self._history.scores)
            self._stale = False

    def _score(self, indices: Indices) -> NDArray[np.float64]:
        self.stats.steps += len(indices)
        with self.stats.charge("score"):
            return self._model.predict(self._history.space.features(indices))

    def _planned(self, n: int) -> Indices:
        """Take up to `n` of the plan, as far as nobody has told or asked them meanwhile."""
        plan = self._history.fresh(self._plan)
        chosen, self._plan = plan[:n], plan[n:]
        self._history.take(chosen)
        return chosen

    def _next(self, n: int) -> Indices:
        """A new plan of at least `n`, as far as there are any."""
        self._fit()
        history = self._history
        if history.scores.any():
            explored = self._explorer.explore(history, self._score, self.stats)
        else:
            options = history.draw(self._rng, max(n, self._draws))
            if self._climbs:
                near = one_knob_away(history.space, self._default)
                options = history.fresh(np.concatenate([near, options]))
            explored = climbed(Explored(options, self._score(options)), history, self._score, self._climbs)
        self.stats.plans += 1
        default = history.fresh(self._default[None, :])
        keep = history.is_fresh(explored.indices)
        if not keep.any():
            return default
        explored = Explored(explored.indices[keep], explored.scores[keep])
        with self.stats.charge("sampling"):
            return np.concatenate([default, self._sampler.choose(explored, self._score, history, n)])

    def _first(self, n: int) -> Indices:
        """The default, then the best-looking neighbours of the best so far and the best-looking random draws."""
        history = self._history
        chosen = history.fresh(self._default[None, :])[:n]
        start = next(iter(history.best(1)), self._default)
        near = self._ranked(history.fresh(history.space.neighbours(start)))[: (n - len(chosen) + 1) // 2]
        far = self._ranked(history.draw(self._rng, _DRAWS))
        return history.fresh(np.concatenate([chosen, near, far]))[:n]

    def _ranked(self, indices: Indices) -> Indices:
        """Best predicted first, equals in random order."""
        if len(indices) == 0:
            return indices
        shuffled = self._rng.permutation(indices)
        return shuffled[np.argsort(-self._score(shuffled), kind="stable")]


def climbed(explored: Explored, history: History, score: Score, climbs: int) -> Explored:
    """Add all fresh neighbours of the best predicted, then of those that are best now, `climbs` times at most.

    It ends early when the best predicted are those of the time before: in large spaces the best of some hundred draws
    is far from what the cost model likes best, and a few steps from it.
    """
    expanded: set[Key] = set()
    for _ in range(climbs):
        best = explored.indices[np.argsort(-explored.scores, kind="stable")[:_SUMMITS]]
        summits = [row for row, key in zip(best, keys_of(best), strict=True) if key not in expanded]
        if not summits:
            break
        expanded.update(keys_of(np.stack(summits)))
        known = set(keys_of(explored.indices))
        near = history.fresh(np.concatenate([one_knob_away(history.space, row) for row in summits]))
        near = near[[key not in known for key in keys_of(near)]]
        if len(near):
            scores = np.concatenate([explored.scores, score(near)])
            explored = Explored(np.concatenate([explored.indices, near]), scores)
    return explored


def one_knob_away(space: SearchSpace, indices: Indices) -> Indices:
    """All valid configurations (m, D) that have another value than (D,) at one knob, whatever value that is."""
    counts = [len(knob.values) for knob in space.knobs]
    rows = np.repeat(np.asarray(indices, dtype=np.int32)[None, :], sum(counts), axis=0)
    rows[np.arange(sum(counts)), np.repeat(np.arange(len(counts)), counts)] = np.concatenate(
        [np.arange(count) for count in counts]
    )
    rows = space.canonical(rows[(rows != indices).any(axis=1)])
    return rows[space.valid(rows)]
