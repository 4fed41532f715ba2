"""The cost model of AutoTVM (Chen et al., 2018, arXiv 1805.08166): the baseline, with its settings.

Boosted trees grow until the average recall of the training set's top has made no progress for some rounds:

    recall(n) = |the n predicted best and the n truly best, in both| / n,   a-recall@N = mean of recall(n), n = 1..N
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calumma.cost_model.boosting import xgboost
from calumma.cost_model.scoring import Features, Scores

_OBJECTIVES: dict[str, dict[str, str | int | bool]] = {
    # Since XGBoost 2 pairs are formed among the top by default, and since 3 gradients are divided by the difference of
    # the predictions; AutoTVM's learner draws its pairs from the whole set and takes them as they are.
    "rank": {
        "objective": "rank:pairwise",
        "lambdarank_pair_method": "mean",
        "lambdarank_num_pair_per_sample": 1,
        "lambdarank_score_normalization": False,
    },
    "regression": {"objective": "reg:squarederror"},
}


@dataclass(frozen=True)
class RankedTreesSettings:
    """The defaults are AutoTVM's."""

    loss: Literal["rank", "regression"] = "rank"
    depth: int = 3
    learning_rate: float = 0.3
    least_gain: float = 1e-4
    """gamma: a split must lower the loss by this."""
    l2: float = 1.0
    least_child_weight: float = 1.0
    rounds: int = 8000
    """Never reached: a-recall is at most 1, and patience ends what makes no progress."""
    patience: int = 20
    """Stops after so many rounds without a better a-recall on the training set."""
    top: int = 64
    """N of a-recall: the size of a plan."""


class RankedTrees:
    """Boosted trees that learn the order of throughputs; the rounds without progress at the end stay, as in AutoTVM."""

    def __init__(self, seed: int = 0, settings: RankedTreesSettings | None = None) -> None:
        self._seed = seed
        self._settings = settings or RankedTreesSettings()
        xgboost()
        self._booster: Any = None

    def fit(self, features: Features, scores: Scores) -> None:
        if len(features) == 0:
            return
        settings = self._settings
        data = xgboost().DMatrix(features, scores / max(scores.max(), 1e-8), nthread=1)
        data.set_group([len(scores)])
        parameters = {
            **_OBJECTIVES[settings.loss],
            "max_depth": settings.depth,
            "eta": settings.learning_rate,
            "gamma": settings.least_gain,
            "lambda": settings.l2,
            "min_child_weight": settings.least_child_weight,
            "tree_method": "exact",
            "nthread": 1,
            "seed": self._seed,
            "verbosity": 0,
        }
        booster = xgboost().Booster(parameters, [data])
        best, best_round = -1.0, 0
        for number in range(settings.rounds):
            booster.update(data, number)
            recall = average_recall(booster.predict(data, output_margin=True), scores, settings.top)
            if recall > best:
                best, best_round = recall, number
            elif number - best_round >= settings.patience:
                break
        self._booster = booster

    def predict(self, features: Features) -> Scores:
        if self._booster is None or len(features) == 0:
            return np.zeros(len(features))
        return np.asarray(self._booster.inplace_predict(features, predict_type="margin"), dtype=np.float64)


def average_recall(predicted: NDArray[np.float32], scores: Scores, top: int) -> float:
    """Return a-recall@top of predictions (N,) against true scores (N,), 0 to 1."""
    n = len(scores)
    truth, place = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    truth[np.argsort(-scores, kind="stable")] = np.arange(n)
    place[np.argsort(-predicted, kind="stable")] = np.arange(n)
    # A configuration is in both tops of n from the larger of its two ranks on.
    both = np.cumsum(np.bincount(np.maximum(truth, place), minlength=n))
    recalls = both / np.arange(1, n + 1)
    return float(recalls[:top].mean())
