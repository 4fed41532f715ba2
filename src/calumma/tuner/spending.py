"""What a session has spent of its budget, and what it can still afford."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calumma.core.values import Budget
from calumma.tuner.events import SessionProgress
from calumma.tuner.phases import PhaseClock
from calumma.tuner.settings import TuningSettings
from calumma.tuner.state import TaskState


class Spending:
    """Counts trials, learns what a candidate costs all told, and says how many more may be begun.

    Attributes:
        trials: distinct configurations measured so far, defaults included.
    """

    def __init__(self, budget: Budget, settings: TuningSettings, phases: PhaseClock, *, contest: bool) -> None:
        """Begin with nothing spent.

        Args:
            budget: at least one of its limits is given.
            settings: how it is shared out.
            phases: the session's clock.
            contest: whether whole models are run at the end, for which seconds are kept.
        """
        self.trials = 0
        self._budget = budget
        self._settings = settings
        self._phases = phases
        self._contest = contest
        self._measured_pace_s: float | None = None
        self._round_start_s = 0.0

    def begin_round(self) -> None:
        """What is spent from now on is what the next candidates cost."""
        self._round_start_s = self._phases.elapsed_s

    def end_round(self, candidates: int) -> None:
        """Learn from the round what a candidate costs all told; recent rounds count most."""
        seconds = (self._phases.elapsed_s - self._round_start_s) / candidates
        known = self._measured_pace_s
        self._measured_pace_s = seconds if known is None else 0.7 * known + 0.3 * seconds

    def room(self, rivals: int) -> int:
        """How many candidates the next round may have: what keeps the workers busy, and what is left pays for.

        Args:
            rivals: configurations that the final check would measure now.
        """
        room = self._settings.round_size
        if self._budget.trials is not None:
            room = min(room, self._budget.trials - self.trials)
        if self._budget.seconds is not None:
            reserve_s = min(self._settings.final_share * self._budget.seconds, 2 * rivals * self._pace_s)
            left = self._budget.seconds - self._contest_s - reserve_s - self._phases.elapsed_s
            room = min(room, int(left / self._pace_s))
        return max(0, room)

    def room_for_defaults(self, rivals: int) -> int:
        """The same while defaults are measured, which get their share of the budget alone."""
        share, limit = self._settings.defaults_share, self._budget
        if limit.seconds is not None and self._phases.elapsed_s >= share * limit.seconds:
            return 0
        room = self.room(rivals)
        if limit.trials is not None:
            room = min(room, max(1, int(share * limit.trials)) - self.trials)
        return max(0, room)

    def affordable(self, n: int) -> bool:
        """Whether the final check may measure `n` configurations more."""
        if self._budget.seconds is None:
            return True
        return self._phases.elapsed_s + n * self._pace_s <= self._budget.seconds - self._contest_s

    def seconds_for_contest(self) -> float:
        """Seconds for running whole models: what was kept for them, and more where more is left."""
        left = np.inf if self._budget.seconds is None else self._budget.seconds - self._phases.elapsed_s
        return float(min(self._settings.contest_s, max(left, self._contest_s)))

    def progress(self, states: Sequence[TaskState]) -> SessionProgress:
        """Where the session is."""
        seconds_left, trials_left, pace = None, None, self._measured_pace_s
        if self._budget.seconds is not None:
            seconds_left = max(0.0, self._budget.seconds - self._phases.elapsed_s)
        if self._budget.trials is not None:
            trials_left = self._budget.trials - self.trials
        by_trials = trials_left * pace if trials_left is not None and pace is not None else None
        return SessionProgress(
            tasks=tuple(state.progress() for state in states),
            trials=self.trials,
            elapsed_s=self._phases.elapsed_s,
            seconds_left=seconds_left,
            trials_left=trials_left,
            eta_s=min((eta for eta in (seconds_left, by_trials) if eta is not None), default=None),
            candidates_per_s=1 / pace if pace else None,
        )

    @property
    def _contest_s(self) -> float:
        """Seconds kept for the whole models."""
        if not self._contest or self._budget.seconds is None:
            return 0.0
        return min(self._settings.contest_s, self._settings.contest_share * self._budget.seconds)

    @property
    def _pace_s(self) -> float:
        """Seconds per candidate, all told."""
        return max(self._measured_pace_s or self._settings.candidate_s, 1e-6)
