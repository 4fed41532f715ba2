"""Cost models that are told a prior's opinion of each configuration, as the last of its features: contenders of
`benchmarks/prior_few_shot.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calumma.cost_model import Committee, CostModel, GradientBoostedTrees, TreeSettings
from calumma.cost_model.committee import scale_of, scaled
from calumma.cost_model.scoring import Features, Scores
from calumma.cost_model.trees import standing


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


class InformedCommittee:
    """A committee for features of which the last is a prior's opinion, which has a vote of its own.

    Notation: n measurements; s(.) scales predictions to mean 0 and deviation 1 over reference configurations; r the
    rank correlation of the opinion with what was measured, r0 the one that opinions usually have (`USUAL`).

        predict = w s(opinion) + (1 - w) s(committee),   w = m t / (m t + n)
        t = max(0, (n0 r0 + n r) / (n0 + n)) / r0        trust: as if n0 (`DOUBTS`) measurements had agreed as usual

    Until something has worked the opinion alone counts. With eight measurements the committee knows too little to tell
    apart the configurations that the opinion likes, however well it reads that opinion. An opinion that measurements
    contradict loses its vote after a batch or two.
    """

    USUAL = 0.66
    """Mean over held-out workloads of the shipped data set."""
    DOUBTS = 8

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
        self._opinions = scale_of(reference[:, -1])
        self._learnt = (0.0, 1.0)

    def fit(self, features: Features, scores: Scores) -> None:
        self._committee.fit(features, scores)
        self._learnt = scale_of(self._committee.predict(self._reference))
        self._weight = self._vote(features[:, -1], scores) if scores.any() else 1.0

    def predict(self, features: Features) -> Scores:
        opinion = scaled(features[:, -1].astype(np.float64), self._opinions)
        if self._weight == 1.0:
            return opinion
        return self._weight * opinion + (1 - self._weight) * scaled(self._committee.predict(features), self._learnt)

    def _vote(self, opinions: Features, scores: Scores) -> float:
        n = len(scores)
        agreement = _rank_correlation(opinions.astype(np.float64), scores)
        trust = max(0.0, (self.DOUBTS * self.USUAL + n * agreement) / (self.DOUBTS + n)) / self.USUAL
        return self._worth * trust / (self._worth * trust + n)


def _rank_correlation(a: Scores, b: Scores) -> float:
    """Spearman's, 0 where one of them never varies."""
    ranks = standing(a), standing(b)
    return float(np.corrcoef(*ranks)[0, 1]) if min(rank.std() for rank in ranks) > 0 else 0.0
