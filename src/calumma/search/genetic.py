"""The genetic algorithm of AutoTVM: measured throughput is the fitness, no cost model.

Notation: a generation is P configurations; all of them are measured before the next is bred from them and the elite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices, SearchSpace
from calumma.search.history import History
from calumma.search.stats import SearchStats

_REDRAWS = 16


@dataclass(frozen=True)
class GeneticSettings:
    """The defaults are AutoTVM's."""

    population: int = 100
    elite: int = 3
    """The best of a generation, which are among the parents once more in the next."""
    mutation: float = 0.1
    """Probability of every knob of a child to take any of its values."""


class GeneticStrategy:
    """Parents drawn in proportion to their throughput, one-point crossover, mutation; nothing is measured twice."""

    name = "genetic"

    def __init__(self, space: SearchSpace, rng: np.random.Generator, settings: GeneticSettings | None = None) -> None:
        self.stats = SearchStats()
        self._space = space
        self._rng = rng
        self._settings = settings or GeneticSettings()
        self._counts = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)
        self._history = History(space)
        self._default = space.default()
        self._waiting = np.empty((0, len(space.knobs)), dtype=np.int32)
        self._parents = self._elite = self._waiting
        self._fitness = self._elite_fitness = np.empty(0)

    def ask(self, n: int) -> Indices:
        with self.stats.charge("explore"):
            chosen = self._take(n)
            if len(chosen) < n:
                self._waiting = self._generation()
                chosen = np.concatenate([chosen, self._take(n - len(chosen))])
            return self._history.complete(chosen, self._rng, n)

    def tell(self, indices: Indices, scores: NDArray[np.float64]) -> None:
        self._history.tell(indices, scores)
        self._parents = np.concatenate([self._parents, np.asarray(indices, dtype=np.int32)])
        self._fitness = np.concatenate([self._fitness, scores])

    def _take(self, n: int) -> Indices:
        waiting = self._history.fresh(self._waiting)
        chosen, self._waiting = waiting[:n], waiting[n:]
        self._history.take(chosen)
        return chosen

    def _generation(self) -> Indices:
        """Breed from all told since the last generation, and the elite of the one before."""
        size = self._settings.population
        parents = np.concatenate([self._parents, self._elite])
        fitness = np.concatenate([self._fitness, self._elite_fitness])
        self.stats.plans += 1
        if np.count_nonzero(fitness) < 2:
            default = self._history.fresh(self._default[None, :])
            return np.concatenate([default, self._history.draw(self._rng, size - len(default))])
        best = np.argsort(-fitness, kind="stable")[: self._settings.elite]
        self._elite, self._elite_fitness = parents[best], fitness[best]
        self._parents, self._fitness = parents[:0], fitness[:0]
        return self._valid_children(self._crossed(parents, fitness, size))

    def _crossed(self, parents: Indices, fitness: NDArray[np.float64], n: int) -> Indices:
        """Children (n, D): the knobs before a random point from one parent, the others from another."""
        chances = fitness + 1e-8 * fitness.max()
        chances /= chances.sum()
        # Gumbel noise: the two largest of log p + g are a draw of two without repetition, in proportion to p.
        noisy = np.log(chances) + self._rng.gumbel(size=(n, len(parents)))
        pairs = np.argpartition(-noisy, 1, axis=1)[:, :2]
        pairs = self._rng.permuted(pairs, axis=1)
        before = np.arange(len(self._counts)) < self._rng.integers(len(self._counts), size=n)[:, None]
        children = np.where(before, parents[pairs[:, 0]], parents[pairs[:, 1]])
        mutated = self._rng.random(children.shape) < self._settings.mutation
        values = self._rng.integers(0, self._counts, size=children.shape)
        return np.where(mutated, values, children).astype(np.int32)

    def _valid_children(self, children: Indices) -> Indices:
        """Mutate one more knob of every child that is invalid, known or a twin, and again; the rest is left out."""
        for _ in range(_REDRAWS):
            children = self._space.canonical(children)
            usable = self._space.valid(children)
            usable[usable] = self._history.is_fresh(children[usable])
            bad = np.flatnonzero(~usable)
            if len(bad) == 0:
                break
            knobs = self._rng.integers(len(self._counts), size=len(bad))
            children[bad, knobs] = self._rng.integers(0, self._counts[knobs])
        return self._history.fresh(children[self._space.valid(children)])
