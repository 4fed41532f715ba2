"""Every strategy of the package keeps what strategies promise; and what only some of them promise."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.cost_model import ConstantModel
from calumma.search import strategy_names
from calumma.testing import ToySpace
from calumma.testing.strategy_suite import LARGE, SMALL, StrategyConformance, make, run, throughput


class TestPresets(StrategyConformance):
    @pytest.fixture(params=strategy_names())
    def strategy(self, request: pytest.FixtureRequest) -> str:
        return request.param


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"'anealing'.*random"):
        make("anealing", SMALL)


@pytest.mark.parametrize("name", ["sa+as", "sa+topk", "chameleon"])
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "calumma.search.adaptive", raising=False)
    monkeypatch.delitem(sys.modules, "calumma.search.kmeans", raising=False)
    for module in [module for module in sys.modules if module.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=rf"{re.escape(repr(name))} clusters .*pip install 'calumma\[search\]'"):
        make(name, SMALL)


@pytest.mark.parametrize("guided", ["evolutionary", "sa+as", "rl+as", "chameleon"])
def test_guidance_beats_chance(guided: str) -> None:
    """On a smooth space a guided strategy finds a better configuration than random draws, on average."""
    space = ToySpace(width=720, extra=2)

    def best(name: str, seed: int) -> float:
        return float(throughput(space, run(make(name, space, seed), space, rounds=8, n=8)).max())

    found, drawn = ([best(name, seed) for seed in range(4)] for name in (guided, "random"))
    assert np.mean(found) > np.mean(drawn)


@pytest.mark.parametrize("name", ["autotvm", "genetic", "rl", "rl+as", "sa+as", "sa+topk"])
def test_a_plan_is_not_made_anew_for_every_ask(name: str) -> None:
    strategy = make(name, SMALL)
    run(strategy, SMALL, rounds=40, n=1)
    assert strategy.stats.plans <= 5


@pytest.mark.parametrize("name", strategy_names())
def test_steps_are_counted(name: str) -> None:
    scored = 0

    class Counting(ConstantModel):
        def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
            nonlocal scored
            scored += len(features)
            return -features.sum(axis=1, dtype=np.float64)

    strategy = make(name, LARGE, model=Counting())
    run(strategy, LARGE, rounds=4, n=8)
    own_model = name.startswith("autotvm")
    # Once a round chameleon's committee asks for the scale of what it was given; these are no candidates.
    most = 4 * 512 if name == "chameleon" else 0
    assert own_model or 0 <= scored - strategy.stats.steps <= most
