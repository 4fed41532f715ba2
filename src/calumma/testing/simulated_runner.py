"""A runner without workers, for tests of what asks one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from calumma.core.values import Candidate, MeasureResult, Status


class SimulatedRunner:
    """A `Runner` whose subclasses say what comes out; the seconds by phase of that pass on a clock of its own.

    Attributes:
        now_s: what the clock shows.
        batches: what was to be measured, batch by batch.
        best_s: what was passed on with each batch.
        verified: keys of what was to be verified.
    """

    cache_state = "cold"
    threads = 2

    def __init__(self) -> None:
        self.now_s = 0.0
        self.batches: list[list[Candidate]] = []
        self.best_s: list[Mapping[str, float]] = []
        self.verified: list[str] = []

    def outcome(self, candidate: Candidate) -> MeasureResult:
        """What measuring a candidate says."""
        raise NotImplementedError

    def verdict(self, candidate: Candidate) -> MeasureResult:
        """What verifying a candidate says."""
        return MeasureResult(Status.OK)

    def clock(self) -> float:
        return self.now_s

    def measure(
        self,
        candidates: Sequence[Candidate],
        best_s: Mapping[str, float] | None = None,
        on_result: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        self.batches.append(list(candidates))
        self.best_s.append(dict(best_s or {}))
        results = []
        for index, candidate in enumerate(candidates):
            results.append(self._charged(self.outcome(candidate)))
            if on_result is not None:
                on_result(index, results[-1])
        return results

    def verify(self, candidates: Sequence[Candidate]) -> list[MeasureResult]:
        self.verified += [candidate.key for candidate in candidates]
        return [self._charged(self.verdict(candidate)) for candidate in candidates]

    def close(self) -> None:
        pass

    def _charged(self, result: MeasureResult) -> MeasureResult:
        self.now_s += sum(result.phases_s.values())
        return result
