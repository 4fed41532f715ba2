"""Simulated annealing as in AutoTVM (Chen et al., 2018, arXiv 1805.08166), all chains stepping as one matrix.

Notation: C chains; x (C, D) their configurations; s (C,) the scores; t the temperature. One step changes one knob of
every chain to another value and accepts x' with probability exp(min((s' - s) / (t + 1e-5), 1)).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from calumma.core.keys import Key, keys_of
from calumma.core.protocols import Indices, SearchSpace
from calumma.search.history import History
from calumma.search.stats import SearchStats
from calumma.search.strategy import Explored, Score

_REDRAWS = 16


@dataclass(frozen=True)
class AnnealingSettings:
    """The defaults are AutoTVM's."""

    chains: int = 128
    steps: int = 500
    start: float = 1.0
    """Temperature of the first step, in units of the score; it falls linearly."""
    end: float = 0.0
    patience: int = 50
    """Ends after so many steps that brought nothing new among the best."""
    keep: int = 64
    """How many of the best it returns."""
    persistent: bool = True
    """Chains go on from where the last exploration left them."""


class AnnealingExplorer:
    """Returns the `keep` best predicted configurations its chains came by, none measured before, best first."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator, settings: AnnealingSettings | None = None) -> None:
        self._space = space
        self._rng = rng
        self._settings = settings or AnnealingSettings()
        self._counts = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)
        self._movable = np.flatnonzero(self._counts > 1)
        self._chains: Indices | None = None

    def explore(self, history: History, score: Score, stats: SearchStats) -> Explored:
        settings = self._settings
        if self._chains is None or not settings.persistent:
            self._chains = self._space.sample(self._rng, settings.chains)
        chains = self._chains.copy()
        scores = score(chains)
        best = _Best(settings.keep, history)
        best.offer(chains, scores)
        cooling = (settings.start - settings.end) / (settings.steps + 1)
        progress = 0
        for step in range(settings.steps):
            if step >= progress + settings.patience:
                break
            moved = self._moved(chains)
            new = score(moved)
            temperature = settings.start - step * cooling
            accepted = self._rng.random(len(chains)) < np.exp(np.minimum((new - scores) / (temperature + 1e-5), 1))
            chains[accepted], scores[accepted] = moved[accepted], new[accepted]
            if best.offer(moved, new):
                progress = step
        self._chains = chains
        return best.explored()

    def _moved(self, chains: Indices) -> Indices:
        """Change one knob of every chain to another value; a chain that finds no change to something valid stays."""
        moved = chains.copy()
        open_ = np.arange(len(chains) if len(self._movable) else 0)
        for _ in range(_REDRAWS):
            if len(open_) == 0:
                break
            knobs = self._rng.choice(self._movable, size=len(open_))
            jumps = self._rng.integers(1, self._counts[knobs])
            trial = chains[open_]
            rows = np.arange(len(open_))
            trial[rows, knobs] = (trial[rows, knobs] + jumps) % self._counts[knobs]
            trial = self._space.canonical(trial)
            valid = self._space.valid(trial) & (trial != chains[open_]).any(axis=1)
            moved[open_[valid]] = trial[valid]
            open_ = open_[~valid]
        return moved


class _Best:
    """The best `n` distinct configurations offered that were neither asked nor told before."""

    def __init__(self, n: int, history: History) -> None:
        self._n = n
        self._history = history
        self._heap: list[tuple[float, Key]] = []
        self._inside: set[Key] = set()

    def offer(self, indices: Indices, scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
        """Take in what is better than the worst inside; says whether anything was."""
        if len(self._heap) == self._n:
            better = scores > self._heap[0][0]
            indices, scores = indices[better], scores[better]
        changed = False
        fresh = self._history.is_fresh(indices)
        for key, value in zip(keys_of(indices[fresh]), scores[fresh].tolist(), strict=True):
            if key in self._inside or (len(self._heap) == self._n and value <= self._heap[0][0]):
                continue
            self._inside.add(key)
            if len(self._heap) < self._n:
                heapq.heappush(self._heap, (value, key))
            else:
                self._inside.remove(heapq.heapreplace(self._heap, (value, key))[1])
            changed = True
        return changed

    def explored(self) -> Explored:
        """Best first."""
        ranked = sorted(self._heap, reverse=True)
        rows = np.frombuffer(b"".join(key for _, key in ranked), dtype=np.int32)
        columns = len(self._history.space.knobs)
        return Explored(rows.reshape(len(ranked), columns), np.array([value for value, _ in ranked], dtype=np.float64))
