"""Gradient boosted trees (Chen & Guestrin, 2016), small enough to be fitted again after every round.

Regression on scores, not on latencies: a throughput of 0 is then an ordinary value for a failure, and the loss looks
most closely at the fast end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.cost_model.boosting import xgboost
from calumma.cost_model.scoring import Features, Scores


@dataclass(frozen=True)
class TreeSettings:
    """Size of the ensemble. The defaults fit 250 rows of 40 features in about 25 ms on one thread."""

    trees: int = 30
    depth: int = 4
    learning_rate: float = 0.2
    exact_rows: int = 400
    """Up to here every split is considered; beyond, features are binned: slower to set up, faster to grow."""
    bins: int = 64
    standings: bool = False
    """Learn standings instead of throughputs, of which a few very fast or slow ones would be most of the loss."""
    shared_trials: float = 4.0
    """m of `SharedTreesMember`: trials of its own at which a task trusts itself as much as the others."""


class GradientBoostedTrees:
    """The trees of one task."""

    def __init__(self, seed: int = 0, settings: TreeSettings | None = None) -> None:
        self._seed = seed
        self._settings = settings or TreeSettings()
        xgboost()
        self._booster: Any = None

    def fit(self, features: Features, scores: Scores) -> None:
        if len(features) == 0:
            return
        top = scores.max()
        labels = standing(scores) if self._settings.standings else scores / top if top > 0 else scores
        self._booster = _train(features, labels, None, self._seed, self._settings)

    def predict(self, features: Features) -> Scores:
        return _predict(self._booster, features)


class SharedTrees:
    """One ensemble for tasks that share a template: what one task learns about a knob guides the others.

    The scores of all members must have one meaning, such as throughput relative to the default configuration of the
    member's own task. A member weighs as the square root of its trials, so that many do not drown the others.
    """

    def __init__(self, seed: int = 0, settings: TreeSettings | None = None) -> None:
        self._seed = seed
        self._settings = settings or TreeSettings()
        xgboost()
        self._rows: dict[SharedTreesMember, tuple[Features, Scores]] = {}
        self._booster: Any = None
        self._stale = False

    def member(self) -> SharedTreesMember:
        """Return the cost model of one more task."""
        return SharedTreesMember(self, self._seed, self._settings)

    def replace(self, member: SharedTreesMember, features: Features, scores: Scores) -> None:
        """Set all that is known of one member; the next prediction trains again."""
        self._rows[member] = (features, scores)
        self._stale = True

    def predict(self, features: Features) -> Scores:
        """(N, F) -> (N,)."""
        if self._stale:
            rows = self._rows.values()
            weights = np.concatenate([np.full(len(scores), len(scores) ** -0.5) for _, scores in rows])
            self._booster = _train(
                np.concatenate([x for x, _ in rows]),
                np.concatenate([y for _, y in rows]),
                weights / weights.mean(),
                self._seed,
                self._settings,
            )
            self._stale = False
        return _predict(self._booster, features)


class SharedTreesMember:
    """One task's view of `SharedTrees`: with n trials of its own, n / (n + m) of its own trees, the rest shared."""

    def __init__(self, shared: SharedTrees, seed: int, settings: TreeSettings) -> None:
        self._shared = shared
        self._seed = seed
        self._settings = settings
        self._own: Any = None
        self._trials = 0

    def fit(self, features: Features, scores: Scores) -> None:
        if len(features) == 0:
            return
        self._shared.replace(self, features, scores)
        self._own = _train(features, scores, None, self._seed, self._settings)
        self._trials = len(scores)

    def predict(self, features: Features) -> Scores:
        own = self._trials / (self._trials + self._settings.shared_trials)
        return own * _predict(self._own, features) + (1 - own) * self._shared.predict(features)


def _train(
    features: Features, scores: Scores, weights: NDArray[np.float64] | None, seed: int, settings: TreeSettings
) -> Any:
    exact = len(features) <= settings.exact_rows
    parameters = {
        "objective": "reg:squarederror",
        "tree_method": "exact" if exact else "hist",
        "max_depth": settings.depth,
        "eta": settings.learning_rate,
        "nthread": 1,
        "seed": seed,
        "verbosity": 0,
    } | ({} if exact else {"max_bin": settings.bins})
    data = xgboost().DMatrix(features, scores, weight=weights, nthread=1)
    return xgboost().train(parameters, data, num_boost_round=settings.trees)


def _predict(booster: Any, features: Features) -> Scores:
    if booster is None or len(features) == 0:
        return np.zeros(len(features))
    return np.asarray(booster.inplace_predict(features), dtype=np.float64)


def standing(scores: Scores) -> Scores:
    """(N,) -> (N,): the share of all that each is faster than, 0 for the slowest; equals are halfway."""
    if len(scores) == 0:
        return np.zeros(0)
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.cumsum(count) - count
    return np.asarray((below + (count - 1) / 2)[place] / len(scores))
