"""The predictor's networks, evaluated with NumPy: an ensemble of multilayer perceptrons.

Notation: N rows, F columns, E members, H hidden units; layer l of a member is h <- relu(h W_l + b_l), the last one
without relu and with a single output. All members share the normalisation x <- clip((x - mean) / scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Floats = NDArray[np.float32]

BLOCK = 2048
"""Rows of one pass: what they become stays in the caches."""
_threads = ThreadpoolController()
CLIP = 5.0
"""A column farther from its mean than so many deviations counts as that far: nothing was learnt beyond."""


@dataclass(frozen=True)
class Ensemble:
    """Networks of one shape over the same columns."""

    columns: tuple[str, ...]
    """Names of the F inputs."""
    mean: Floats
    scale: Floats
    """(F,) of the training data."""
    weights: tuple[Floats, ...]
    """Per layer (E, inputs, outputs)."""
    biases: tuple[Floats, ...]
    """Per layer (E, 1, outputs)."""

    @property
    def members(self) -> int:
        return len(self.weights[0])

    def normalised(self, table: Floats) -> Floats:
        """(N, F) raw columns -> (N, F) inputs."""
        return np.clip((table - self.mean) / self.scale, -CLIP, CLIP).astype(np.float32)

    def predict(self, table: Floats) -> Floats:
        """Raw columns (N, F) -> outputs (E, N)."""
        return self.layers(table)[1]

    def layers(self, table: Floats) -> tuple[Floats, Floats]:
        """Raw columns (N, F) -> units of the last hidden layer (E, N, H), and outputs (E, N)."""
        inputs = self.normalised(table)
        # The products are too small to be shared: threads would wait for one another, most of all beside other work.
        with _threads.limit(limits=1):
            blocks = [self._block(inputs[start : start + BLOCK]) for start in range(0, max(1, len(inputs)), BLOCK)]
        hidden, outputs = zip(*blocks, strict=True)
        return np.concatenate(hidden, axis=1), np.concatenate(outputs, axis=1)

    def _block(self, rows: Floats) -> tuple[Floats, Floats]:
        h = rows[None]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0)
        outputs = h @ self.weights[-1] + self.biases[-1]
        return h, outputs[:, :, 0]


def normalisation(tables: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Mean and scale (F,) of training tables, every one counting the same; a column that never varies becomes 0."""
    mean = np.mean([table.mean(axis=0) for table in tables], axis=0)
    square = np.mean([((table - mean) ** 2).mean(axis=0) for table in tables], axis=0)
    deviation = np.sqrt(square)
    scale = np.where(deviation > 1e-6, deviation, np.inf)
    return mean.astype(np.float32), scale.astype(np.float32)
