"""A part of a design space that is small enough to be measured completely, and still a space to search.

Every knob keeps some of its values, and the part is what is valid of their grid: what is a step of a knob in the whole
space is one, or a longer one, here; walkers, mutations and per-knob modes work as they do there. (Points drawn at
random would leave each of them nearly without neighbours.)

The rule, fixed before any strategy has seen a part: until at most `MOST` configurations are valid, choose a knob with a
probability proportional to the logarithm of its number of values, and drop a quarter of them, at least one, at random.
A drop after which fewer than `LEAST` were valid is taken back; when that happens too often in a row, single values are
dropped. Kept are the values of the default, so that it stays in the part, and the first value of a knob which means
nothing beside some values of others (there it must be the first). In a space of several algorithms a part is of some of
them (`chosen`): a few hundred configurations each of all would leave each of them nearly nothing to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.protocols import Indices, Template
from calumma.core.values import KnobValue
from calumma.space import Knob, KnobSpace

LEAST = 2000
MOST = 2150
LARGEST = 5000
"""Valid configurations of a part: wanted, and at most, where no drop leads to what is wanted."""
_LISTED = 1 << 18
"""Grids of up to so many points are looked at one by one; larger ones are sampled."""
_SAMPLE = 1 << 14
_TRIES = 100
_ROUNDS = 8
"""Samples in a row that find nothing new after which everything is taken to be found."""


class SubSpace(KnobSpace):
    """Some configurations of a space, over some values of each of its knobs: what is not among them is invalid."""

    def __init__(
        self,
        whole: Template,
        values: Mapping[str, Sequence[KnobValue]],
        members: Indices | None = None,
        default: Sequence[int] | None = None,
    ) -> None:
        """Take values and members as `part_of` found them.

        Args:
            whole: the space.
            values: kept values by knob name; a knob that is not named keeps its neutral value alone, so that a
                template may gain knobs without making this another part.
            members: configurations (M, D) as indices of the kept values; None for all that are valid in `whole`.
            default: one of them; None for the default of `whole`, whose values must be kept.

        Raises:
            InputError: the space has no such knob or value, or the members do not fit.
        """
        self.whole = whole
        self.template = whole.template
        self.version = whole.version
        name = f"template {whole.template} version {whole.version}"
        unknown = set(values) - {knob.name for knob in whole.knobs}
        if unknown:
            raise InputError(f"{name} has no knob {sorted(unknown)[0]!r}: record the workload again")
        knobs, tables = [], []
        for knob in whole.knobs:
            kept = tuple(values.get(knob.name, (knob.values[knob.neutral],)))
            missing = [value for value in kept if value not in knob.values]
            if missing or not kept:
                raise InputError(
                    f"knob {knob.name} of {name} cannot be {missing[:1]}, only {knob.values}: record the workload again"
                )
            knobs.append(Knob(knob.name, kept))
            tables.append(np.array([knob.values.index(value) for value in kept], dtype=np.int32))
        super().__init__(tuple(knobs))
        if self.points >= 1 << 62:
            raise InputError(f"{self.points} points are too many for a part of {name}: keep fewer values")
        self._tables = tables
        self._back = [np.full(len(knob.values), -1, dtype=np.int32) for knob in whole.knobs]
        for back, table in zip(self._back, tables, strict=True):
            back[table] = np.arange(len(table))
        self.members: Indices = self._found() if members is None else np.asarray(members, dtype=np.int32)
        if self.members.shape[1:] != self._counts.shape or (self.members >= self._counts).any():
            raise InputError(
                f"members of shape {self.members.shape} do not fit {len(knobs)} knobs of {self._counts.tolist()} "
                "values: record the workload again"
            )
        self._codes = np.sort(self._code(self.members))
        if default is None:
            default = [int(back[index]) for back, index in zip(self._back, whole.default(), strict=True)]
        self._default: Indices = np.array(default, dtype=np.int32)
        if not self.valid(self._default[None])[0]:
            raise InputError(f"the default of {name} is not in this part: record the workload again")

    @property
    def points(self) -> int:
        """Points of the grid of the kept values, valid or not."""
        return math.prod(len(knob.values) for knob in self.knobs)

    @property
    def values(self) -> dict[str, tuple[KnobValue, ...]]:
        """The kept values by knob name."""
        return {knob.name: knob.values for knob in self.knobs}

    def outside(self, indices: Indices) -> Indices:
        """Configurations of the part (N, D) as indices of the whole space."""
        return np.stack([table[indices[:, d]] for d, table in enumerate(self._tables)], axis=1).astype(np.int32)

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        codes = self._code(indices)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.asarray(self._codes[places] == codes)

    def canonical(self, indices: Indices) -> Indices:
        ideal = self.whole.canonical(self.outside(indices))
        inside = np.stack([back[ideal[:, d]] for d, back in enumerate(self._back)], axis=1)
        return np.where(inside >= 0, inside, indices).astype(np.int32)

    def enumerate(self) -> Indices:
        return self.members

    def sample(self, rng: np.random.Generator, n: int) -> Indices:
        return self.members[rng.permutation(len(self.members))[:n]]

    def default(self) -> Indices:
        return self._default.copy()

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self.whole.feature_names

    def features(self, indices: Indices) -> NDArray[np.float32]:
        return self.whole.features(self.outside(indices))

    def decode(self, indices: Indices) -> dict[str, KnobValue]:
        """As the whole space writes the configuration down."""
        return self.whole.decode(self.outside(np.asarray(indices)[None])[0])

    def schedule(self, config: Mapping[str, KnobValue]) -> Any:
        return self.whole.schedule(config)

    def _code(self, indices: Indices) -> NDArray[np.int64]:
        """One number for each configuration (N, D) -> (N,)."""
        return np.ravel_multi_index(tuple(indices.T.astype(np.int64)), tuple(self._counts)).astype(np.int64)

    def _found(self) -> Indices:
        """Every point of the grid that is valid in the whole space, in order."""
        if self.points <= _LISTED:
            points = np.stack(np.unravel_index(np.arange(self.points), tuple(self._counts)), axis=1).astype(np.int32)
            return points[self.whole.valid(self.outside(points))]
        # Most points of a grid this large differ in knobs that mean nothing beside the others: members are few, each
        # met again and again.
        rng = np.random.default_rng(0)
        found = np.empty((0, len(self.knobs)), dtype=np.int32)
        idle = 0
        while idle < _ROUNDS and len(found) <= LARGEST:
            points = self.canonical(rng.integers(0, self._counts, (_SAMPLE, len(self.knobs))).astype(np.int32))
            valid = points[self.whole.valid(self.outside(points))]
            more = np.unique(np.concatenate([found, valid]), axis=0)
            idle = idle + 1 if len(more) == len(found) else 0
            found = more
        return found


def part_of(
    whole: Template,
    rng: np.random.Generator,
    least: int = LEAST,
    most: int = MOST,
    *,
    chosen: Mapping[str, Sequence[KnobValue]] | None = None,
    default: Indices | None = None,
) -> SubSpace:
    """Choose a part of `least` to about `most` valid configurations by the rule above.

    Args:
        whole: the space.
        rng: draws what is dropped.
        least, most: how many configurations are wanted.
        chosen: knobs that have these values only, by name.
        default: of the part, as indices of the whole space; the space's own if not given.

    Raises:
        InputError: the space has fewer than `least` valid configurations, or no part of that size was found.
    """
    chosen = chosen or {}
    default = whole.default() if default is None else default
    kept = [
        np.array([i for i, value in enumerate(knob.values) if value in chosen.get(knob.name, knob.values)])
        for knob in whole.knobs
    ]
    always = [{int(index)} for index in default]
    inert = _inert(whole, rng)
    for d in inert:
        always[d].add(0)
    for indices, keep, knob in zip(kept, always, whole.knobs, strict=True):
        if knob.name in chosen:
            keep.update(indices.tolist())
    count = _count(whole, kept, inert, rng)
    if count < least:
        raise InputError(
            f"the space of template {whole.template} has {count:.0f} valid configurations, a corpus needs {least}: "
            "choose a larger workload"
        )
    kept = _dropped(kept, always, count, lambda fewer: _count(whole, fewer, inert, rng), rng, least, most)
    values = {knob.name: [knob.values[i] for i in indices] for knob, indices in zip(whole.knobs, kept, strict=True)}
    start = [int(np.flatnonzero(indices == index)[0]) for indices, index in zip(kept, default, strict=True)]
    part = SubSpace(whole, values, default=start)
    if not least <= len(part.members) <= max(most, LARGEST):
        raise InputError(
            f"no part of template {whole.template}'s space has {least} to {LARGEST} configurations, the last one had "
            f"{len(part.members)}: choose another workload"
        )
    return part


def _dropped(
    kept: list[NDArray[np.int64]],
    always: Sequence[set[int]],
    count: float,
    counted: Callable[[list[NDArray[np.int64]]], float],
    rng: np.random.Generator,
    least: int,
    most: int,
) -> list[NDArray[np.int64]]:
    """Drop values at random by the rule above, until about `most` configurations are left or no drop leads there.

    Args:
        kept: positions of the values to begin with, by knob.
        always: positions of those that stay, by knob.
        count: valid configurations of the grid of `kept`.
        counted: kept values -> valid configurations of their grid.
        rng, least, most: as for `part_of`.
    """
    failures, single = 0, False
    while count > most and failures < _TRIES:
        droppable = [sorted(set(indices.tolist()) - keep) for indices, keep in zip(kept, always, strict=True)]
        weights = np.array([math.log(len(k)) if free else 0.0 for k, free in zip(kept, droppable, strict=True)])
        if not weights.any():
            break
        d = int(rng.choice(len(kept), p=weights / weights.sum()))
        n = 1 if single else max(1, len(kept[d]) // 4)
        fewer = kept.copy()
        fewer[d] = np.setdiff1d(kept[d], rng.permutation(droppable[d])[:n])
        left = counted(fewer)
        if left >= least:
            kept, count, failures = fewer, left, 0
        else:
            failures += 1
            if failures == _TRIES // 2:
                single = True
    return kept


def _inert(whole: Template, rng: np.random.Generator) -> list[int]:
    """Positions of the knobs that mean nothing beside some values of others."""
    counts = [len(knob.values) for knob in whole.knobs]
    draws = rng.integers(0, counts, size=(_SAMPLE, len(counts))).astype(np.int32)
    return [int(d) for d in np.flatnonzero((whole.canonical(draws) != draws).any(axis=0))]


def _count(whole: Template, kept: Sequence[NDArray[np.int64]], inert: Sequence[int], rng: np.random.Generator) -> float:
    """Valid configurations of the grid of the kept values (index 0 among them wherever a knob may be inert).

    In a large grid an estimate: of N points drawn uniformly from G, a point whose canonical form is valid stands for
    1 / m configurations, m being the number of points of that form, the product of the inert knobs' numbers of values:
    the count is G times the mean of 1 / m over the valid and 0 over the others.
    """
    sizes = [len(indices) for indices in kept]
    total = math.prod(sizes)
    if total <= _LISTED:
        numbers = np.unravel_index(np.arange(total), tuple(sizes))
        points = np.stack([indices[n] for indices, n in zip(kept, numbers, strict=True)], axis=1).astype(np.int32)
        return float(whole.valid(points).sum())
    points = np.stack([indices[rng.integers(0, len(indices), _SAMPLE)] for indices in kept], axis=1).astype(np.int32)
    points = whole.canonical(points)
    stands_for = np.ones(len(points))
    for d in inert:
        if sizes[d] > 1:
            moved = points.copy()
            moved[:, d] = kept[d][-1]
            stands_for /= np.where(whole.canonical(moved)[:, d] != kept[d][-1], sizes[d], 1)
    return float(total * np.mean(np.where(whole.valid(points), stands_for, 0.0)))
