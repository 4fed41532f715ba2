"""For authors of templates, strategies, runners and stores: what their tests need, and what ours are made of.

| an author of | tests with |
|---|---|
| a template | `check_space`: what spaces promise; `check_template`: the results of its configurations |
| a strategy | `calumma.testing.strategy_suite.StrategyConformance` |
| a runner | `calumma.testing.runner_suite.RunnerConformance` |
| a store | `calumma.testing.store_suite.StoreConformance` |

The suites are classes for pytest, which nothing else here needs: derive a class `Test...` and supply the one fixture
that its module's docstring names. The checks raise `AssertionError`. Fakes: `ToySpace` is a design space without code,
`SimulatedRunner` a runner without workers, `calumma.testing.toy_kernels` are kernels that are quickly measured.
`calumma.measure.ReplayRunner` answers from records.
"""

from calumma.testing.contract import check_space
from calumma.testing.kernels import apply, call, check_template, missing_flags, prim_func, require, run
from calumma.testing.simulated_runner import SimulatedRunner
from calumma.testing.toy_space import ToySpace

__all__ = [
    "SimulatedRunner",
    "ToySpace",
    "apply",
    "call",
    "check_space",
    "check_template",
    "missing_flags",
    "prim_func",
    "require",
    "run",
]
