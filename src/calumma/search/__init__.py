"""Search: which configurations of a design space to measure next. Knows arrays and protocols, not TVM.

strategy = explorer (proposes many) + sampler (chooses few of them) + cost model (guides both); presets by name.

    calumma.search.register_strategy("mine", lambda parts: MyStrategy(parts.space, parts.rng))
"""

from calumma.search.history import History
from calumma.search.lookup import check_strategy, make_strategy, register_strategy, strategy_name, strategy_names
from calumma.search.parts import Preset, StrategyChoice, StrategyParts
from calumma.search.stats import PolicyUpdate, SearchStats
from calumma.search.strategy import (
    Explored,
    Explorer,
    GuidedStrategy,
    RandomStrategy,
    Sampler,
    SearchStrategy,
)

__all__ = [
    "Explored",
    "Explorer",
    "GuidedStrategy",
    "History",
    "PolicyUpdate",
    "Preset",
    "RandomStrategy",
    "Sampler",
    "SearchStats",
    "SearchStrategy",
    "StrategyChoice",
    "StrategyParts",
    "check_strategy",
    "make_strategy",
    "register_strategy",
    "strategy_name",
    "strategy_names",
]
