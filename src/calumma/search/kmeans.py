"""k-means (Lloyd, 1982), grown: each larger k keeps the centroids of the last and adds k-means++ seeds to them.

Notation: points X (N, D); k centroids (k, D); labels (N,) name the nearest centroid; loss is the summed squared
distance to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

_ITERATIONS = 25
_SAME = 1e-12
"""A squared distance below this is rounding: the points are equal."""


@dataclass(frozen=True)
class Clustering:
    """One partition of the points; every cluster has a member."""

    centroids: Points
    """(k, D)"""
    labels: NDArray[np.int64]
    """(N,), values below k"""
    loss: float

    @property
    def k(self) -> int:
        return len(self.centroids)


def grow(points: Points, ks: Iterable[int], rng: np.random.Generator) -> Iterator[Clustering]:
    """Yield a clustering for every k of an ascending sequence; a k beyond the distinct points gives as many as exist.

    The loss never rises from one to the next, since the old centroids stay among the seeds.
    """
    centroids = points[rng.integers(len(points), size=1)]
    for k in ks:
        clustering = _lloyd(points, _seeded(points, centroids, k, rng))
        centroids = clustering.centroids
        yield clustering


def _seeded(points: Points, centroids: Points, k: int, rng: np.random.Generator) -> Points:
    """Add points, drawn by squared distance to the nearest centroid (Arthur & Vassilvitskii, 2007)."""
    nearest = _distances(points, centroids).min(axis=1)
    seeds = [centroids[:k]]
    for _ in range(k - len(centroids)):
        total = nearest.sum()
        if total <= _SAME * len(points):
            break
        seed = points[rng.choice(len(points), p=nearest / total)][None, :]
        seeds.append(seed)
        nearest = np.minimum(nearest, _distances(points, seed)[:, 0])
    return np.concatenate(seeds)


def _lloyd(points: Points, centroids: Points) -> Clustering:
    labels = _distances(points, centroids).argmin(axis=1)
    for _ in range(_ITERATIONS):
        # A cluster that has lost all its members is dropped.
        _, labels = np.unique(labels, return_inverse=True)
        sizes = np.bincount(labels)
        sums = np.stack([np.bincount(labels, weights=column) for column in points.T], axis=1)
        centroids = sums / sizes[:, None]
        moved = _distances(points, centroids).argmin(axis=1)
        if np.array_equal(moved, labels):
            break
        labels = moved
    used, labels = np.unique(labels, return_inverse=True)
    centroids = centroids[used]
    loss = float(((points - centroids[labels]) ** 2).sum())
    return Clustering(centroids, labels, loss)


def _distances(points: Points, centroids: Points) -> Points:
    """Squared distances (N, k)."""
    squares: Points = (points**2).sum(axis=1)[:, None] - 2 * (points @ centroids.T) + (centroids**2).sum(axis=1)
    return np.maximum(squares, 0.0)
