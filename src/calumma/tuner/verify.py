"""Whether a fast configuration is right: nothing becomes the best of its task without that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calumma.core.keys import Key
from calumma.core.values import MeasureResult, Status
from calumma.tuner.state import VERIFIED, TaskState
from calumma.tuner.trial_runner import REMEASURED, Trial, TrialRunner


class Verifier:
    """Verifies what would be used, and only that."""

    def __init__(self, trials: TrialRunner, min_gain: float) -> None:
        """Prepare.

        Args:
            trials: compares outputs.
            min_gain: part of the latency by which a new best must be faster.
        """
        self._trials = trials
        self._min_gain = min_gain

    def contends(self, trial: Trial, result: MeasureResult) -> bool:
        """Whether a result would be a new best. A default needs no proof: it is what is used without any tuning."""
        if result.status is not Status.OK or trial.key == trial.state.default:
            return False
        best_s = trial.state.best_s
        return best_s is None or result.latency_s < best_s * (1 - self._min_gain)

    def verify_contenders(self, trials: Sequence[Trial], results: list[MeasureResult]) -> None:
        """Verify, task by task, the fastest result that beats the incumbent; one that fails makes room for the next.

        What was verified takes the place of its result in `results`.
        """
        while True:
            fastest: dict[str, int] = {}
            for i, (trial, result) in enumerate(zip(trials, results, strict=True)):
                if self.contends(trial, result) and (
                    trial.state.hash not in fastest or result.latency_s < results[fastest[trial.state.hash]].latency_s
                ):
                    fastest[trial.state.hash] = i
            pending = [i for i in fastest.values() if trials[i].key not in trials[i].state.verified]
            if not pending:
                return
            for i, verdict in zip(pending, self._verify([trials[i] for i in pending]), strict=True):
                phases_s = {**results[i].phases_s, VERIFIED: sum(verdict.phases_s.values())}
                results[i] = replace(results[i] if verdict.status is Status.OK else verdict, phases_s=phases_s)

    def proven(self, state: TaskState, key: Key) -> bool:
        """Whether the outputs are right; a rival that was never the best is verified only if it would win."""
        if key not in state.verified:
            trial = Trial(state, key, REMEASURED)
            verdict = self._verify([trial])[0]
            if verdict.status is not Status.OK:
                state.note(key, verdict)
                self._trials.append([trial], [verdict])
        return key in state.verified

    def _verify(self, trials: Sequence[Trial]) -> list[MeasureResult]:
        verdicts = self._trials.verify(trials)
        for trial, verdict in zip(trials, verdicts, strict=True):
            if verdict.status is Status.OK:
                trial.state.verified.add(trial.key)
        return verdicts
