"""Winners, their closest rivals and defaults, measured again in alternation: a schedule stays only where it wins.

Machines drift within a session, and of many measurements the luckiest is the best. What is measured in turns drifts
alike, so that the ratios of a pass compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from calumma.core.keys import Key
from calumma.tuner import events
from calumma.tuner.settings import TuningSettings
from calumma.tuner.spending import Spending
from calumma.tuner.state import TaskState
from calumma.tuner.trial_runner import REMEASURED, Trial, TrialRunner
from calumma.tuner.verify import Verifier


@dataclass(frozen=True)
class FinalDecision:
    """The configuration to use for a task."""

    key: Key
    checked: bool
    """Whether the final check decided; otherwise the trials themselves did."""
    latency_s: float | None
    """None if it was never measured."""
    default_latency_s: float | None
    """None if it was never measured or failed."""


@dataclass
class _Alternation:
    """The final check of one task: latency of every rival by pass."""

    state: TaskState
    rivals: list[Key]
    latencies: dict[Key, list[float]]


class FinalCheck:
    """Measures the rivals of every task, as far as the budget goes, and decides."""

    def __init__(
        self,
        states: Sequence[TaskState],
        settings: TuningSettings,
        spending: Spending,
        trials: TrialRunner,
        verifier: Verifier,
        *,
        emit: Callable[[events.Event], None],
        stake: Callable[[TaskState], float],
    ) -> None:
        """Prepare; nothing is measured before `run`.

        Args:
            states: all tasks.
            settings: how many rivals and passes there are, and what counts as a gain.
            spending: the budget.
            trials: measures.
            verifier: verifies a winner that was never the best before.
            emit: called with every event.
            stake: seconds of the model's time that a task takes.
        """
        self._states = states
        self._settings = settings
        self._spending = spending
        self._trials = trials
        self._verifier = verifier
        self._emit = emit
        self._stake = stake
        self._alternations: dict[str, _Alternation] = {}

    @property
    def rivals(self) -> int:
        """How many configurations one pass would measure now."""
        return sum(len(self._rivals(state)) for state in self._states)

    def run(self) -> None:
        """Measure winners, rivals and defaults in alternation, pass by pass, the most doubtful and biggest first."""
        alternations = []
        for state in sorted(self._states, key=self._doubt, reverse=True):
            rivals = self._rivals(state)
            if rivals:
                alternations.append(_Alternation(state, rivals, {rival: [] for rival in rivals}))
        if not alternations:
            return
        self._emit(events.FinalCheckStarted(len(alternations), self._spending.progress(self._states)))
        self._alternations = {alternation.state.hash: alternation for alternation in alternations}
        for number in range(self._settings.final_passes):
            undecided = [a for a in alternations if number < 2 or self._undecided(a)]
            for group in _groups(undecided, self._settings.round_size):
                trials = [Trial(a.state, rival, REMEASURED) for a in group for rival in a.rivals]
                if not self._spending.affordable(len(trials)):
                    return
                self._measure(number, trials)

    def decide(self, state: TaskState) -> FinalDecision:
        """The configuration to use for a task; verifies it where that is still to be done."""
        key, checked = self._winner(state)
        final = self._alternations[state.hash].latencies if checked else {}
        return FinalDecision(
            key,
            checked,
            median(final[key]) if key in final else state.latencies.get(key),
            median(final[state.default]) if state.default in final else state.default_s,
        )

    def _measure(self, number: int, trials: Sequence[Trial]) -> None:
        self._spending.begin_round()
        results = self._trials.measure(trials)
        records = self._trials.append(trials, results)
        for trial, result in zip(trials, results, strict=True):
            self._alternations[trial.state.hash].latencies[trial.key].append(result.latency_s)
        self._spending.end_round(len(trials))
        self._emit(events.WinnersMeasured(number, records, self._spending.progress(self._states)))

    def _rivals(self, state: TaskState) -> list[Key]:
        """The default and the best tuned configurations; none where the default is the best."""
        if state.best is None or state.best == state.default:
            return []
        limit = state.latencies[state.best] * (1 + self._settings.rival_margin)
        close = [k for k in state.ranked() if k not in (state.best, state.default) and state.latencies[k] <= limit]
        default = [state.default] if state.default in state.latencies else []
        rivals = [state.best, *close[: self._settings.rivals - 1], *default]
        return rivals if len(rivals) > 1 else []

    def _undecided(self, alternation: _Alternation) -> bool:
        """Whether the two best rivals, or the best and the default, are closer than the noise."""
        medians = sorted(median(values) for values in alternation.latencies.values())
        return medians[1] < medians[0] * (1 + 2 * self._settings.min_gain)

    def _doubt(self, state: TaskState) -> tuple[bool, float]:
        clear = state.default_s is not None and state.best_s is not None and state.best_s < state.default_s / 1.5
        return not clear, self._stake(state)

    def _winner(self, state: TaskState) -> tuple[Key, bool]:
        """Return the configuration to use, and whether the final check decided."""
        alternation = self._alternations.get(state.hash)
        passes = min((len(values) for values in alternation.latencies.values()), default=0) if alternation else 0
        if alternation and passes:
            values = {key: latencies[:passes] for key, latencies in alternation.latencies.items()}
            for key in sorted(alternation.rivals, key=lambda key: median(values[key])):
                if key == state.default or np.isinf(median(values[key])):
                    break
                if self._beats(values[key], values.get(state.default)) and self._verifier.proven(state, key):
                    return key, True
            return state.default, True
        best, default_s = state.best, state.default_s
        if best is None:
            return state.default, False
        if default_s is None or state.latencies[best] < default_s * (1 - self._settings.unchecked_gain):
            return best, False
        return state.default, False

    def _beats(self, tuned: Sequence[float], default: Sequence[float] | None) -> bool:
        """Whether latencies taken in alternation differ by more than their noise."""
        if default is None:
            return True
        ratios = [t / d for t, d in zip(tuned, default, strict=True)]
        noise = (max(ratios) - min(ratios)) / 2 if all(np.isfinite(ratios)) else 0.0
        return median(ratios) < 1 - max(self._settings.min_gain, noise)


def _groups(alternations: Iterable[_Alternation], size: int) -> list[list[_Alternation]]:
    """Pack alternations, in order, into groups of about `size` rivals."""
    groups: list[list[_Alternation]] = [[]]
    for alternation in alternations:
        if groups[-1] and sum(len(a.rivals) for a in groups[-1]) + len(alternation.rivals) > size:
            groups.append([])
        groups[-1].append(alternation)
    return [group for group in groups if group]
