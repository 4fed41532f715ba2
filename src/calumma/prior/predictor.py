"""The zero-shot predictor: how fast a task's configurations will be, with nothing of the task measured.

Notation: p_e(x) is what member e of the forest predicts of configuration x, log(latency / bound) less what all
configurations of the task have in common; d is the default.

    gain(x)       = mean over e of p_e(d) - p_e(x)     how much faster than the default, as a logarithm
    deviation(x)  = standard deviation over e of the same
    error(x)      = spread * deviation(x)              standard error, calibrated on workloads held out in turns
    score(x)      = gain(x) - caution * deviation(x)

The configuration of the highest score is used if that is above the template's least gain; else the default is as good
as any. Caution and least gain are those that paid best on workloads held out (`judging`), template by template, on this
CPU or, where it was never seen, on CPUs left out in turns: where the prior was no better than the default there, it is
not trusted at all, and only tells a tuning session where to begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import Indices, Template
from calumma.core.rng import generator
from calumma.cost_model.scoring import aligned
from calumma.prior import features, ranking
from calumma.prior.features import TaskView
from calumma.prior.forest import Floats
from calumma.prior.machines import machine_of, place
from calumma.prior.weights import UNSEEN, Family, Prior, Trust
from calumma.target import Target

KEPT = 64
"""Configurations of a ranking."""


@dataclass(frozen=True)
class Gains:
    """What the members of a forest say of N configurations beside the default."""

    mean: NDArray[np.float64]
    """(N,) logarithm of the default's latency over the configuration's."""
    deviation: NDArray[np.float64]
    """(N,) of the members."""

    def score(self, caution: float) -> NDArray[np.float64]:
        """(N,) what configurations are ranked by, higher is better."""
        return self.mean - caution * self.deviation


def gains_over(default: Floats, outputs: Floats) -> Gains:
    """Predictions of the members for the default (E, 1) and for configurations (E, N) -> their gains."""
    gains = default - outputs
    return Gains(gains.mean(axis=0, dtype=np.float64), gains.std(axis=0, dtype=np.float64))


@dataclass(frozen=True)
class Predictions:
    """What is predicted of N configurations."""

    latency_s: NDArray[np.float64]
    """(N,)"""
    gain: NDArray[np.float64]
    """(N,) logarithm of the default's latency over the configuration's."""
    deviation: NDArray[np.float64]
    """(N,) of the members' gains."""
    error: NDArray[np.float64]
    """(N,) standard error of the gain."""

    score: NDArray[np.float64]
    """(N,) what configurations are ranked by, higher is better."""


@dataclass(frozen=True)
class Ranking:
    """Configurations (M, D) of one design space, best first, and what is predicted of them."""

    indices: Indices
    predictions: Predictions
    trusted: bool
    """Whether the first one is to be used in the place of the default."""


class TaskPredictor:
    """The prior's view of one task."""

    def __init__(self, family: Family, view: TaskView, trust: Trust, seed: int) -> None:
        self.family = family
        self.view = view
        self.trust = trust
        self._seed = seed
        self._default = family.order.predict(self.table(view.space.default()[None, :]))  # (E, 1)

    @property
    def trusted(self) -> bool:
        """Whether anything can take the default's place."""
        return self.trust.any

    def predict(self, indices: Indices) -> Predictions:
        """Configurations (N, D); what is predicted of one does not depend on the others."""
        table = self.table(indices)
        outputs = self.family.order.predict(table)
        gains = gains_over(self._default, outputs)
        level = self.family.level.predict(table).mean(axis=0, dtype=np.float64)
        latency_s = self.view.bound_s * np.exp(level + outputs.mean(axis=0, dtype=np.float64))
        return Predictions(
            latency_s,
            gains.mean,
            gains.deviation,
            self.family.spread * gains.deviation,
            gains.score(self.trust.caution),
        )

    def scores(self, indices: Indices) -> NDArray[np.float64]:
        """Configurations (N, D) -> (N,): their scores alone, which is cheaper."""
        return gains_over(self._default, self.family.order.predict(self.table(indices))).score(self.trust.caution)

    def table(self, indices: Indices) -> Floats:
        """Configurations (N, D) -> the family's columns (N, C)."""
        return aligned(self.view.table(indices), self.view.names, self.family.columns)

    def rank(self) -> Ranking:
        """The best of the design space, `KEPT` at most."""
        rng = generator(self._seed, "prior")
        indices, _ = ranking.best(self.view.space, self.scores, rng)
        predictions = self.predict(indices[:KEPT])
        return Ranking(indices[:KEPT], predictions, bool(predictions.score[0] > self.trust.least_gain))


class Predictor:
    """A prior put to use on one CPU with one number of threads."""

    def __init__(
        self,
        prior: Prior,
        target: Target,
        threads: int,
        cache_state: str = "cold",
        seed: int = 0,
        *,
        measuring: bool = False,
    ) -> None:
        """Check that the prior fits.

        Args:
            prior: what was learnt.
            target, threads: what is compiled for.
            cache_state: "cold" or "warm": where a model's weights are when it runs.
            seed: of the search in spaces too large to be ranked whole.
            measuring: whether all that it says is measured before it is used: then any prior may be asked.

        Raises:
            InputError: nothing shows that it is of use on that CPU (`Prior.mismatch`).
        """
        reason = "" if measuring else prior.mismatch(target.hardware, threads)
        if reason:
            raise InputError(f"prior {prior.name!r} says nothing here: {reason}; choose another one, or none")
        self.prior = prior
        self.target = target
        self.threads = threads
        known = prior.limits(target.hardware, threads)
        self.seen = known is not None
        """Whether something of this CPU with as many threads is in the prior."""
        self._target = target
        self.limits = known or machine_of(target.hardware, (threads,)).limits[threads]
        self._place = place(target.hardware, threads) if known else UNSEEN
        self._cache_state = cache_state
        self._seed = seed

    def task(self, func: Any, space: Template) -> TaskPredictor | None:
        """The view of one task; None where the prior does not know the template, or knows another version of it.

        Args:
            func: the normalised function, a `tirx.PrimFunc`.
            space: its design space.
        """
        family = self.prior.families.get(space.template)
        if family is None or family.version != space.version:
            return None
        view = features.view(func, space, self.target, self.limits, self._cache_state)
        return TaskPredictor(family, view, family.trust(self._place), self._seed)
