"""What every search strategy promises (`calumma.core.protocols.Strategy`), whatever its parts."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import Indices, Strategy
from calumma.core.rng import generator
from calumma.cost_model import ConstantModel
from calumma.search import SearchStrategy, make_strategy, strategy_names
from tests.conformance.test_design_space_contract import ToySpace

SMALL, LARGE = ToySpace(width=2), ToySpace(width=56, extra=12)


@pytest.fixture(params=strategy_names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def make(name: str, space: ToySpace, seed: int = 0, **more) -> SearchStrategy:
    return make_strategy(name, space, generator(seed, "test"), **more)


def throughput(space: ToySpace, indices: Indices) -> NDArray[np.float64]:
    """Best with 24 accumulators, a split of 8 and one of the orders; every ninth configuration fails."""
    columns = space.columns(indices)
    accumulators = columns["tile_x"] * columns["tile_c"]
    score = np.exp(-np.abs(np.log2(accumulators / 24.0))) * np.exp(-0.3 * np.abs(np.log2(columns["split_k"] / 8)))
    score = score * np.where(columns["order"] == "kxc", 1.0, 0.6)
    return np.where(indices.sum(axis=1) % 9 == 8, 0.0, score)


def run(strategy: Strategy, space: ToySpace, rounds: int, n: int) -> Indices:
    """Ask and tell for some rounds; returns everything asked."""
    asked = []
    for _ in range(rounds):
        batch = strategy.ask(n)
        strategy.tell(batch, throughput(space, batch))
        asked.append(batch)
    return np.concatenate(asked)


def test_it_is_called_what_it_was_asked_for_as(name: str) -> None:
    assert make(name, SMALL).name == name


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_a_batch_is_valid_distinct_and_full(name: str, n: int) -> None:
    strategy = make(name, LARGE)
    for _ in range(6):
        batch = strategy.ask(n)
        assert batch.shape == (n, len(LARGE.knobs)) and batch.dtype == np.int32
        assert LARGE.valid(batch).all()
        strategy.tell(batch, throughput(LARGE, batch))


def test_the_default_comes_first(name: str) -> None:
    np.testing.assert_array_equal(make(name, LARGE).ask(4)[0], LARGE.default())


def test_nothing_is_asked_twice_whether_told_or_not(name: str) -> None:
    strategy = make(name, SMALL)
    seen: set[bytes] = set()
    for number in range(40):
        batch = strategy.ask(3)
        assert not seen & {row.tobytes() for row in batch}
        seen |= {row.tobytes() for row in batch}
        if number % 3:  # one batch in three never comes back
            strategy.tell(batch, throughput(SMALL, batch))


def test_nothing_told_beforehand_is_asked(name: str) -> None:
    known = SMALL.sample(np.random.default_rng(1), 100)
    strategy = make(name, SMALL, warm=(known, np.where(np.arange(100) % 2, 0.0, throughput(SMALL, known))))
    asked = run(strategy, SMALL, rounds=16, n=24)
    assert not {row.tobytes() for row in known} & {row.tobytes() for row in asked}


def test_a_small_space_is_used_up_to_the_last_configuration(name: str) -> None:
    everything = SMALL.enumerate()
    strategy = make(name, SMALL)
    asked = run(strategy, SMALL, rounds=len(everything) // 7 + 1, n=7)
    assert len(asked) == len(np.unique(asked, axis=0)) == len(everything)
    assert strategy.ask(7).shape == (0, len(SMALL.knobs))


def test_a_space_of_one_configuration(name: str) -> None:
    class One(ToySpace):
        def _valid(self, indices: Indices) -> NDArray[np.bool_]:
            return (indices == self.default()).all(axis=1)

    strategy = make(name, One())
    assert len(strategy.ask(8)) == 1
    assert len(strategy.ask(8)) == 0


def test_it_goes_on_when_everything_fails(name: str) -> None:
    strategy = make(name, LARGE)
    for _ in range(5):
        batch = strategy.ask(8)
        assert len(batch) == 8
        strategy.tell(batch, np.zeros(len(batch)))


@pytest.mark.parametrize("space", [SMALL, LARGE], ids=["small", "large"])
def test_same_seed_same_trajectory(name: str, space: ToySpace) -> None:
    first, again, other = (run(make(name, space, seed), space, rounds=5, n=6) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


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


def test_more_than_a_plan_can_be_asked_for(name: str) -> None:
    strategy = make(name, LARGE)
    for _ in range(2):
        batch = strategy.ask(150)
        assert len(batch) == len(np.unique(batch, axis=0)) == 150
        strategy.tell(batch, throughput(LARGE, batch))


def test_one_at_a_time(name: str) -> None:
    """A plan is not made anew for every ask: a session asks for one or two candidates of a task in a round."""
    strategy = make(name, SMALL)
    run(strategy, SMALL, rounds=40, n=1)
    assert strategy.stats.plans <= 40
    if name in ("autotvm", "genetic", "rl", "rl+as", "sa+as", "sa+topk"):
        assert strategy.stats.plans <= 5


def test_steps_and_seconds_are_counted(name: str) -> None:
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
    assert strategy.stats.total_s == sum(strategy.stats.seconds.values()) > 0
    assert set(strategy.stats.seconds) <= {"fit", "score", "policy", "sampling", "explore"}
