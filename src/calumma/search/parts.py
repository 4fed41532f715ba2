"""What a strategy is made of: the arguments of a preset, which wires explorer, sampler and cost model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calumma.core.protocols import SearchSpace
from calumma.cost_model import CostModel
from calumma.search.strategy import SearchStrategy


@dataclass(frozen=True)
class StrategyParts:
    """What `make_strategy` hands to a preset, for one design space."""

    name: str
    """What the strategy was asked for as; records keep the name that the strategy gives itself."""
    space: SearchSpace
    """What is searched. A prior may have put its own columns in the place of the features."""
    rng: np.random.Generator
    """Source of all its randomness."""
    seed: int
    """For what has a generator of its own, drawn from `rng`."""
    model: CostModel | None
    """The cost model that guides, which may know something before anything is measured; None for the preset's own."""
    policy: Path | None
    """File of a policy that a strategy which learns to explore starts from; None for none."""


Preset = Callable[[StrategyParts], SearchStrategy]
"""Makes a new strategy for one design space."""
StrategyChoice = str | Preset | SearchStrategy
"""A name of `strategy_names()`; what makes a strategy; or one that is made already, for a single design space."""
