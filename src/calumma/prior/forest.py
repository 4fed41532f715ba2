"""The predictor's trees, evaluated with NumPy: members of perfect binary trees.

Notation: N rows, F columns; E members of T trees of depth D each. Inner node j of a tree has the children 2j + 1 and
2j + 2 and asks x[feature_j] >= threshold_j: no goes left, yes right. After D questions a row is in one of 2^D leaves,
and a member predicts the sum of the values of its trees' leaves. A tree that stops earlier is filled up with questions
that nobody answers with yes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK = 4096
"""Rows of one pass: their answers to one tree's questions stay in the caches."""
ANSWERS = 1 << 18
"""Of one pass over as many trees as that allows: of few rows many trees, of many rows one."""


@dataclass(frozen=True)
class Forest:
    """Members of boosted trees over the same columns."""

    columns: tuple[str, ...]
    """Names of the F inputs."""
    features: NDArray[np.int32]
    """(E, T, 2^D - 1) column of each question."""
    thresholds: Floats
    """(E, T, 2^D - 1); infinite where a tree is filled up."""
    leaves: Floats
    """(E, T, 2^D)"""

    @property
    def members(self) -> int:
        return len(self.features)

    @property
    def depth(self) -> int:
        return int(self.leaves.shape[2]).bit_length() - 1

    def predict(self, table: Floats) -> Floats:
        """Columns (N, F) -> predictions of the members (E, N); what is predicted of a row depends on no other."""
        starts = range(0, max(1, len(table)), BLOCK)
        return np.concatenate([self._block(table[start : start + BLOCK]) for start in starts], axis=1)

    def places(self, table: Floats) -> NDArray[np.intp]:
        """Columns (N, F) -> the leaf of every tree that a row ends in (E, T, N)."""
        found = np.empty((*self.features.shape[:2], len(table)), np.intp)
        for start in range(0, len(table), BLOCK):
            rows = slice(start, start + BLOCK)
            for member, trees, leaves in self._walk(table[rows]):
                found[member, trees, rows] = leaves
        return found

    def _block(self, table: Floats) -> Floats:
        result = np.zeros((self.members, len(table)), np.float32)
        for member, trees, places in self._walk(table):
            for values in np.take_along_axis(self.leaves[member, trees], places, axis=1):  # in this order, always
                result[member] += values
        return result

    def _walk(self, table: Floats) -> Iterator[tuple[int, slice, NDArray[np.intp]]]:
        """Member, some of its trees, and the leaves (trees, N) that rows end in; in order."""
        columns = np.ascontiguousarray(table.T)
        inner = self.features.shape[2]
        together = max(1, ANSWERS // (inner * max(1, len(table))))
        for member in range(self.members):
            for start in range(0, self.features.shape[1], together):
                group = slice(start, start + together)
                features, thresholds = self.features[member, group], self.thresholds[member, group]
                answers = (columns[features] >= thresholds[:, :, None]).ravel()  # (trees, inner, rows)
                place = np.arange(len(table)) + len(table) * inner * np.arange(len(features))[:, None]
                node = answers[place] + 1
                for _ in range(self.depth - 1):
                    node = 2 * node + 1 + answers[node * len(table) + place]
                yield member, group, node - inner
