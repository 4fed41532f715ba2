"""The best configurations of a design space by a score, whatever its size, nothing measured.

A small space is scored whole. Of a large one a sample is scored, and the best of it walk: from each of the B best
configurations so far all that differ in one knob are scored, until a round brings nothing new among the B best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.core.keys import Key, keys_of
from calumma.core.protocols import Indices, Template

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class RankingSettings:
    """How far the search goes: a few thousand to some ten thousand configurations are scored."""

    exhaustive: int = 4096
    """A space of at most this many index vectors is scored whole."""
    sample: int = 1024
    beam: int = 16
    """B."""
    rounds: int = 10


def best(
    space: Template,
    score: Callable[[Indices], Scores],
    rng: np.random.Generator,
    settings: RankingSettings | None = None,
) -> tuple[Indices, Scores]:
    """Distinct valid configurations (M, D), best first, and their scores (M,); the default is always among them."""
    settings = settings or RankingSettings()
    whole = space.size <= settings.exhaustive
    start = space.grid() if whole else space.sample(rng, settings.sample)
    seen: set[Key] = set()
    found = _fresh(np.concatenate([space.default()[None, :], start]), seen)
    scores = score(found)
    for _ in range(0 if whole else settings.rounds):
        beam = found[np.argsort(-scores, kind="stable")[: settings.beam]]
        around = space.canonical(_one_step(space, beam))
        fresh = _fresh(around[space.valid(around)], seen)
        if not len(fresh):
            break
        worst = np.sort(scores)[-settings.beam :][0]
        more = score(fresh)
        found, scores = np.concatenate([found, fresh]), np.concatenate([scores, more])
        if more.max() <= worst:
            break
    order = np.argsort(-scores, kind="stable")
    return found[order], scores[order]


def _one_step(space: Template, places: Indices) -> Indices:
    """Everything (M, D) that differs from one of `places` (B, D) in one knob, valid or not."""
    moved = []
    for d, knob in enumerate(space.knobs):
        copies = np.repeat(places, len(knob.values), axis=0)
        copies[:, d] = np.tile(np.arange(len(knob.values), dtype=np.int32), len(places))
        moved.append(copies)
    return np.concatenate(moved)


def _fresh(indices: Indices, seen: set[Key]) -> Indices:
    """The rows that come for the first time; `seen` gets them."""
    kept = []
    for i, key in enumerate(keys_of(indices)):
        if key not in seen:
            seen.add(key)
            kept.append(i)
    return indices[kept]
