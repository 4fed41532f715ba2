"""What every design space shares: knobs, encoding, sampling, neighbours. A template adds validity, features, schedule.

Notation: D knobs; knob d has n_d values; a configuration is a vector of D indices, 0 <= x_d < n_d; N configurations
are a matrix (N, D).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import Indices
from calumma.core.values import Knob, KnobValue, Repacking

__all__ = ["Knob", "KnobSpace", "Repacking"]

_ENUMERABLE = 1 << 16
_SAMPLING_ROUNDS = 64
_FEW_ROUNDS = 4


class KnobSpace(ABC):
    """A design space over a product of knobs, some of whose points may be invalid."""

    template: str
    version: int
    error: float = 0.0
    """About the largest error of the algorithm by itself, relative to the largest output; 0 where it computes as the
    workload says, whose own error is that of float32."""

    def __init__(self, knobs: tuple[Knob, ...]) -> None:
        self.knobs = knobs
        self._counts = np.array([len(knob.values) for knob in knobs], dtype=np.int64)

    @property
    def size(self) -> int:
        return math.prod(len(knob.values) for knob in self.knobs)

    def encode(self, config: Mapping[str, KnobValue]) -> Indices:
        unknown = set(config) - {knob.name for knob in self.knobs}
        if unknown:
            raise InputError(f"template {self.template} has no knob {sorted(unknown)[0]!r}")
        indices = np.empty(len(self.knobs), dtype=np.int32)
        for d, knob in enumerate(self.knobs):
            if knob.name not in config:
                indices[d] = knob.neutral
                continue
            value = config[knob.name]
            if value not in knob.values:
                raise InputError(
                    f"knob {knob.name} of template {self.template} cannot be {value!r}: one of {knob.values}"
                )
            indices[d] = knob.values.index(value)
        return indices

    def decode(self, indices: Indices) -> dict[str, KnobValue]:
        return {knob.name: knob.values[int(i)] for knob, i in zip(self.knobs, indices, strict=True)}

    def columns(self, indices: Indices) -> dict[str, NDArray]:
        """Knob values by name, each (N,): the vectorised form of `decode`."""
        return {knob.name: np.asarray(knob.values)[indices[:, d]] for d, knob in enumerate(self.knobs)}

    def valid(self, indices: Indices) -> NDArray[np.bool_]:
        inside = np.all((indices >= 0) & (indices < self._counts), axis=1)
        result = np.zeros(len(indices), dtype=bool)
        if inside.any():
            result[inside] = self._valid(indices[inside])
        return result

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        """Validity of in-range configurations (N, D) -> (N,); all of them unless a template says otherwise."""
        return np.ones(len(indices), dtype=bool)

    def canonical(self, indices: Indices) -> Indices:
        """Configurations (N, D) with every knob that means nothing in its place at its first value."""
        return indices

    def enumerate(self) -> Indices:
        """Every valid configuration, (M, D). Raises InputError for a space too large to list."""
        if self.size > _ENUMERABLE:
            raise InputError(f"a space of {self.size} configurations is too large to list")
        return self.grid()

    def grid(self, fixed: Collection[str] = ()) -> Indices:
        """Every valid configuration (M, D) whose `fixed` knobs are at their first value, whatever the size."""
        counts = [1 if knob.name in fixed else len(knob.values) for knob in self.knobs]
        grid = np.indices(counts).reshape(len(counts), -1).T.astype(np.int32)
        return grid[self.valid(grid)]

    def sample(self, rng: np.random.Generator, n: int) -> Indices:
        enumerable = self.size <= _ENUMERABLE
        found = np.empty((0, len(self.knobs)), dtype=np.int32)
        # A small space is listed only for a large part of it, or where few of its points are valid.
        rounds = _SAMPLING_ROUNDS if not enumerable else _FEW_ROUNDS if 8 * n < self.size else 0
        for _ in range(rounds):
            draws = rng.integers(0, self._counts, size=(max(4 * n, 64), len(self.knobs))).astype(np.int32)
            found = np.concatenate([found, draws[self.valid(draws)]])
            _, first = np.unique(found, axis=0, return_index=True)
            found = found[np.sort(first)]
            if len(found) >= n:
                return found[:n]
        if not enumerable:
            return found
        everything = self.enumerate()
        return everything[rng.permutation(len(everything))[:n]]

    def neighbours(self, indices: Indices) -> Indices:
        steps = np.concatenate([np.eye(len(self.knobs)), -np.eye(len(self.knobs))]).astype(np.int32)
        around = np.asarray(indices)[None, :] + steps
        return around[self.valid(around)]

    def repacking(self, config: Mapping[str, KnobValue]) -> Mapping[int, Repacking]:
        """Weights, by position of the argument, that `schedule(config)` takes in another form than the workload."""
        return {}

    def within(self, tolerance: float) -> KnobSpace:
        """The same space without algorithms whose `error` exceeds a tolerance; the plain one always stays."""
        return self

    def costs(self, flops: float, weight_bytes: float) -> tuple[tuple[float, float], ...]:
        """Operations and bytes of weights of the workload, by each algorithm that the space has for it."""
        return ((flops, weight_bytes),)

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        """Relative time (N,) of configurations by a template's reasoning, as far as it reasons; all 1 otherwise."""
        return np.ones(len(indices))

    @abstractmethod
    def default(self) -> Indices: ...

    def default_in_model(self) -> Indices:
        """The configuration (D,) to use in a model without any measurement: `default` unless a template knows better.

        A kernel that is timed by itself finds its inputs in L3. In a model they lie in the L2 of the threads that wrote
        them: how work is shared out, which one call does not tell, decides what has to move from core to core.
        """
        return self.default()

    @property
    @abstractmethod
    def feature_names(self) -> tuple[str, ...]: ...

    @abstractmethod
    def features(self, indices: Indices) -> NDArray[np.float32]: ...

    @abstractmethod
    def schedule(self, config: Mapping[str, KnobValue]) -> Any: ...
