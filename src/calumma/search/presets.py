"""Strategies by name. A new preset is one function, which wires explorer, sampler and cost model, and one entry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import DesignSpace, Indices, Strategy
from calumma.cost_model import CostModel, GradientBoostedTrees
from calumma.search.evolution import EvolutionaryExplorer
from calumma.search.samplers import EpsilonGreedySampler
from calumma.search.strategy import GuidedStrategy, RandomStrategy

Preset = Callable[[DesignSpace, np.random.Generator, CostModel], Strategy]
"""(space, rng, cost model) -> strategy; a preset that needs no cost model ignores it."""


def _random(space: DesignSpace, rng: np.random.Generator, model: CostModel) -> Strategy:
    return RandomStrategy(space, rng)


def _evolutionary(space: DesignSpace, rng: np.random.Generator, model: CostModel) -> Strategy:
    return GuidedStrategy(
        "evolutionary",
        space,
        rng,
        explorer=EvolutionaryExplorer(space, rng),
        sampler=EpsilonGreedySampler(rng),
        model=model,
    )


_PRESETS: dict[str, Preset] = {"random": _random, "evolutionary": _evolutionary}


def strategy_names() -> tuple[str, ...]:
    """Names `make_strategy` knows."""
    return tuple(_PRESETS)


def make_strategy(
    name: str,
    space: DesignSpace,
    rng: np.random.Generator,
    *,
    warm: tuple[Indices, NDArray[np.float64]] | None = None,
    model: CostModel | None = None,
) -> Strategy:
    """Return a new strategy for one design space.

    Args:
        name: one of `strategy_names()`.
        space: the design space.
        rng: the strategy's own generator; all its randomness comes from it.
        warm: outcomes of earlier sessions, indices (n, n_knobs) and scores (n,): learnt from and never proposed again.
        model: the cost model that guides; fresh gradient boosted trees if not given.

    Raises:
        InputError: there is no strategy of that name.
    """
    if name not in _PRESETS:
        raise InputError(f"no strategy is called {name!r}: choose one of {', '.join(_PRESETS)}")
    strategy = _PRESETS[name](space, rng, model or GradientBoostedTrees(seed=int(rng.integers(1 << 31))))
    if warm is not None and len(warm[0]):
        strategy.tell(*warm)
    return strategy
