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


class InformedCommittee:
    """A committee for features of which the last is a prior's opinion, which has a vote of its own.

    Notation: n measurements; s(.) scales predictions to mean 0 and deviation 1 over reference configurations.

        predict = w s(opinion) + (1 - w) s(committee),   w = m / (m + n)

    Until something has worked the opinion alone counts. With eight measurements the committee knows too little to tell
    apart the configurations that the opinion likes, however well it reads that opinion.
    """

    def __init__(self, members: Sequence[CostModel], reference: Features, worth: float) -> None:
        """Wire the members.

        Args:
            members: learn from the task's own measurements.
            reference: features (M, F) of any configurations of the task.
            worth: m, the number of measurements that the opinion is worth.
        """
        self._committee = Committee(members)
        self._reference = reference
        self._worth = worth
        self._weight = 1.0
        self._opinions = _scale(reference[:, -1])
        self._learnt = (0.0, 1.0)

    def fit(self, features: Features, scores: Scores) -> None:
        self._committee.fit(features, scores)
        self._learnt = _scale(self._committee.predict(self._reference))
        self._weight = self._worth / (self._worth + len(scores)) if scores.any() else 1.0

    def predict(self, features: Features) -> Scores:
        opinion = _scaled(features[:, -1].astype(np.float64), self._opinions)
        if self._weight == 1.0:
            return opinion
        return self._weight * opinion + (1 - self._weight) * _scaled(self._committee.predict(features), self._learnt)


def _scale(values: Scores | Features) -> tuple[float, float]:
    """Mean and standard deviation, the latter 1 where nothing varies."""
    return float(values.mean()), float(values.std()) or 1.0


def _scaled(values: Scores, scale: tuple[float, float]) -> Scores:
    mean, deviation = scale
    return (values - mean) / deviation
