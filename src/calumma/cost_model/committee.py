"""Several cost models as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calumma.cost_model.base import CostModel, Features, Scores


class Committee:
    """Predicts the mean of its members' predictions, which must have one unit, such as standings."""

    def __init__(self, members: Sequence[CostModel]) -> None:
        self._members = tuple(members)

    def fit(self, features: Features, scores: Scores) -> None:
        for member in self._members:
            member.fit(features, scores)

    def predict(self, features: Features) -> Scores:
        return np.asarray(np.mean([member.predict(features) for member in self._members], axis=0))
