"""Several algorithms for one workload as one design space: a knob says which, and each has knobs of its own.

A configuration holds the knobs of all algorithms; those of the algorithms it does not use are at their first value, or
the configuration is invalid: each scheduled function has exactly one configuration. Names of knobs start with the
algorithm's, except those of the first algorithm, so that records from before the others existed stay valid.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space.base import Knob, KnobSpace, Repacking

ALGORITHM = "algorithm"


class AlternativesSpace(KnobSpace):
    """The union of the spaces of several algorithms.

    Args:
        spaces: algorithm -> its space; the first one computes as the workload says, and gives template and version.
            Their estimates are in one unit: without any measurement the algorithm of the least one is used.
    """

    def __init__(self, spaces: Mapping[str, KnobSpace]) -> None:
        self._spaces = dict(spaces)
        self._names = tuple(spaces)
        first = self._spaces[self._names[0]]
        self.template, self.version = first.template, first.version
        knobs = [Knob(ALGORITHM, self._names)]
        self._segments: list[slice] = []
        for name, space in self._spaces.items():
            self._segments.append(slice(len(knobs), len(knobs) + len(space.knobs)))
            knobs += [replace(knob, name=self._prefix(name) + knob.name) for knob in space.knobs]
        super().__init__(tuple(knobs))

    @property
    def size(self) -> int:
        return sum(space.size for space in self._spaces.values())

    def decode(self, indices: Indices) -> dict[str, KnobValue]:
        """Knob values by name; those of algorithms that are not used are left out.

        So is the name of the first algorithm: its configurations are those of its own space.
        """
        name, own = self._own(indices)
        config = self._spaces[name].decode(own)
        chosen = {} if name == self._names[0] else {ALGORITHM: name}
        return {**chosen, **{self._prefix(name) + knob: value for knob, value in config.items()}}

    def canonical(self, indices: Indices) -> Indices:
        result = np.zeros_like(indices)
        result[:, 0] = indices[:, 0]
        for algorithm, (space, segment) in enumerate(zip(self._spaces.values(), self._segments, strict=True)):
            rows = indices[:, 0] == algorithm
            result[rows, segment] = space.canonical(indices[rows, segment])
        return result

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        result = np.all(self.canonical(indices) == indices, axis=1)
        for algorithm, (space, segment) in enumerate(zip(self._spaces.values(), self._segments, strict=True)):
            rows = np.nonzero(result & (indices[:, 0] == algorithm))[0]
            result[rows] = space.valid(indices[rows, segment])
        return result

    def grid(self, fixed: Collection[str] = ()) -> Indices:
        grids = []
        for algorithm, (name, space) in enumerate(self._spaces.items()):
            prefix = self._prefix(name)
            own = {knob.name for knob in space.knobs if prefix + knob.name in fixed}
            grids.append(self._embedded(algorithm, space.grid(own)))
        return np.concatenate(grids)

    def sample(self, rng: np.random.Generator, n: int) -> Indices:
        """Draw about as many of each algorithm, however large its own space."""
        draws = [self._embedded(i, space.sample(rng, n)) for i, space in enumerate(self._spaces.values())]
        turn = np.concatenate([np.arange(len(drawn)) + rng.random() for drawn in draws])
        return rng.permutation(np.concatenate(draws)[np.argsort(turn)][:n])

    def neighbours(self, indices: Indices) -> Indices:
        name, own = self._own(np.asarray(indices))
        return self._embedded(self._names.index(name), self._spaces[name].neighbours(own))

    def default(self) -> Indices:
        return self.default_of(self._fastest)

    def default_in_model(self) -> Indices:
        own = self._spaces[self._fastest].default_in_model()
        return self._embedded(self._names.index(self._fastest), own[None, :])[0]

    @functools.cached_property
    def _fastest(self) -> str:
        """The algorithm whose default has the least estimate."""
        return min(self._names, key=lambda name: self.estimate(self.default_of(name)[None, :])[0])

    def default_of(self, algorithm: str) -> Indices:
        """The configuration (n_knobs,) to use without any measurement where that algorithm is wanted."""
        return self._embedded(self._names.index(algorithm), self._spaces[algorithm].default()[None, :])[0]

    def within(self, tolerance: float) -> KnobSpace:
        kept = {name: space for name, space in self._spaces.items() if space.error <= tolerance}
        return AlternativesSpace(kept) if len(kept) > 1 else self._spaces[self._names[0]]

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        """The algorithms' own estimates."""
        result = np.empty(len(indices))
        for algorithm, (space, segment) in enumerate(zip(self._spaces.values(), self._segments, strict=True)):
            rows = indices[:, 0] == algorithm
            result[rows] = space.estimate(indices[rows, segment])
        return result

    @property
    def feature_names(self) -> tuple[str, ...]:
        names = [f"{ALGORITHM}.{name}" for name in self._names]
        for name, space in self._spaces.items():
            names += [self._prefix(name) + feature for feature in space.feature_names]
        return tuple(names)

    def features(self, indices: Indices) -> NDArray[np.float32]:
        """Which algorithm, then the features of each; zero for those that are not used."""
        chosen = indices[:, :1] == np.arange(len(self._names))
        columns = [chosen.astype(np.float32)]
        for algorithm, (space, segment) in enumerate(zip(self._spaces.values(), self._segments, strict=True)):
            rows = chosen[:, algorithm]
            table = np.zeros((len(indices), len(space.feature_names)), np.float32)
            if rows.any():
                table[rows] = space.features(indices[rows, segment])
            columns.append(table)
        return np.concatenate(columns, axis=1)

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        space, own = self._chosen(config)
        return space.schedule(own)

    def repacking(self, config: Mapping[str, KnobValue]) -> Mapping[int, Repacking]:
        space, own = self._chosen(config)
        return space.repacking(own)

    def costs(self, flops: float, weight_bytes: float) -> tuple[tuple[float, float], ...]:
        return tuple(cost for space in self._spaces.values() for cost in space.costs(flops, weight_bytes))

    def _prefix(self, name: str) -> str:
        return "" if name == self._names[0] else f"{name}."

    def _own(self, indices: Indices) -> tuple[str, Indices]:
        """The algorithm of one configuration, and its own indices."""
        algorithm = int(indices[0])
        return self._names[algorithm], indices[self._segments[algorithm]]

    def _chosen(self, config: Mapping[str, KnobValue]) -> tuple[KnobSpace, dict[str, KnobValue]]:
        """The space of a configuration's algorithm, and the configuration as that space knows it."""
        name, own = self._own(self.encode(config))
        return self._spaces[name], self._spaces[name].decode(own)

    def _embedded(self, algorithm: int, own: Indices) -> Indices:
        """Configurations (N, D_a) of one algorithm -> the same (N, D) of this space."""
        whole = np.zeros((len(own), len(self.knobs)), np.int32)
        whole[:, 0] = algorithm
        whole[:, self._segments[algorithm]] = own
        return whole
