"""Evolutionary exploration: all of a generation is bred and scored as one matrix.

Notation: D knobs, knob d has n_d values; a population is an index matrix (P, D). A generation of children (C, D) comes
from parents that won a tournament of two; half of the children mix two parents knob by knob (uniform crossover), and
every child is mutated: each knob with probability 1/D, at least one, either by one step up or down (knobs such as tile
sizes are ordered) or by a jump to any value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices, SearchSpace
from calumma.search.history import History
from calumma.search.stats import SearchStats
from calumma.search.strategy import Explored, Score


@dataclass(frozen=True)
class EvolutionSettings:
    """How far one exploration goes: about `population * (1 + generations)` configurations are scored."""

    population: int = 256
    generations: int = 4
    elites: int = 32
    """Best measured configurations that the first population holds; the rest is random."""
    crossover: float = 0.5
    """Share of children with two parents."""
    jump: float = 0.3
    """Share of mutations that go anywhere instead of one step."""
    exhaustive: int = 2048
    """A space of at most this many index vectors is scored whole instead."""


class EvolutionaryExplorer:
    """Breeds from the best measured configurations and random ones."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator, settings: EvolutionSettings | None = None) -> None:
        self._space = space
        self._rng = rng
        self._settings = settings or EvolutionSettings()
        self._counts = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)

    def explore(self, history: History, score: Score, stats: SearchStats) -> Explored:
        settings = self._settings
        if self._space.size <= settings.exhaustive:
            everything = self._space.sample(self._rng, settings.exhaustive)
            return Explored(everything, score(everything))
        elites = history.best(settings.elites)
        population = np.unique(
            np.concatenate([elites, self._space.sample(self._rng, settings.population - len(elites))]), axis=0
        )
        scores = score(population)
        seen = [(population, scores)]
        for _ in range(settings.generations):
            children = self._children(population, scores)
            seen.append((children, score(children)))
            population, first = np.unique(np.concatenate([population, children]), axis=0, return_index=True)
            scores = np.concatenate([scores, seen[-1][1]])[first]
            survivors = np.argsort(-scores, kind="stable")[: settings.population]
            population, scores = population[survivors], scores[survivors]
        return Explored.distinct(np.concatenate([x for x, _ in seen]), np.concatenate([y for _, y in seen]))

    def _children(self, population: Indices, scores: NDArray[np.float64]) -> Indices:
        """Return the valid children (at most P, D) of a population."""
        n, d = self._settings.population, len(self._counts)
        children = population[self._parents(scores)]
        mixed = (self._rng.random(n) < self._settings.crossover)[:, None] & (self._rng.random((n, d)) < 0.5)
        children = np.where(mixed, population[self._parents(scores)], children)

        mutated = self._rng.random((n, d)) < 1 / d
        mutated[np.arange(n), self._rng.integers(0, d, size=n)] = True
        steps = children + self._rng.choice([-1, 1], size=(n, d))
        jumps = self._rng.integers(0, self._counts, size=(n, d))
        moved = np.where(self._rng.random((n, d)) < self._settings.jump, jumps, steps)
        children = np.where(mutated, np.clip(moved, 0, self._counts - 1), children).astype(np.int32)
        children = self._space.canonical(children)
        return children[self._space.valid(children)]

    def _parents(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Winners (P,) of tournaments of two."""
        pairs = self._rng.integers(0, len(scores), size=(self._settings.population, 2))
        left, right = pairs.T
        winners: NDArray[np.int64] = np.where(scores[left] >= scores[right], left, right)
        return winners
