"""Who gets the next trials: the tasks where a trial is expected to save the most of the model's time per second spent.

Notation, for task i:  w weight, t latency of the best, b floor of the latency (roofline bound / 0.95; 0 if unknown),
h = t - b headroom, n trials so far, r expected part of the headroom that the next trial closes, c seconds per trial.

    gain of the next trial = w * h * r / c

r is a posterior mean. With C = sum of the parts of the headroom that trials closed and N = number of trials, both
discounted so that recent trials weigh more,

    r = (C + m * r0) / (N + m)

where r0 is the same estimate over all tasks of the template: tasks whose neighbours' defaults turned out to be good are
not tried one by one. A task that stagnates falls as 1/N, one that improves stays up. Within a round the k trials
already given to a task are supposed to bring what is expected: h shrinks by (1 - r)^k and N grows by k.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calumma.tuner.state import TaskState

_PRIOR_RATE = 0.05
_PRIOR_TRIALS = 6.0
_DISCOUNT = 0.97
_EFFICIENCY = 0.3
"""Roofline share of a default about which nothing is known."""


@dataclass
class _Tally:
    closed: float = 0.0
    trials: float = 0.0
    measured: int = 0
    seconds: float = 0.0


class Allocator:
    """Learns from every round how fast each task improves and what its trials cost."""

    def __init__(self, states: Sequence[TaskState], near_bound: float) -> None:
        self._states = states
        self._near_bound = near_bound
        self._tallies: dict[str, _Tally] = {state.hash: _Tally() for state in states}

    def learn(self, state: TaskState, trials: int, before_s: float | None, seconds: float) -> None:
        """Note that `trials` trials took `seconds` (of workers) and changed the best latency from `before_s`."""
        tally = self._tallies[state.hash]
        tally.measured += trials
        tally.seconds += seconds
        tally.closed *= _DISCOUNT**trials
        tally.trials = tally.trials * _DISCOUNT**trials + trials
        if before_s is not None and state.best_s is not None:
            headroom = before_s - self._floor_s(state)
            if headroom > 0:
                tally.closed += min(1.0, max(0.0, before_s - state.best_s) / headroom)

    def latency_s(self, state: TaskState) -> float:
        """Latency of the task: measured, or guessed from its bound and the tasks measured so far."""
        return self._latencies_s()[state.hash]

    def share_out(self, n: int, at_once: int) -> dict[str, int]:
        """Give `n` trials to the tasks not finished, `at_once` at a time: workload hash -> trials, biggest first."""
        open_states = [state for state in self._states if not state.finished]
        shares: dict[str, int] = defaultdict(int)
        if not open_states:
            return shares
        latencies = self._latencies_s()
        rates, costs = self._template_rates(), self._costs()
        weights = np.array([state.task.weight for state in open_states])
        headroom = np.array([max(0.0, latencies[s.hash] - self._floor_s(s)) for s in open_states])
        closed = np.array([self._tallies[s.hash].closed for s in open_states])
        trials = np.array([self._tallies[s.hash].trials for s in open_states])
        prior = np.array([rates[s.space.template] for s in open_states])
        cost = np.array([costs[s.hash] for s in open_states])
        given = np.zeros(len(open_states))
        left = n
        while left > 0:
            rate = np.minimum(1.0, (closed + _PRIOR_TRIALS * prior) / (trials + given + _PRIOR_TRIALS))
            winner = int(np.argmax(weights * headroom * (1 - rate) ** given * rate / cost))
            step = min(at_once, left)
            given[winner] += step
            shares[open_states[winner].hash] += step
            left -= step
        return shares

    def _floor_s(self, state: TaskState) -> float:
        return (state.bound_s or 0.0) / self._near_bound

    def _latencies_s(self) -> dict[str, float]:
        efficiencies = defaultdict(list)
        for state in self._states:
            if state.bound_s and state.best_s:
                efficiencies[state.space.template].append(state.bound_s / state.best_s)
        known = [share for shares in efficiencies.values() for share in shares]
        fallback = float(np.median(known)) if known else _EFFICIENCY
        typical = {template: float(np.median(shares)) for template, shares in efficiencies.items()}
        measured = [state.best_s for state in self._states if state.best_s]
        blind = float(np.median(measured)) if measured else 1.0
        return {
            state.hash: state.best_s
            or (state.bound_s / typical.get(state.space.template, fallback) if state.bound_s else blind)
            for state in self._states
        }

    def _template_rates(self) -> Mapping[str, float]:
        """r0 of every template."""
        closed: dict[str, float] = defaultdict(float)
        trials: dict[str, float] = defaultdict(float)
        for state in self._states:
            closed[state.space.template] += self._tallies[state.hash].closed
            trials[state.space.template] += self._tallies[state.hash].trials
        return {name: (closed[name] + _PRIOR_TRIALS * _PRIOR_RATE) / (trials[name] + _PRIOR_TRIALS) for name in trials}

    def _costs(self) -> Mapping[str, float]:
        """Seconds per trial of every task, drawn to the mean of all; 1 before anything was measured."""
        measured = sum(tally.measured for tally in self._tallies.values())
        seconds = sum(tally.seconds for tally in self._tallies.values())
        mean = seconds / measured if measured and seconds > 0 else 1.0
        return {
            name: (tally.seconds + _PRIOR_TRIALS * mean) / (tally.measured + _PRIOR_TRIALS)
            for name, tally in self._tallies.items()
        }
