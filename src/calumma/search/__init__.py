"""Search: which configurations of a design space to measure next. Knows arrays and protocols, not TVM.

strategy = explorer (proposes many) + sampler (chooses few of them) + cost model (guides both); presets by name.
"""

from calumma.search.history import History
from calumma.search.presets import make_strategy, strategy_names
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
    "RandomStrategy",
    "Sampler",
    "SearchStats",
    "SearchStrategy",
    "make_strategy",
    "strategy_names",
]
