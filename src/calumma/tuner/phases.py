"""Every second of a session is charged to exactly one phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from calumma.core.stopwatch import Stopwatch
from calumma.cost_model import CostModel

OTHER = "other"


class PhaseClock(Stopwatch):
    """The stopwatch of a session: what is charged to no other phase is charged to "other"."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock, between=OTHER)
        self._start = clock()

    def restart(self) -> None:
        """Forget what was charged; time counts from now."""
        super().restart()
        self._start = self.clock()

    def spread(self, phase: str, seconds: float, parts: Mapping[str, float]) -> None:
        """Move `seconds` out of `phase` to `parts`, in their proportion; nothing moves where all parts are 0."""
        total = sum(parts.values())
        if total <= 0:
            return
        self.add(phase, -seconds)
        for name, part in parts.items():
            self.add(name, seconds * part / total)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock was made or restarted."""
        return self.clock() - self._start


class ChargedModel:
    """A cost model whose time is charged to the phase "model"."""

    def __init__(self, model: CostModel, phases: PhaseClock) -> None:
        self._model = model
        self._phases = phases

    def fit(self, features: NDArray[np.float32], scores: NDArray[np.float64]) -> None:
        with self._phases.charge("model"):
            self._model.fit(features, scores)

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        with self._phases.charge("model"):
            return self._model.predict(features)
