"""Strategies by name. A new preset is one function, which wires explorer, sampler and cost model, and one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import DesignSpace, Indices
from calumma.cost_model import CostModel, GradientBoostedTrees, RankedTrees, RankedTreesSettings
from calumma.search.annealing import AnnealingExplorer
from calumma.search.evolution import EvolutionaryExplorer
from calumma.search.genetic import GeneticStrategy
from calumma.search.samplers import (
    AdaptiveSampler,
    AdaptiveSettings,
    EpsilonGreedySampler,
    GreedyPlanSampler,
    Representative,
)
from calumma.search.strategy import Explorer, GuidedStrategy, RandomStrategy, Sampler, SearchStrategy


@dataclass(frozen=True)
class _Parts:
    """What `make_strategy` was given."""

    name: str
    space: DesignSpace
    rng: np.random.Generator
    seed: int
    """For what has a generator of its own, drawn from `rng`."""
    model: CostModel | None
    policy: Path | None


def _random(parts: _Parts) -> SearchStrategy:
    return RandomStrategy(parts.space, parts.rng)


def _genetic(parts: _Parts) -> SearchStrategy:
    return GeneticStrategy(parts.space, parts.rng)


def _evolutionary(parts: _Parts) -> SearchStrategy:
    return GuidedStrategy(
        parts.name,
        parts.space,
        parts.rng,
        explorer=EvolutionaryExplorer(parts.space, parts.rng),
        sampler=EpsilonGreedySampler(parts.rng),
        model=parts.model or GradientBoostedTrees(parts.seed),
        warm_up=4,
    )


def _autotvm(parts: _Parts) -> SearchStrategy:
    """The published baseline: its cost model too, whatever model was given."""
    return _guided(parts, _annealing(parts), GreedyPlanSampler(parts.rng), RankedTrees(parts.seed))


def _autotvm_regression(parts: _Parts) -> SearchStrategy:
    model = RankedTrees(parts.seed, RankedTreesSettings(loss="regression"))
    return _guided(parts, _annealing(parts), GreedyPlanSampler(parts.rng), model)


def _sa_as(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _annealing(parts), _adaptive(parts))


def _sa_topk(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _annealing(parts), _adaptive(parts, "top"))


def _rl(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _learnt(parts), GreedyPlanSampler(parts.rng))


def _rl_as(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _learnt(parts), _adaptive(parts))


def _guided(parts: _Parts, explorer: Explorer, sampler: Sampler, model: CostModel | None = None) -> SearchStrategy:
    """The ablations differ in explorer and sampler alone, so all of them have the baseline's cost model by default."""
    model = model or parts.model or RankedTrees(parts.seed)
    return GuidedStrategy(parts.name, parts.space, parts.rng, explorer=explorer, sampler=sampler, model=model)


def _annealing(parts: _Parts) -> Explorer:
    return AnnealingExplorer(parts.space, parts.rng)


def _adaptive(parts: _Parts, representative: Representative = "best") -> Sampler:
    return AdaptiveSampler(parts.rng, AdaptiveSettings(representative=representative))


def _learnt(parts: _Parts) -> Explorer:
    try:
        from calumma.search.ppo import PolicyExplorer, load_policy
    except ModuleNotFoundError as missing:
        raise InputError(
            f"strategy {parts.name!r} learns with torch, and {missing.name} is not installed: "
            "pip install 'calumma[torch]', or choose a strategy that does not learn to explore"
        ) from missing
    policy = None if parts.policy is None else load_policy(parts.policy)
    return PolicyExplorer(parts.space, parts.rng, policy=policy)


Preset = Callable[[_Parts], SearchStrategy]

_PRESETS: dict[str, Preset] = {
    "random": _random,
    "evolutionary": _evolutionary,
    "genetic": _genetic,
    "autotvm": _autotvm,
    "autotvm-regression": _autotvm_regression,
    "sa+topk": _sa_topk,
    "sa+as": _sa_as,
    "rl": _rl,
    "rl+as": _rl_as,
    "chameleon": _rl_as,
}


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
    policy: Path | None = None,
) -> SearchStrategy:
    """Return a new strategy for one design space.

    Args:
        name: one of `strategy_names()`.
        space: the design space.
        rng: the strategy's own generator; all its randomness comes from it.
        warm: outcomes of earlier sessions, indices (n, n_knobs) and scores (n,): learnt from and never proposed again.
        model: the cost model that guides; fresh boosted trees if not given. The AutoTVM baselines keep to their own.
        policy: file of a policy that the strategies which learn to explore start from; from scratch if not given.

    Raises:
        InputError: there is no strategy of that name, it needs a package that is missing, or the policy does not fit.
    """
    if name not in _PRESETS:
        raise InputError(f"no strategy is called {name!r}: choose one of {', '.join(_PRESETS)}")
    strategy = _PRESETS[name](_Parts(name, space, rng, int(rng.integers(1 << 31)), model, policy))
    if warm is not None and len(warm[0]):
        strategy.tell(*warm)
    return strategy
