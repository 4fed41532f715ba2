"""The tuned model against the model with default schedules, both whole.

Tasks are measured one by one; a model is more than their sum: what one kernel leaves in the caches, the next one finds.
A set of schedules that wins task by task and loses as a model is not worth having.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from calumma.artifact import Artifact
from calumma.measure import verification
from calumma.pipeline import CompiledModel
from calumma.pipeline.compiled import compile_model
from calumma.pipeline.preparation import Configs, PreparedModel
from calumma.tuner.result import ModelContest

LEAST_ROUNDS = 5
MOST_ROUNDS = 41
ROUND_S = 0.02
"""Time of one model in one round, at least one call."""
_SEED = 2


class Contest:
    """Builds the tuned and the default model, runs them in alternation and keeps the faster one.

    Attributes:
        winner: the faster model; None before a contest.
    """

    def __init__(self, model: PreparedModel) -> None:
        self._model = model
        self.winner: CompiledModel | None = None

    def __call__(self, tuned: Configs, seconds: float) -> ModelContest:
        """Let the model with the schedules `tuned` run against the one with defaults.

        Args:
            tuned: workload hash -> configuration.
            seconds: for running them, after both were built; more only if the fewest rounds take longer.
        """
        built = [compile_model(self._model, configs, charged=False) for configs in (tuned, {})]
        artifacts = [Artifact.from_executable(model.executable, model.lowered.params, {}) for model in built]
        feeds = {
            spec.name: verification.random_array(spec.shape, spec.dtype, _SEED, i)
            for i, spec in enumerate(artifacts[0].inputs)
        }
        calls = []
        for artifact in artifacts:
            artifact.run(feeds)  # touches every page
            calls.append(max(1, int(ROUND_S / _call_s(artifact, feeds))))
        start = time.perf_counter()
        rounds: list[tuple[float, float]] = []
        while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - start < seconds):
            latencies = [0.0, 0.0]
            for i in (0, 1) if len(rounds) % 2 == 0 else (1, 0):
                latencies[i] = median(_call_s(artifacts[i], feeds) for _ in range(calls[i]))
            rounds.append((latencies[0], latencies[1]))
        outcome = ModelContest(
            tuned_s=median(tuned_s for tuned_s, _ in rounds),
            default_s=median(default_s for _, default_s in rounds),
            ratio=median(tuned_s / default_s for tuned_s, default_s in rounds),
            rounds=len(rounds),
        )
        self.winner = built[0 if outcome.tuned_wins else 1]
        return outcome

    def compiled(self, configs: Configs, latencies_s: Mapping[str, float], *, decided: bool) -> CompiledModel:
        """The model to keep.

        Args:
            configs, latencies_s: what the session decided, for the model's metadata.
            decided: whether the contest came to its end; otherwise the model is built from `configs`.
        """
        if self.winner is None or not decided:
            return compile_model(self._model, configs, latencies_s)
        lowered = replace(self.winner.lowered, metadata=self._model.metadata(configs, latencies_s))
        return replace(self.winner, lowered=lowered)


def _call_s(artifact: Artifact, feeds: dict) -> float:
    start = time.perf_counter()
    artifact.run(feeds)
    return time.perf_counter() - start
