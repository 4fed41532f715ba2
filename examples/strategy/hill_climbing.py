"""Hill climbing under the cost model, as a strategy from outside of calumma.

    PYTHONPATH=. CALUMMA_EXTENSIONS=hill_climbing calumma tune MODEL --strategy hill-climbing

in this folder, which PYTHONPATH has to name: the command does not look for modules in the current one. An installed
package names the module as an entry point instead:

    [project.entry-points."calumma.extensions"]
    hill-climbing = "hill_climbing"

Notation: D knobs; N configurations are a matrix of knob indices (N, D).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.core.protocols import Indices, SearchSpace
from calumma.cost_model import GradientBoostedTrees
from calumma.search import Explored, GuidedStrategy, History, SearchStats, StrategyParts, register_strategy
from calumma.search.samplers import EpsilonGreedySampler
from calumma.search.strategy import Score

NAME = "hill-climbing"


class ClimbingExplorer:
    """Climbs from the best measured configurations and from as many random ones, until no neighbour looks better."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator, starts: int = 4, steps: int = 16) -> None:
        self._space, self._rng = space, rng
        self._starts, self._steps = starts, steps

    def explore(self, history: History, score: Score, stats: SearchStats) -> Explored:
        """Return everything that was looked at on the way, with its predicted scores."""
        seen: list[Indices] = []
        predicted: list[NDArray[np.float64]] = []
        drawn = self._space.sample(self._rng, self._starts)
        for place in np.concatenate([history.best(self._starts), drawn]):
            height = score(place[None, :])[0]
            for _ in range(self._steps):
                around = self._space.neighbours(place)
                heights = score(around)
                seen.append(around)
                predicted.append(heights)
                if not len(around) or heights.max() <= height:
                    break
                place, height = around[heights.argmax()], heights.max()
        return Explored.distinct(np.concatenate(seen), np.concatenate(predicted))


def hill_climbing(parts: StrategyParts) -> GuidedStrategy:
    """The preset: climbs, and takes the best predicted, now and then a random one."""
    return GuidedStrategy(
        parts.name,
        parts.space,
        parts.rng,
        explorer=ClimbingExplorer(parts.space, parts.rng),
        sampler=EpsilonGreedySampler(parts.rng),
        model=parts.model or GradientBoostedTrees(parts.seed),
        warm_up=4,
    )


register_strategy(NAME, hill_climbing)
