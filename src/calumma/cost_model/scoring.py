"""What every cost model does, and the one that knows nothing.

Notation: N configurations, F features; X is (N, F); a score is higher for a faster
configuration and 0 for a failed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
"""One row per configuration: (n_configs, n_features)."""
Scores = NDArray[np.float64]
"""One value per configuration, higher is better: (n_configs,)."""


def aligned(features: Features, names: Sequence[str], wanted: Sequence[str], fill: float = 0.0) -> Features:
    """Columns (N, len(wanted)) in the order of `wanted`; `fill` in those that `names` does not have."""
    place = {name: column for column, name in enumerate(names)}
    have = [i for i, name in enumerate(wanted) if name in place]
    result = np.full((len(features), len(wanted)), fill, np.float32)
    result[:, have] = features[:, [place[wanted[i]] for i in have]]
    return result


class CostModel(Protocol):
    """Ranks the configurations of a task without measuring them."""

    def fit(self, features: Features, scores: Scores) -> None:
        """Learn from everything measured of the task: (N, F), (N,); replaces what an earlier call taught."""
        ...

    def predict(self, features: Features) -> Scores:
        """(N, F) -> (N,); before any data exist all configurations are equal. Only the order means something."""
        ...


class ConstantModel:
    """Finds all configurations equal: the control that shows what guidance is worth."""

    def fit(self, features: Features, scores: Scores) -> None:
        """Learn nothing."""

    def predict(self, features: Features) -> Scores:
        return np.zeros(len(features))
