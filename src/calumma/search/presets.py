"""Strategies by name. A new preset is one function, which wires explorer, sampler and cost model, and one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import DesignSpace, Indices
from calumma.cost_model import (
    Committee,
    CostModel,
    GaussianProcess,
    GradientBoostedTrees,
    RankedTrees,
    RankedTreesSettings,
    ScaledCommittee,
    TreeSettings,
)
from calumma.search.annealing import AnnealingExplorer
from calumma.search.evolution import EvolutionaryExplorer
from calumma.search.genetic import GeneticStrategy
from calumma.search.samplers import EpsilonGreedySampler, GreedyPlanSampler
from calumma.search.strategy import Explorer, GuidedStrategy, RandomStrategy, Sampler, SearchStrategy
from calumma.search.views import KnobFeatures


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


def _autotvm_knobs(parts: _Parts) -> SearchStrategy:
    return _autotvm(replace(parts, space=KnobFeatures(parts.space)))


def _sa_as(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _annealing(parts), _adaptive(parts))


def _sa_topk(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _annealing(parts), _adaptive(parts, representative="top"))


def _rl(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _learnt(parts), GreedyPlanSampler(parts.rng))


def _rl_as(parts: _Parts) -> SearchStrategy:
    return _guided(parts, _learnt(parts), _adaptive(parts))


def _chameleon(parts: _Parts) -> SearchStrategy:
    """`rl+as` that plans no further than it is asked, much of it around the best, with short walks and a committee.

    A model that was given may know something before anything is measured: then the best by it is looked for, and more
    of the plan is around the best.
    """
    explorer = _learnt(parts, walkers=64, steps=24, rollout=12)
    reference = parts.space.features(parts.space.sample(parts.rng, _REFERENCE))
    process = GaussianProcess(reference)
    if parts.model is None:
        committee = Committee([GradientBoostedTrees(parts.seed, TreeSettings(standings=True)), process])
        return _guided(parts, explorer, _adaptive(parts, pool=32, most=0, near=0.5), committee)
    model = ScaledCommittee([parts.model, process], reference)
    sampler = _adaptive(parts, pool=32, most=0, near=0.75)
    return _guided(parts, explorer, sampler, model, draws=_CLIMBED_DRAWS, climbs=_CLIMBS)


def _guided(
    parts: _Parts,
    explorer: Explorer,
    sampler: Sampler,
    model: CostModel | None = None,
    *,
    draws: int = 1024,
    climbs: int = 0,
) -> SearchStrategy:
    """The ablations differ in explorer and sampler alone, so all of them have the baseline's cost model by default."""
    return GuidedStrategy(
        parts.name,
        parts.space,
        parts.rng,
        explorer=explorer,
        sampler=sampler,
        model=model or parts.model or RankedTrees(parts.seed),
        draws=draws,
        climbs=climbs,
    )


def _annealing(parts: _Parts) -> Explorer:
    return AnnealingExplorer(parts.space, parts.rng)


def _adaptive(parts: _Parts, **settings: Any) -> Sampler:
    try:
        from calumma.search.adaptive import AdaptiveSampler, AdaptiveSettings
    except ModuleNotFoundError as missing:
        raise InputError(
            f"strategy {parts.name!r} clusters with scikit-learn, and {missing.name} is not installed: "
            "pip install 'calumma[search]', or choose a strategy that does not cluster"
        ) from missing
    return AdaptiveSampler(parts.rng, AdaptiveSettings(**settings))


def _learnt(parts: _Parts, **settings: Any) -> Explorer:
    try:
        from calumma.search.policies import load_policy
        from calumma.search.ppo import PolicyExplorer, PpoSettings
    except ModuleNotFoundError as missing:
        raise InputError(
            f"strategy {parts.name!r} learns with torch, and {missing.name} is not installed: "
            "pip install 'calumma[torch]', or choose a strategy that does not learn to explore"
        ) from missing
    policy = None if parts.policy is None else load_policy(parts.policy)
    return PolicyExplorer(parts.space, parts.rng, policy=policy, settings=PpoSettings(**settings))


_REFERENCE = 512
"""Random configurations that the scales of features and of models are taken from."""
_CLIMBED_DRAWS, _CLIMBS = 512, 4
"""Random configurations that the first plan is chosen from where the neighbours of the best follow, and how often."""

Preset = Callable[[_Parts], SearchStrategy]

_PRESETS: dict[str, Preset] = {
    "random": _random,
    "evolutionary": _evolutionary,
    "genetic": _genetic,
    "autotvm": _autotvm,
    "autotvm-regression": _autotvm_regression,
    "autotvm-knobs": _autotvm_knobs,
    "sa+topk": _sa_topk,
    "sa+as": _sa_as,
    "rl": _rl,
    "rl+as": _rl_as,
    "chameleon": _chameleon,
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
        model: the cost model that guides; fresh boosted trees if not given. What it knows before anything is measured
            counts: that is how a prior comes in. The AutoTVM baselines keep to their own.
        policy: file of a policy that the strategies which learn to explore start from; from scratch if not given.

    Raises:
        InputError: there is no strategy of that name, it needs a package that is missing, or the policy does not fit.
    """
    if name not in _PRESETS:
        raise InputError(f"no strategy is called {name!r}: choose one of {', '.join(_PRESETS)}")
    seed = int(rng.integers(1 << 31))
    strategy = _PRESETS[name](_Parts(name, space, rng, seed, model, policy))
    if warm is not None and len(warm[0]):
        strategy.tell(*warm)
    return strategy
