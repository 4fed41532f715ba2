"""Search: which configurations of a design space to measure next. Knows arrays and protocols, not TVM.

strategy = explorer (proposes many) + sampler (chooses few of them) + cost model (guides both); presets by name.
"""

from calumma.search.history import History
from calumma.search.presets import make_strategy, strategy_names
from calumma.search.strategy import Explorer, GuidedStrategy, RandomStrategy, Sampler

__all__ = [
    "Explorer",
    "GuidedStrategy",
    "History",
    "RandomStrategy",
    "Sampler",
    "make_strategy",
    "strategy_names",
]
