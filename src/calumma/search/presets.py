"""The strategies of this package. Each is one function, which wires explorer, sampler and cost model, and one entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calumma.core.errors import InputError
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
from calumma.search.parts import Preset, StrategyParts
from calumma.search.samplers import EpsilonGreedySampler, GreedyPlanSampler
from calumma.search.strategy import Explorer, GuidedStrategy, RandomStrategy, Sampler, SearchStrategy
from calumma.search.views import KnobFeatures


def _random(parts: StrategyParts) -> SearchStrategy:
    return RandomStrategy(parts.space, parts.rng)


def _genetic(parts: StrategyParts) -> SearchStrategy:
    return GeneticStrategy(parts.space, parts.rng)


def _evolutionary(parts: StrategyParts) -> SearchStrategy:
    return GuidedStrategy(
        parts.name,
        parts.space,
        parts.rng,
        explorer=EvolutionaryExplorer(parts.space, parts.rng),
        sampler=EpsilonGreedySampler(parts.rng),
        model=parts.model or GradientBoostedTrees(parts.seed),
        warm_up=4,
    )


def _autotvm(parts: StrategyParts) -> SearchStrategy:
    """The published baseline: its cost model too, whatever model was given."""
    return _guided(parts, _annealing(parts), GreedyPlanSampler(parts.rng), RankedTrees(parts.seed))


def _autotvm_regression(parts: StrategyParts) -> SearchStrategy:
    model = RankedTrees(parts.seed, RankedTreesSettings(loss="regression"))
    return _guided(parts, _annealing(parts), GreedyPlanSampler(parts.rng), model)


def _autotvm_knobs(parts: StrategyParts) -> SearchStrategy:
    return _autotvm(replace(parts, space=KnobFeatures(parts.space)))


def _sa_as(parts: StrategyParts) -> SearchStrategy:
    return _guided(parts, _annealing(parts), _adaptive(parts))


def _sa_topk(parts: StrategyParts) -> SearchStrategy:
    return _guided(parts, _annealing(parts), _adaptive(parts, representative="top"))


def _rl(parts: StrategyParts) -> SearchStrategy:
    return _guided(parts, _learnt(parts), GreedyPlanSampler(parts.rng))


def _rl_as(parts: StrategyParts) -> SearchStrategy:
    return _guided(parts, _learnt(parts), _adaptive(parts))


def _chameleon(parts: StrategyParts) -> SearchStrategy:
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
    parts: StrategyParts,
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


def _annealing(parts: StrategyParts) -> Explorer:
    return AnnealingExplorer(parts.space, parts.rng)


def _adaptive(parts: StrategyParts, **settings: Any) -> Sampler:
    try:
        from calumma.search.adaptive import AdaptiveSampler, AdaptiveSettings
    except ModuleNotFoundError as missing:
        raise InputError(
            f"strategy {parts.name!r} clusters with scikit-learn, and {missing.name} is not installed: "
            "pip install 'calumma[search]', or choose a strategy that does not cluster"
        ) from missing
    return AdaptiveSampler(parts.rng, AdaptiveSettings(**settings))


def _learnt(parts: StrategyParts, **settings: Any) -> Explorer:
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

PRESETS: dict[str, Preset] = {
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
