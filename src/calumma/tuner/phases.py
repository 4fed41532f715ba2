"""Every second of a session is charged to exactly one phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from calumma.cost_model import CostModel

OTHER = "other"


class PhaseClock:
    """A stopwatch with nested phases: the inner one stops the outer one, so that all sum to the time elapsed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._running = [OTHER]
        self._start = self._mark = clock()

    @contextmanager
    def charge(self, phase: str) -> Iterator[None]:
        """Charge what happens inside to `phase`."""
        self._settle()
        self._running.append(phase)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def restart(self) -> None:
        """Forget what was charged; time counts from now."""
        self._seconds.clear()
        self._start = self._mark = self._clock()

    def spread(self, phase: str, seconds: float, parts: Mapping[str, float]) -> None:
        """Move `seconds` out of `phase` to `parts`, in their proportion; nothing moves where all parts are 0."""
        total = sum(parts.values())
        if total <= 0:
            return
        self._seconds[phase] -= seconds
        for name, part in parts.items():
            self._seconds[name] += seconds * part / total

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock was made."""
        return self._clock() - self._start

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._settle()
        return dict(self._seconds)

    def _settle(self) -> None:
        now = self._clock()
        self._seconds[self._running[-1]] += now - self._mark
        self._mark = now


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
