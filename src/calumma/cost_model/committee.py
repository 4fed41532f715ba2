"""Several cost models as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calumma.cost_model.scoring import CostModel, Features, Scores


class Committee:
    """Predicts the mean of its members' predictions, which must have one unit, such as standings."""

    def __init__(self, members: Sequence[CostModel]) -> None:
        self._members = tuple(members)

    def fit(self, features: Features, scores: Scores) -> None:
        for member in self._members:
            member.fit(features, scores)

    def predict(self, features: Features) -> Scores:
        return np.asarray(np.mean([member.predict(features) for member in self._members], axis=0))


class ScaledCommittee:
    """Predicts the mean of members that have units of their own, each scaled over reference configurations.

    Until something has worked the first member alone counts: it may know something before anything is measured.
    """

    def __init__(self, members: Sequence[CostModel], reference: Features) -> None:
        """Wire the members.

        Args:
            members: learn from the task's own measurements.
            reference: features (M, F) of any configurations of the task.
        """
        self._members = tuple(members)
        self._reference = reference
        self._scales: list[tuple[float, float]] = []
        self._worked = False

    def fit(self, features: Features, scores: Scores) -> None:
        for member in self._members:
            member.fit(features, scores)
        self._scales = []
        self._worked = bool(scores.any())

    def predict(self, features: Features) -> Scores:
        if not self._worked:
            return self._members[0].predict(features)
        if not self._scales:  # not in `fit`: members that share what they learn would learn after every task's fit
            self._scales = [scale_of(member.predict(self._reference)) for member in self._members]
        pairs = zip(self._members, self._scales, strict=True)
        return np.asarray(np.mean([scaled(member.predict(features), scale) for member, scale in pairs], axis=0))


def scale_of(values: Scores | Features) -> tuple[float, float]:
    """Mean and standard deviation, the latter 1 where nothing varies."""
    return float(values.mean()), float(values.std()) or 1.0


def scaled(values: Scores, scale: tuple[float, float]) -> Scores:
    """Values in units of a `scale_of`."""
    mean, deviation = scale
    return (values - mean) / deviation
