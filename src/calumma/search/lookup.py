"""Strategies by name: those of `presets`, and those that modules outside of this package register."""

from __future__ import annotations

from pathlib import Path
from types import FunctionType

import numpy as np
from numpy.typing import NDArray

from calumma.core import extensions
from calumma.core.errors import InputError
from calumma.core.extensions import Registry
from calumma.core.protocols import Indices, SearchSpace
from calumma.cost_model import CostModel
from calumma.search.parts import Preset, StrategyChoice, StrategyParts
from calumma.search.presets import PRESETS
from calumma.search.strategy import SearchStrategy

_PRESETS: Registry[Preset] = Registry("strategy", PRESETS, in_workers=False)


def register_strategy(name: str, preset: Preset) -> None:
    """Make a strategy known by name in this process; workers need none.

    An installed package does so in the module that it names as an entry point (`calumma.core.extensions`).

    Args:
        name: what records and `--strategy` call it.
        preset: makes one for a design space.

    Raises:
        InputError: the name is taken.
    """
    _PRESETS.add(name, preset)


def strategy_names() -> tuple[str, ...]:
    """Names `make_strategy` knows, those of installed extensions included."""
    extensions.load_installed()
    return _PRESETS.names()


def strategy_name(strategy: StrategyChoice) -> str:
    """What a strategy is called: its name, or that of the function or class that makes it."""
    if isinstance(strategy, str):
        return strategy
    if callable(strategy):
        return strategy.__name__ if isinstance(strategy, FunctionType | type) else type(strategy).__name__
    return strategy.name


def check_strategy(strategy: StrategyChoice, *, single: bool = True) -> None:
    """Refuse what `make_strategy` cannot use.

    Args:
        strategy: a name, a preset or a strategy.
        single: whether one design space alone is searched.

    Raises:
        InputError: there is no strategy of that name; it is neither name, preset nor strategy; or a strategy is given
            where several design spaces are searched, each of which needs its own.
    """
    if isinstance(strategy, str):
        if _PRESETS.get(strategy) is None and strategy not in strategy_names():
            raise InputError(f"no strategy is called {strategy!r}: choose one of {', '.join(_PRESETS.names())}")
        return
    if callable(strategy):
        return
    if not isinstance(strategy, SearchStrategy):
        raise InputError(
            f"strategy={strategy!r}: expected a name, a function of `StrategyParts` that makes a strategy, "
            "or an object with name, stats, ask and tell"
        )
    if not single:
        raise InputError(
            f"strategy {strategy.name!r} is one object, and several tasks are searched: "
            "give a function of `StrategyParts` that makes one for each"
        )


def make_strategy(
    strategy: StrategyChoice,
    space: SearchSpace,
    rng: np.random.Generator,
    *,
    warm: tuple[Indices, NDArray[np.float64]] | None = None,
    model: CostModel | None = None,
    policy: Path | None = None,
) -> SearchStrategy:
    """Return a strategy for one design space: a new one, unless one was given.

    Args:
        strategy: one of `strategy_names()`; or a preset; or a strategy for this very space, to which `model` and
            `policy` come too late.
        space: the design space.
        rng: the strategy's own generator; all its randomness comes from it.
        warm: outcomes of earlier sessions, indices (n, n_knobs) and scores (n,): learnt from and never proposed again.
        model: the cost model that guides; fresh boosted trees if not given. What it knows before anything is measured
            counts: that is how a prior comes in. The AutoTVM baselines keep to their own.
        policy: file of a policy that the strategies which learn to explore start from; from scratch if not given.

    Raises:
        InputError: as `check_strategy`; it needs a package that is missing; the policy does not fit; or a preset made
            something else than a strategy.
    """
    check_strategy(strategy)
    seed = int(rng.integers(1 << 31))
    if isinstance(strategy, str) or callable(strategy):
        preset = _PRESETS.get(strategy) if isinstance(strategy, str) else strategy
        assert preset is not None, "check_strategy has looked it up"
        name = strategy_name(strategy)
        made = preset(StrategyParts(name, space, rng, seed, model, policy))
        if not isinstance(made, SearchStrategy):
            raise InputError(f"preset {name!r} made {made!r}: expected an object with name, stats, ask and tell")
    else:
        made = strategy
    if warm is not None and len(warm[0]):
        made.tell(*warm)
    return made
