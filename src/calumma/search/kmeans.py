"""k-means (Lloyd, 1982; k-means++ seeds) by scikit-learn, for a growing number of clusters.

Notation: points X (N, D); k centroids (k, D); labels (N,) name the nearest centroid; loss is the summed squared
distance to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import ThreadpoolController

Points = NDArray[np.float64]

_threads = ThreadpoolController()


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
    """Yield a clustering for every k of an ascending sequence; no larger one than there are distinct points."""
    distinct = len(np.unique(points, axis=0))
    for k in ks:
        yield cluster(points, min(k, distinct), rng)


def cluster(points: Points, k: int, rng: np.random.Generator) -> Clustering:
    """Cluster the points, of which at least `k` are distinct, on one thread: others may be measuring."""
    means = KMeans(k, n_init=1, random_state=int(rng.integers(1 << 31)))
    with _threads.limit(limits=1):
        means.fit(points)
    # Lloyd may stop before every centroid is the mean of its own; a cluster that was left without members is dropped.
    used, labels = np.unique(means.labels_, return_inverse=True)
    return Clustering(means.cluster_centers_[used], labels, float(means.inertia_))
