"""A space seen in another way: by its knobs alone, for one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices, SearchSpace
from calumma.core.values import Knob, KnobValue


class View:
    """A space to search in whose place stands whatever a subclass defines; the rest is the space's own."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self.feature_names = space.feature_names

    @property
    def knobs(self) -> tuple[Knob, ...]:
        return self._space.knobs

    @property
    def size(self) -> int:
        return self._space.size

    def encode(self, config: Mapping[str, KnobValue]) -> Indices:
        return self._space.encode(config)

    def decode(self, indices: Indices) -> dict[str, KnobValue]:
        return self._space.decode(indices)

    def valid(self, indices: Indices) -> NDArray[np.bool_]:
        return self._space.valid(indices)

    def canonical(self, indices: Indices) -> Indices:
        return self._space.canonical(indices)

    def sample(self, rng: np.random.Generator, n: int) -> Indices:
        return self._space.sample(rng, n)

    def neighbours(self, indices: Indices) -> Indices:
        return self._space.neighbours(indices)

    def default(self) -> Indices:
        return self._space.default()

    def features(self, indices: Indices) -> NDArray[np.float32]:
        return self._space.features(indices)


class KnobFeatures(View):
    """A space whose features are the knobs' indices, as AutoTVM's "knob" features are."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.feature_names = tuple(knob.name for knob in space.knobs)

    def features(self, indices: Indices) -> NDArray[np.float32]:
        return np.asarray(indices, dtype=np.float32)
