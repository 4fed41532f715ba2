"""What a strategy has asked and been told in one design space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InternalError
from calumma.core.keys import Key, keys_of
from calumma.core.protocols import Indices, SearchSpace


class History:
    """Outcomes so far, and every configuration that must not be proposed again.

    Attributes:
        space: the design space all configurations belong to.
        indices: what was told, (N, D), in the order it was first told.
        scores: its outcomes, (N,), 0 = failed.
        features: its features, (N, F).
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.indices: Indices = np.empty((0, len(space.knobs)), dtype=np.int32)
        self.scores: NDArray[np.float64] = np.empty(0)
        self.features: NDArray[np.float32] = np.empty((0, len(space.feature_names)), dtype=np.float32)
        self._rows: dict[Key, int] = {}
        self._taken: set[Key] = set()

    def tell(self, indices: Indices, scores: NDArray[np.float64]) -> None:
        """Add outcomes; the last one of a configuration counts."""
        if len(indices) != len(scores):
            raise InternalError(f"{len(indices)} configurations were told with {len(scores)} scores: expected one each")
        keys = keys_of(indices)
        new: list[int] = []
        for position, key in enumerate(keys):
            if key not in self._rows:
                self._rows[key] = len(self._rows)
                new.append(position)
        self._taken.update(keys)
        added = np.asarray(indices, dtype=np.int32)[new]
        self.indices = np.concatenate([self.indices, added])
        self.features = np.concatenate([self.features, self.space.features(added)])
        self.scores = np.concatenate([self.scores, np.zeros(len(new))])
        for key, score in zip(keys, scores, strict=True):
            self.scores[self._rows[key]] = score

    def take(self, indices: Indices) -> None:
        """Mark configurations as proposed."""
        self._taken.update(keys_of(indices))

    def is_fresh(self, indices: Indices) -> NDArray[np.bool_]:
        """(N, D) -> (N,): neither proposed nor told, and no repetition of an earlier row."""
        seen: set[Key] = set()
        fresh = np.zeros(len(indices), dtype=bool)
        for position, key in enumerate(keys_of(indices)):
            if key not in self._taken and key not in seen:
                seen.add(key)
                fresh[position] = True
        return fresh

    def fresh(self, indices: Indices) -> Indices:
        """Return the distinct ones among `indices` that were neither proposed nor told, in their order."""
        return indices[self.is_fresh(indices)]

    def draw(self, rng: np.random.Generator, n: int) -> Indices:
        """Return up to `n` random valid configurations that are fresh; fewer only when no more could be found."""
        drawn = self.fresh(self.space.sample(rng, 2 * n))
        if len(drawn) < n:
            # Of n + |taken| distinct configurations at least n are fresh.
            drawn = self.fresh(self.space.sample(rng, n + len(self._taken)))
        return drawn[:n]

    def complete(self, chosen: Indices, rng: np.random.Generator, n: int) -> Indices:
        """Add random draws to the fresh `chosen` until there are `n`, as far as there are any, and take them all."""
        self.take(chosen)
        if len(chosen) < n:
            drawn = self.draw(rng, n - len(chosen))
            self.take(drawn)
            chosen = np.concatenate([chosen, drawn])
        return chosen

    def best(self, n: int) -> Indices:
        """Return the `n` best configurations that did not fail, best first."""
        order = np.argsort(-self.scores, kind="stable")[:n]
        return self.indices[order[self.scores[order] > 0]]
