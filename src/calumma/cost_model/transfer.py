"""Trees that know what a prior thinks of a configuration."""

from __future__ import annotations

import numpy as np

from calumma.cost_model.base import Features, Scores
from calumma.cost_model.trees import GradientBoostedTrees, TreeSettings


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
