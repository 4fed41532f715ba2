"""Gaussian process regression (Rasmussen & Williams, 2006) on the features of one task's configurations.

Notation: X (N, F) scaled features of what was measured, z (N,) its standings, standardised; l a length, v the noise.

    k(x, x') = exp(-|x - x'| / l)                      rough (Matern, smoothness 1/2): neighbours may differ a lot
    mean(x)  = k(x, X) K^-1 z,  K = k(X, X) + v I
    log p    = -N/2 log(z' K^-1 z) - 1/2 log |K|       marginal likelihood at the best signal variance, up to a constant
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.cost_model.scoring import Features, Scores
from calumma.cost_model.trees import standing

Floats = NDArray[np.float64]

_CONSTANT = 1e-6


@dataclass(frozen=True)
class GaussianSettings:
    """What is tried: few values, since with few measurements the likelihood hardly tells more apart."""

    lengths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0)
    """l, in standard deviations of a feature."""
    noises: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """v, as a part of the variance of the signal."""
    most: int = 512
    """Learns from so many of the fastest at most: the time of a fit grows with their number cubed."""


class GaussianProcess:
    """Predicts standings, in which no outlier counts more than another."""

    def __init__(self, reference: Features, settings: GaussianSettings | None = None) -> None:
        """Take the features' scales.

        Args:
            reference: features (M, F) of any configurations of the task; columns that are constant in it are ignored.
            settings: what is tried.
        """
        deviation = reference.std(axis=0, dtype=np.float64)
        self._columns = np.flatnonzero(deviation > _CONSTANT)
        self._mean = reference.mean(axis=0, dtype=np.float64)[self._columns]
        self._deviation = deviation[self._columns]
        self._settings = settings or GaussianSettings()
        self._known: Floats = np.empty((0, len(self._columns)))
        self._weights: Floats = np.empty(0)
        self._length = 1.0
        self._level = 0.0

    def fit(self, features: Features, scores: Scores) -> None:
        labels = standing(scores)
        fastest = np.argsort(-labels, kind="stable")[: self._settings.most]
        self._known = self._scaled(features[fastest])
        self._level = float(labels[fastest].mean()) if len(fastest) else 0.0
        centred = labels[fastest] - self._level
        self._weights = np.zeros(len(centred))
        if not centred.any():
            return
        apart = _distances(self._known, self._known)
        best = -np.inf
        for length in self._settings.lengths:
            kernel = np.exp(-apart / length)
            for noise in self._settings.noises:
                lower = np.linalg.cholesky(kernel + noise * np.eye(len(kernel)))
                whitened = np.linalg.solve(lower, centred)
                likelihood = -len(centred) / 2 * np.log(whitened @ whitened) - np.log(np.diag(lower)).sum()
                if likelihood > best:
                    best, self._length = likelihood, length
                    self._weights = np.linalg.solve(lower.T, whitened)

    def predict(self, features: Features) -> Scores:
        if len(self._known) == 0 or len(features) == 0:
            return np.zeros(len(features))
        kernel = np.exp(-_distances(self._scaled(features), self._known) / self._length)
        return np.asarray(self._level + kernel @ self._weights)

    def _scaled(self, features: Features) -> Floats:
        return np.asarray((features[:, self._columns] - self._mean) / self._deviation)


def _distances(a: Floats, b: Floats) -> Floats:
    """Euclidean distances (N, M) of rows (N, F) and (M, F)."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))
