"""Adaptive sampling and sample synthesis: always valid, fresh, distinct, and as many as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calumma.core.protocols import Indices
from calumma.search import Explored, History
from calumma.search.adaptive import AdaptiveSampler, AdaptiveSettings
from calumma.search.samplers import GreedyPlanSampler
from calumma.search.strategy import one_knob_away
from calumma.search.synthesis import synthesise
from calumma.testing import ToySpace

SPACES = (ToySpace(width=2), ToySpace(width=28), ToySpace(width=56, extra=8))


def predicted(indices: Indices) -> NDArray[np.float64]:
    return -((indices - 2.0) ** 2).sum(axis=1)


def setting(which: int, seed: int, known: float) -> tuple[ToySpace, History, np.random.Generator]:
    """A space part of which was measured before, up to all but a few."""
    space, rng = SPACES[which], np.random.default_rng(seed)
    history = History(space)
    sample = space.sample(rng, 600)
    told = sample[: int(known * len(sample))]
    history.tell(told, rng.random(len(told)))
    return space, history, rng


def left(space: ToySpace, history: History) -> int:
    """How many configurations nobody has asked or told, 600 standing for more."""
    return min(600, len(history.fresh(space.sample(np.random.default_rng(0), 600 + len(history.indices)))))


def check(chosen: Indices, space: ToySpace, history: History) -> None:
    assert chosen.dtype == np.int32 and chosen.shape[1] == len(space.knobs)
    assert space.valid(chosen).all()
    assert len(history.fresh(chosen)) == len(chosen), "distinct, and neither asked nor told before"


@settings(max_examples=60, deadline=None)
@given(
    which=st.integers(0, 2),
    seed=st.integers(0, 10_000),
    known=st.floats(0, 1),
    candidates=st.integers(1, 200),
    n=st.integers(1, 100),
    representative=st.sampled_from(["best", "centroid", "top"]),
)
def test_adaptive_sampling_keeps_its_promise(which, seed, known, candidates, n, representative) -> None:
    space, history, rng = setting(which, seed, known)
    found = history.draw(rng, candidates)
    if len(found) == 0:
        return
    sampler = AdaptiveSampler(rng, AdaptiveSettings(representative=representative))
    chosen = sampler.choose(Explored(found, predicted(found)), predicted, history, n)
    check(chosen, space, history)
    assert len(chosen) >= min(n, left(space, history))
    assert len(chosen) <= max(n, 64)


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 2), seed=st.integers(0, 10_000), known=st.floats(0, 1), n=st.integers(1, 100))
def test_a_greedy_plan_keeps_its_promise(which, seed, known, n) -> None:
    space, history, rng = setting(which, seed, known)
    found = history.draw(rng, 30)
    if len(found) == 0:
        return
    chosen = GreedyPlanSampler(rng, plan=40).choose(Explored(found, predicted(found)), predicted, history, n)
    check(chosen, space, history)
    assert len(chosen) == min(max(n, 40), left(space, history))


@settings(max_examples=60, deadline=None)
@given(
    which=st.integers(0, 2),
    seed=st.integers(0, 10_000),
    known=st.floats(0, 1),
    members=st.integers(1, 60),
    n=st.integers(0, 40),
)
def test_what_is_synthesised_is_valid_and_fresh(which, seed, known, members, n) -> None:
    space, history, rng = setting(which, seed, known)
    group = space.sample(rng, members)
    made = synthesise(group, history, rng, n)
    check(made, space, history)
    assert len(made) <= n
    for d in range(len(space.knobs)):
        assert set(made[:, d]) <= set(group[:, d]), "every value is one that a member has"


def test_the_mode_comes_first_where_it_can() -> None:
    space = ToySpace()
    rows = [("xck", 4), ("xck", 8), ("kxc", 8)]
    group = np.stack(
        [
            space.encode({"tile_x": 2, "tile_c": 2, "split_k": split, "order": order, "unroll": False})
            for order, split in rows
        ]
    )
    mode = space.encode({"tile_x": 2, "tile_c": 2, "split_k": 8, "order": "xck", "unroll": False})
    history = History(space)
    np.testing.assert_array_equal(synthesise(group, history, np.random.default_rng(0), 1), [mode])
    history.tell(mode[None, :], np.ones(1))
    made = synthesise(group, history, np.random.default_rng(0), 8)
    assert len(made) == 3 and mode.tobytes() not in {row.tobytes() for row in made}


@pytest.mark.parametrize("groups, expected", [(8, 16), (32, 16)])
def test_k_grows_to_the_knee(groups: int, expected: int) -> None:
    """Tight groups, far apart. The loss falls as groups - k, then stops: the first k that gains too little is taken.

    8 groups: 16 gains little over 8. 32 groups: 16 gains a third, less than asked.
    """
    space = ToySpace(width=720, extra=40)
    rng = np.random.default_rng(0)
    centres = space.sample(rng, groups)
    centres[:, 0] = centres[:, 3] = 0
    centres[:, 5:] = rng.integers(0, 2, size=(groups, 40))
    rows = np.repeat(centres, 16, axis=0)
    rows[:, 1] = np.tile(np.arange(16) // 4, groups)
    rows[:, 3] = np.tile(np.arange(16) % 4, groups)
    sampler = AdaptiveSampler(rng, AdaptiveSettings(pool=1000, representative="top"))
    assert len(sampler.choose(Explored(rows, np.zeros(len(rows))), predicted, History(space), 1)) == expected


def test_a_k_that_gains_enough_is_not_the_last() -> None:
    """16 groups: 16 clusters lose nearly all that 8 had left, so k goes on at least to 24."""
    space = ToySpace(width=720, extra=40)
    rng = np.random.default_rng(0)
    rows = np.repeat(space.sample(rng, 16), 4, axis=0)
    rows[:, 5:] = np.repeat(rng.integers(0, 2, size=(16, 40)), 4, axis=0)
    rows[:, 3] = np.tile(np.arange(4), 16)
    sampler = AdaptiveSampler(rng, AdaptiveSettings(pool=1000, representative="top"))
    assert len(sampler.choose(Explored(rows, np.zeros(len(rows))), predicted, History(space), 1)) >= 24


def test_each_cluster_gets_one_and_its_best() -> None:
    """Far apart clusters, nothing better to be made of them: the best predicted member of each is chosen."""
    space = ToySpace(width=720, extra=20)
    rng = np.random.default_rng(1)
    centres = space.sample(rng, 16)
    rows = np.unique(np.repeat(centres, 4, axis=0), axis=0)
    scores = rng.random(len(rows)) + 1

    def worthless(indices: Indices) -> NDArray[np.float64]:
        return np.zeros(len(indices))

    chosen = AdaptiveSampler(rng).choose(Explored(rows, scores), worthless, History(space), 16)
    assert {row.tobytes() for row in chosen} == {row.tobytes() for row in rows}
    np.testing.assert_array_equal(chosen[0], rows[scores.argmax()])


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 2), seed=st.integers(0, 10_000), known=st.floats(0, 1), n=st.integers(1, 40))
def test_half_a_plan_around_the_best_keeps_the_promise(which, seed, known, n) -> None:
    space, history, rng = setting(which, seed, known)
    found = history.draw(rng, 100)
    if len(found) == 0:
        return
    sampler = AdaptiveSampler(rng, AdaptiveSettings(pool=32, most=0, near=0.5))
    chosen = sampler.choose(Explored(found, predicted(found)), predicted, history, n)
    check(chosen, space, history)
    assert len(chosen) == min(n, left(space, history))
    near = {row.tobytes() for best in history.best(2) for row in history.fresh(one_knob_away(space, best))}
    inside = sum(row.tobytes() in near for row in chosen)
    assert inside >= min(n // 2, len(near))


def test_one_knob_away_is_every_other_value_of_every_knob() -> None:
    space = ToySpace(width=28)
    start = space.sample(np.random.default_rng(0), 1)[0]
    rows = one_knob_away(space, start)
    everything = space.enumerate()
    expected = everything[(everything != start).sum(axis=1) == 1]
    assert {row.tobytes() for row in rows} == {row.tobytes() for row in expected.astype(np.int32)}
    assert len(rows) == len(expected) > 0
