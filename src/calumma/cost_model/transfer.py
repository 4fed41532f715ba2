"""Prior knowledge for a search: what other workloads of a template taught about its configurations.

Notation: workloads w with features X_w (N_w, F_w), named columns, and scores y_w (N_w,). A *standing* is the share of a
workload's configurations that a configuration is faster than: 0 for the slowest, nearly 1 for the fastest. Unlike
throughputs, standings of different workloads have one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calumma.core.errors import InputError
from calumma.cost_model.base import Features, Scores, aligned
from calumma.cost_model.boosting import xgboost
from calumma.cost_model.trees import GradientBoostedTrees, TreeSettings, standing

_MEMBERS = 4
_ROUNDS = 150
_PARAMETERS = {
    "objective": "reg:squarederror",
    "max_depth": 5,
    "eta": 0.1,
    "subsample": 0.7,
    "colsample_bytree": 0.5,
    "min_child_weight": 3,
    "nthread": 1,
    "verbosity": 0,
}


class Known(NamedTuple):
    """What is known of one workload."""

    names: tuple[str, ...]
    """Of the columns."""
    features: Features
    """(N, F)"""
    scores: Scores
    """(N,), higher is better, 0 for a failure."""


class TreePrior:
    """Boosted trees that predict standings in workloads they have not seen, from features that these share.

    The mean of several ensembles, each of workloads drawn with replacement (bagging): what one of them says depends
    much on which workloads it has seen.
    """

    def __init__(self, workloads: Sequence[Known], seed: int = 0) -> None:
        """Learn; every workload weighs the same, however much is known of it.

        Raises:
            InputError: nothing is known.
        """
        workloads = [known for known in workloads if len(known.scores)]
        if not workloads:
            raise InputError("a prior learns from measurements of other workloads, and there are none: collect some")
        self.names = tuple(dict.fromkeys(name for known in workloads for name in known.names))
        tables = [aligned(known.features, known.names, self.names, np.nan) for known in workloads]
        rng = np.random.default_rng(seed)
        self._members = []
        for member in range(_MEMBERS):
            drawn = rng.integers(0, len(workloads), len(workloads))
            data = xgboost().DMatrix(
                np.concatenate([tables[w] for w in drawn]),
                np.concatenate([standing(workloads[w].scores) for w in drawn]),
                weight=np.concatenate([np.full(len(tables[w]), 1e3 / len(tables[w])) for w in drawn]),
                nthread=1,
            )
            self._members.append(xgboost().train({**_PARAMETERS, "seed": seed + member}, data, _ROUNDS))

    def predict(self, names: Sequence[str], features: Features) -> Scores:
        """Standings (N,) of configurations with these features (N, F)."""
        if len(features) == 0:
            return np.zeros(0)
        table = aligned(features, names, self.names, np.nan)
        opinions = [member.inplace_predict(table) for member in self._members]
        return np.asarray(np.mean(opinions, axis=0, dtype=np.float64))


class InformedTrees(GradientBoostedTrees):
    """Trees for features of which the last is a prior's opinion: it is theirs until something has worked."""

    def __init__(self, seed: int = 0, settings: TreeSettings | None = None) -> None:
        super().__init__(seed, settings)
        self._fitted = False

    def fit(self, features: Features, scores: Scores) -> None:
        super().fit(features, scores)
        self._fitted = bool(scores.any())

    def predict(self, features: Features) -> Scores:
        return super().predict(features) if self._fitted else features[:, -1].astype(np.float64)
