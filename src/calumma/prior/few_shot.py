"""The few-shot cost model: the predictor's networks, adapted to one task by a handful of its measurements.

Notation: N measured configurations; for member e of the ensemble h_e (N, H) are the units of its last hidden layer,
p_e (N,) its predictions of log(latency / bound), y (N,) the logarithm of what was measured, up to a constant.

What the last layer has learnt over all tasks is the prior mean; each member gets the ridge regression from there, with
a free constant, for how fast the task is as a whole is no question of order:

    r = y - p_e,   delta = (Hc' W Hc + ridge I)^-1 Hc' W r        Hc, and r: less their weighted means
    prediction = p_e(x) + h_e(x) delta

w_i ~ (best / latency_i)^2: the fast ones are what has to be told apart. Closed form, so that adapting costs about a
millisecond after every batch and needs no torch. The layers below are trained through this very step, with support and
query drawn from the same workload (`training`): Bertinetto et al., "Meta-learning with differentiable closed-form
solvers", ICLR 2019 (arXiv 1805.08136), with the last layer's own weights as the mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.cost_model.base import Features, Scores
from calumma.prior.mlp import Floats
from calumma.prior.predictor import TaskPredictor

EMPHASIS = 2.0
"""Exponent of the weights of fast configurations."""


class FewShotModel:
    """A `CostModel` of one task; scores are throughputs in any unit, a failure (0) is twice as slow as the worst."""

    def __init__(self, task: TaskPredictor) -> None:
        self._task = task
        ensemble = task.family.ensemble
        self._delta: Floats = np.zeros((ensemble.members, ensemble.weights[-1].shape[1], 1), np.float32)

    def fit(self, features: Features, scores: Scores) -> None:
        if not (scores > 0).any():
            return
        worst = scores[scores > 0].min()
        y = -np.log(np.where(scores > 0, scores, worst / 2))
        hidden, predicted = self._task.family.ensemble.layers(self._task.table(features))
        self._delta = adapted(hidden, predicted, y, self._task.family.ridge)

    def predict(self, features: Features) -> Scores:
        """(N, F) -> (N,): negative log latencies, up to a constant."""
        hidden, predicted = self._task.family.ensemble.layers(self._task.table(features))
        outputs = predicted + (hidden @ self._delta)[:, :, 0]
        return -outputs.mean(axis=0, dtype=np.float64)


def adapted(hidden: Floats, predicted: Floats, y: NDArray[np.float64], ridge: float) -> Floats:
    """Changes (E, H, 1) of the last layers, of units (E, N, H), predictions (E, N) and measured logarithms (N,)."""
    w = np.exp(-EMPHASIS * (y - y.min()))
    share = (w / w.sum())[None, :, None]
    h = hidden - (share * hidden).sum(axis=1, keepdims=True)
    r = (y - predicted)[:, :, None]
    r = r - (share * r).sum(axis=1, keepdims=True)
    weighted = h * (w[None, :, None])
    gram = weighted.transpose(0, 2, 1) @ h + ridge * np.eye(h.shape[2])
    return np.linalg.solve(gram, weighted.transpose(0, 2, 1) @ r).astype(np.float32)
