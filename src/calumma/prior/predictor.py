"""The zero-shot predictor: how fast a task's configurations will be, with nothing of the task measured.

Notation: p_e(x) is what member e of the ensemble predicts of configuration x, log(latency / bound); d the default.

    gain(x)   = mean over e of p_e(d) - p_e(x)        how much faster than the default, as a logarithm
    error(x)  = spread * deviation over e of the same its standard error, calibrated on workloads held out in turns
    score(x)  = gain(x) - CAUTION * error(x)

The configuration of the highest score is used if that is above `LEAST_GAIN`; else the default is as good as any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import Indices
from calumma.core.rng import generator
from calumma.core.values import Hardware
from calumma.prior import features, ranking
from calumma.prior.features import TaskView
from calumma.prior.mlp import Floats
from calumma.prior.weights import Family, Prior
from calumma.space import KnobSpace

CAUTION = 0.5
LEAST_GAIN = 0.02


@dataclass(frozen=True)
class Predictions:
    """What is predicted of N configurations."""

    latency_s: NDArray[np.float64]
    """(N,)"""
    gain: NDArray[np.float64]
    """(N,) logarithm of the default's latency over the configuration's."""
    error: NDArray[np.float64]
    """(N,) standard error of the gain."""

    @property
    def score(self) -> NDArray[np.float64]:
        """(N,) higher is better."""
        return self.gain - CAUTION * self.error


@dataclass(frozen=True)
class Ranking:
    """Configurations (M, D) of one design space, best first, and what is predicted of them."""

    indices: Indices
    predictions: Predictions

    @property
    def trusted(self) -> bool:
        """Whether the first one is to be used in the place of the default."""
        return bool(self.predictions.score[0] > LEAST_GAIN)


class TaskPredictor:
    """The prior's view of one task."""

    def __init__(self, family: Family, view: TaskView, seed: int) -> None:
        self.family = family
        self.view = view
        self._seed = seed
        self._default = self._outputs(view.space.default()[None, :])  # (E, 1)

    def predict(self, indices: Indices) -> Predictions:
        """Configurations (N, D); what is predicted of one depends on the others by rounding at most."""
        outputs = self._outputs(indices)
        gains = self._default - outputs
        latency_s = self.view.bound_s * np.exp(outputs.mean(axis=0, dtype=np.float64))
        error = self.family.spread * gains.std(axis=0, dtype=np.float64)
        return Predictions(latency_s, gains.mean(axis=0, dtype=np.float64), error)

    def table(self, space_features: Floats) -> Floats:
        """What the design space says of configurations (N, F) -> the family's columns (N, C)."""
        return features.aligned(self.view.completed(space_features), self.view.names, self.family.ensemble.columns)

    def rank(self) -> Ranking:
        """The best of the design space; the default is always among them."""
        rng = generator(self._seed, "prior")
        indices, _ = ranking.best(self.view.space, lambda x: self.predict(x).score, rng)
        return Ranking(indices, self.predict(indices))

    def _outputs(self, indices: Indices) -> Floats:
        return self.family.ensemble.predict(self.table(self.view.space.features(indices)))


class Predictor:
    """A prior put to use on one machine with one number of threads."""

    def __init__(
        self, prior: Prior, hardware: Hardware, threads: int, cache_state: str = "cold", seed: int = 0
    ) -> None:
        """Check that the prior fits.

        Args:
            prior: what was learnt.
            hardware, threads: what is compiled for.
            cache_state: "cold" or "warm": where a model's weights are when it runs.
            seed: of the search in spaces too large to be ranked whole.

        Raises:
            InputError: it was trained on another machine, or with other numbers of threads.
        """
        reason = prior.mismatch(hardware, threads)
        if reason:
            raise InputError(f"prior {prior.name!r} says nothing here: {reason}; choose another one, or none")
        self.prior = prior
        self._limits = prior.limits[threads]
        self._cache_state = cache_state
        self._seed = seed

    def task(self, func: Any, space: KnobSpace) -> TaskPredictor | None:
        """The view of one task; None where the prior does not know the template, or knows another version of it.

        Args:
            func: the normalised function, a `tirx.PrimFunc`.
            space: its design space.
        """
        family = self.prior.families.get(space.template)
        if family is None or family.version != space.version:
            return None
        return TaskPredictor(family, features.view(func, space, self._limits, self._cache_state), self._seed)
