"""What every search strategy promises (`calumma.core.protocols.Strategy`), whatever its parts.

A test supplies one fixture::

    class TestMine(StrategyConformance):
        @pytest.fixture
        def strategy(self):
            return "mine"  # a name, or a function of `StrategyParts`
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.core.protocols import Indices, Strategy
from calumma.core.rng import generator
from calumma.search import SearchStrategy, StrategyChoice, make_strategy, strategy_name
from calumma.testing.toy_space import ToySpace

SMALL, LARGE = ToySpace(width=2), ToySpace(width=56, extra=12)


def make(strategy: StrategyChoice, space: ToySpace, seed: int = 0, **more: Any) -> SearchStrategy:
    """A new strategy for a toy; `more` as for `make_strategy`."""
    return make_strategy(strategy, space, generator(seed, "test"), **more)


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


class StrategyConformance:
    """The suite; a subclass supplies the fixture `strategy`."""

    @pytest.fixture
    def strategy(self) -> StrategyChoice:
        """What is tested: a name, or a function that makes one."""
        raise NotImplementedError("a conformance test supplies the fixture `strategy`")

    def test_it_is_called_what_it_was_asked_for_as(self, strategy: StrategyChoice) -> None:
        if isinstance(strategy, str):
            assert make(strategy, SMALL).name == strategy_name(strategy)
        assert make(strategy, SMALL).name

    @pytest.mark.parametrize("n", [0, 1, 2, 7])
    def test_a_batch_is_valid_distinct_and_full(self, strategy: StrategyChoice, n: int) -> None:
        searching = make(strategy, LARGE)
        for _ in range(6):
            batch = searching.ask(n)
            assert batch.shape == (n, len(LARGE.knobs)) and batch.dtype == np.int32
            assert LARGE.valid(batch).all()
            searching.tell(batch, throughput(LARGE, batch))

    def test_the_default_comes_first(self, strategy: StrategyChoice) -> None:
        np.testing.assert_array_equal(make(strategy, LARGE).ask(4)[0], LARGE.default())

    def test_nothing_is_asked_twice_whether_told_or_not(self, strategy: StrategyChoice) -> None:
        searching = make(strategy, SMALL)
        seen: set[bytes] = set()
        for number in range(40):
            batch = searching.ask(3)
            assert not seen & {row.tobytes() for row in batch}
            seen |= {row.tobytes() for row in batch}
            if number % 3:  # one batch in three never comes back
                searching.tell(batch, throughput(SMALL, batch))

    def test_nothing_told_beforehand_is_asked(self, strategy: StrategyChoice) -> None:
        known = SMALL.sample(np.random.default_rng(1), 100)
        searching = make(strategy, SMALL, warm=(known, np.where(np.arange(100) % 2, 0.0, throughput(SMALL, known))))
        asked = run(searching, SMALL, rounds=16, n=24)
        assert not {row.tobytes() for row in known} & {row.tobytes() for row in asked}

    def test_a_small_space_is_used_up_to_the_last_configuration(self, strategy: StrategyChoice) -> None:
        everything = SMALL.enumerate()
        searching = make(strategy, SMALL)
        asked = run(searching, SMALL, rounds=len(everything) // 7 + 1, n=7)
        assert len(asked) == len(np.unique(asked, axis=0)) == len(everything)
        assert searching.ask(7).shape == (0, len(SMALL.knobs))

    def test_a_space_of_one_configuration(self, strategy: StrategyChoice) -> None:
        class One(ToySpace):
            def _valid(self, indices: Indices) -> NDArray[np.bool_]:
                return (indices == self.default()).all(axis=1)

        searching = make(strategy, One())
        assert len(searching.ask(8)) == 1
        assert len(searching.ask(8)) == 0

    def test_it_goes_on_when_everything_fails(self, strategy: StrategyChoice) -> None:
        searching = make(strategy, LARGE)
        for _ in range(5):
            batch = searching.ask(8)
            assert len(batch) == 8
            searching.tell(batch, np.zeros(len(batch)))

    @pytest.mark.parametrize("space", [SMALL, LARGE], ids=["small", "large"])
    def test_same_seed_same_trajectory(self, strategy: StrategyChoice, space: ToySpace) -> None:
        first, again, other = (run(make(strategy, space, seed), space, rounds=5, n=6) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_more_than_a_plan_can_be_asked_for(self, strategy: StrategyChoice) -> None:
        searching = make(strategy, LARGE)
        for _ in range(2):
            batch = searching.ask(150)
            assert len(batch) == len(np.unique(batch, axis=0)) == 150
            searching.tell(batch, throughput(LARGE, batch))

    def test_one_at_a_time(self, strategy: StrategyChoice) -> None:
        """A session asks for one or two candidates of a task in a round: no more plans than asks."""
        searching = make(strategy, SMALL)
        run(searching, SMALL, rounds=40, n=1)
        assert searching.stats.plans <= 40

    def test_seconds_are_counted(self, strategy: StrategyChoice) -> None:
        stats = make(strategy, LARGE).stats
        searching = make(strategy, LARGE)
        run(searching, LARGE, rounds=4, n=8)
        assert stats.total_s == 0
        assert searching.stats.total_s == sum(searching.stats.seconds.values()) > 0
        assert set(searching.stats.seconds) <= {"fit", "score", "policy", "sampling", "explore"}
