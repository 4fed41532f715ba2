"""Trials on their way to the runner and into the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from calumma.core.keys import Key
from calumma.core.protocols import Runner, Store
from calumma.core.values import Hardware, MeasureRecord, MeasureResult
from calumma.tuner.phases import PhaseClock
from calumma.tuner.state import TaskState

REMEASURED = "remeasure"
"""What stands for the strategy in the record of a configuration that was measured before: nobody proposed it."""

DEFAULT = "default"
"""The same for a default: the template's own choice."""

PRIOR = "prior"
"""The same for what a prior predicted to be best."""

TRANSFER = "transfer"
"""The same for the winner of a similar task."""


@dataclass(frozen=True)
class Trial:
    """One configuration on its way to the runner."""

    state: TaskState
    key: Key
    origin: str
    """Who proposed it: a strategy's name, `DEFAULT`, `PRIOR`, `TRANSFER` or `REMEASURED`."""


class TrialRunner:
    """Measures and verifies trials, charges the seconds to their phases, and keeps the outcomes in the store.

    Attributes:
        session: id of the session in the store; set before anything is appended.
    """

    def __init__(
        self, runner: Runner, store: Store, phases: PhaseClock, *, hardware: Hardware, toolchain: str, seed: int
    ) -> None:
        self.session = ""
        self._runner = runner
        self._store = store
        self._phases = phases
        self._hardware = hardware
        self._toolchain = toolchain
        self._seed = seed

    def recorded(self, workloads: Sequence[str]) -> Sequence[MeasureRecord]:
        """Return what earlier sessions measured of these workloads under the same conditions."""
        with self._phases.charge("store"):
            return self._store.records(
                workloads=workloads,
                hardware=self._hardware.fingerprint,
                threads=self._runner.threads,
                cache_state=self._runner.cache_state,
                toolchain=self._toolchain,
            )

    def measure(
        self,
        trials: Sequence[Trial],
        best_s: Mapping[str, float] | None = None,
        keep: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        """Measure; arguments as in `Runner.measure`."""
        before_s = self._phases.phases_s.get("run", 0.0)
        with self._phases.charge("run"):
            results = self._runner.measure([trial.state.candidate(trial.key) for trial in trials], best_s, keep)
        spent: Counter[str] = Counter()
        for result in results:
            spent.update(result.phases_s)
        self._phases.spread("run", self._phases.phases_s["run"] - before_s, spent)
        return results

    def verify(self, trials: Sequence[Trial]) -> list[MeasureResult]:
        """Compare outputs with those of the unscheduled functions."""
        with self._phases.charge("verify"):
            return self._runner.verify([trial.state.candidate(trial.key) for trial in trials])

    def append(self, trials: Sequence[Trial], results: Sequence[MeasureResult]) -> tuple[MeasureRecord, ...]:
        """Store the outcomes, and return them as records."""
        records = tuple(
            MeasureRecord(
                candidate=trial.state.candidate(trial.key),
                result=result,
                hardware=self._hardware,
                threads=self._runner.threads,
                cache_state=self._runner.cache_state,
                toolchain=self._toolchain,
                session=self.session,
                strategy=trial.origin,
                seed=self._seed,
            )
            for trial, result in zip(trials, results, strict=True)
        )
        with self._phases.charge("store"):
            self._store.append(records)
        return records
