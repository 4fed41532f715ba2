"""Measuring without hardware: answers come from records, and the seconds they once took are charged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from calumma.core.errors import InputError
from calumma.core.values import Candidate, MeasureRecord, MeasureResult, Status


class ReplayRunner:
    """A `Runner` over a recording: strategies are compared, and tested, without measuring anything again.

    A candidate that was never recorded is INVALID_CONFIG. Of several records of one candidate the last counts.
    """

    def __init__(self, records: Iterable[MeasureRecord]) -> None:
        """Index the records.

        Raises:
            InputError: they are none, or differ in hardware, threads or cache state: their latencies do not compare.
        """
        conditions = set()
        self._results: dict[str, MeasureResult] = {}
        for record in records:
            conditions.add((record.hardware.fingerprint, record.threads, record.cache_state))
            self._results[record.candidate.key] = record.result
        if len(conditions) != 1:
            raise InputError(
                f"a replay needs records of one hardware, thread count and cache state, got {len(conditions)} of them: "
                "filter the records first"
            )
        ((_, self.threads, self.cache_state),) = conditions
        self.charged_s = 0.0
        """Seconds that what was asked so far took when it was measured."""

    def measure(
        self,
        candidates: Sequence[Candidate],
        best_s: Mapping[str, float] | None = None,
        on_result: Callable[[int, MeasureResult], None] | None = None,
    ) -> list[MeasureResult]:
        """Look the candidates up; `best_s` changes nothing, since the recording has stopped where it has stopped.

        `charged_s` grows as time passes in a batch of `LocalRunner`: all builds first, then one run after the other, so
        that `on_result` finds in it when the result would have been known.
        """
        results = [self._result(candidate) for candidate in candidates]
        self.charged_s += sum(result.phases_s.get("build", 0.0) for result in results)
        for index, result in enumerate(results):
            self.charged_s += result.phases_s.get("run", 0.0)
            if on_result is not None:
                on_result(index, result)
        return results

    def verify(self, candidates: Sequence[Candidate]) -> list[MeasureResult]:
        """Repeat the verdicts of the recording: what was recorded OK is right, its latencies left out."""
        verdicts = []
        for result in map(self._result, candidates):
            seconds = result.phases_s.get("verify", 0.0)
            self.charged_s += seconds
            verdicts.append(MeasureResult(result.status, reason=result.reason, phases_s={"verify": seconds}))
        return verdicts

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> ReplayRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _result(self, candidate: Candidate) -> MeasureResult:
        missing = MeasureResult(Status.INVALID_CONFIG, reason="this configuration is not in the recording")
        return self._results.get(candidate.key, missing)
