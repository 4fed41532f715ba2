"""Which knobs separate fast from slow, as far as one session's records can tell.

Notation, for one template and one knob:

    y_i  logarithm of the latency of configuration i, less the mean of its task: above 0 is slower than usual
    v_i  value of the knob in configuration i
    R    share of the variance of y that the means by v explain (the squared correlation ratio, in [0, 1])

Many values and few configurations give a large R by chance alone. So the y are shuffled within their tasks: a knob is
reported only if its R is above that of 99 % of the shuffles, and with the mean R of the shuffles taken out,

    effect = (R - R0) / (1 - R0)

A search does not draw evenly: it returns to what looked good, and knobs move together. An effect is a hint about where
to look, not a proof of a cause.

Source: permutation tests of exchangeable blocks, e.g. P. Good, "Permutation, Parametric, and Bootstrap Tests of
Hypotheses", 2005, chapter 6.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from calumma.core.values import Candidate, KnobValue, MeasureRecord, Status

MIN_CONFIGS = 16
"""A knob is examined with at least so many configurations."""
_MIN_PER_VALUE = 3
_SHUFFLES = 300
_CHANCE = 0.01


@dataclass(frozen=True)
class ValueEffect:
    """One value of a knob."""

    value: KnobValue
    configs: int
    slowdown: float
    """Typical latency over that of the knob's best value, same task for same task: 1 for the best."""


@dataclass(frozen=True)
class KnobEffect:
    """A knob whose values differ by more than chance."""

    template: str
    knob: str
    effect: float
    """Part of the variation of log latency within tasks that the knob explains, beyond chance."""
    configs: int
    tasks: int
    values: tuple[ValueEffect, ...]
    """Fastest first."""


def knob_effects(records: Iterable[MeasureRecord]) -> tuple[tuple[KnobEffect, ...], int]:
    """Examine the knobs of every template: those with an effect, strongest first, and how many were examined."""
    latencies: defaultdict[str, list[float]] = defaultdict(list)
    candidates: dict[str, Candidate] = {}
    wrong: set[str] = set()
    for record in records:
        key = record.candidate.key
        if record.result.status is Status.OK:
            latencies[key].append(record.result.latency_s)
            candidates[key] = record.candidate
        elif record.result.status is Status.WRONG_OUTPUT:
            wrong.add(key)
    templates: defaultdict[str, list[tuple[Candidate, float]]] = defaultdict(list)
    for key in sorted(latencies.keys() - wrong):
        candidate = candidates[key]
        templates[candidate.template].append((candidate, float(np.log(median(latencies[key])))))
    rng = np.random.default_rng(0)
    effects: list[KnobEffect] = []
    examined = 0
    for template, measured in sorted(templates.items()):
        for knob in sorted({name for candidate, _ in measured for name in candidate.config}):
            rows = [(c.workload.hash, c.config[knob], y) for c, y in measured if knob in c.config]
            found = _examine(template, knob, rows, rng)
            examined += found is not None
            if found is not None and found.effect > 0:
                effects.append(found)
    return tuple(sorted(effects, key=lambda effect: -effect.effect)), examined


def _examine(
    template: str, knob: str, rows: list[tuple[str, KnobValue, float]], rng: np.random.Generator
) -> KnobEffect | None:
    """The effect of one knob, 0 where chance explains it; None where the records are too few to tell."""
    configs = Counter(value for _, value, _ in rows)
    rows = [row for row in rows if configs[row[1]] >= _MIN_PER_VALUE]
    # A task with one value of the knob says nothing about the knob.
    seen: defaultdict[str, set[KnobValue]] = defaultdict(set)
    for name, value, _ in rows:
        seen[name].add(value)
    rows = [row for row in rows if len(seen[row[0]]) > 1]
    if len(rows) < MIN_CONFIGS:
        return None
    names, task = np.unique([row[0] for row in rows], return_inverse=True)
    levels = sorted({row[1] for row in rows}, key=lambda value: (isinstance(value, str), value))
    level = np.array([levels.index(row[1]) for row in rows])
    log_s = np.array([row[2] for row in rows])
    y = log_s - (np.bincount(task, log_s) / np.bincount(task))[task]  # (n_configs,)
    if not (y**2).sum() > 0:
        return None
    share = _explained(y[None, :], level)[0]
    by_chance = _explained(_shuffled(y, task, rng), level)
    expected = float(by_chance.mean())
    luck = (np.count_nonzero(by_chance >= share) + 1) / (_SHUFFLES + 1)
    effect = (share - expected) / (1 - expected) if luck <= _CHANCE and expected < 1 else 0.0
    typical = np.array([np.median(y[level == i]) for i in range(len(levels))])
    slowdown = np.exp(typical - typical.min())
    order = np.argsort(slowdown, kind="stable")
    found = tuple(ValueEffect(levels[i], int(np.count_nonzero(level == i)), float(slowdown[i])) for i in order)
    return KnobEffect(template, knob, float(effect), len(rows), len(names), found)


def _explained(y: NDArray[np.float64], level: NDArray[np.intp]) -> NDArray[np.float64]:
    """Share of the variance of each row of y (n_rows, n_configs) that the means by level (n_configs,) explain."""
    member = (level[:, None] == np.arange(level.max() + 1)).astype(np.float64)  # (n_configs, n_levels)
    sums = y @ member
    between = (sums**2 / member.sum(axis=0)).sum(axis=1)
    total: NDArray[np.float64] = (y**2).sum(axis=1)
    return np.asarray(between / total)


def _shuffled(y: NDArray[np.float64], task: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
    """`_SHUFFLES` copies of y (n_configs,), each with the values of every task in another order."""
    own = np.argsort(task, kind="stable")  # positions, task by task
    draws = rng.random((_SHUFFLES, len(y)))
    other = np.lexsort((draws, np.broadcast_to(task, draws.shape)), axis=1)  # likewise, in random order within a task
    shuffled = np.empty_like(draws)
    shuffled[:, own] = y[other]
    return shuffled
