"""What every runner promises (`calumma.core.protocols.Runner`), on toy kernels some of which fail.

A test supplies one fixture::

    class TestMine(RunnerConformance):
        @pytest.fixture
        def make_runner(self):
            return lambda: MyRunner(space_entry=toy_kernels.SPACE_ENTRY)

A runner whose workers run elsewhere makes the kernels' design spaces there, by that name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from calumma.core.protocols import Runner
from calumma.core.values import MeasureResult, Status
from calumma.testing.toy_kernels import candidate, matmul, scale

GOOD = [candidate(matmul(), split=8, parallel=True), candidate(matmul(), split=4), candidate(scale(), parallel=True)]
INVALID = candidate(scale(), fault="invalid")
FAILING = candidate(scale(), fault="build_error")
WRONG = candidate(scale(), fault="wrong")


class RunnerConformance:
    """The suite; a subclass supplies the fixture `make_runner`, or `runner` where making one takes long."""

    @pytest.fixture
    def make_runner(self) -> Callable[[], Runner]:
        """A function that returns a new runner at every call."""
        raise NotImplementedError("a conformance test supplies the fixture `make_runner`")

    @pytest.fixture
    def runner(self, make_runner: Callable[[], Runner]) -> Iterator[Runner]:
        """A runner, closed afterwards."""
        made = make_runner()
        yield made
        made.close()

    def test_says_under_which_conditions_it_measures(self, runner: Runner) -> None:
        assert runner.threads >= 1 and runner.cache_state in ("cold", "warm", "hot")

    def test_results_are_told_as_they_come(self, runner: Runner) -> None:
        told: dict[int, MeasureResult] = {}
        batch = [GOOD[0], INVALID, GOOD[2]]
        results = runner.measure(batch, on_result=told.__setitem__)
        assert {index: told[index].status for index in sorted(told)} == {i: r.status for i, r in enumerate(results)}

    def test_close_is_idempotent(self, make_runner: Callable[[], Runner]) -> None:
        runner = make_runner()
        runner.close()
        runner.close()

    def test_an_empty_batch_has_no_results(self, runner: Runner) -> None:
        assert runner.measure([]) == []
        assert runner.verify([]) == []

    def test_one_result_per_candidate_in_order(self, runner: Runner) -> None:
        batch = [GOOD[0], INVALID, GOOD[1], FAILING, GOOD[2], GOOD[0]]
        statuses = [result.status for result in runner.measure(batch)]
        assert statuses == [Status.OK, Status.INVALID_CONFIG, Status.OK, Status.BUILD_ERROR, Status.OK, Status.OK]

    def test_a_success_has_latencies_and_phases(self, runner: Runner) -> None:
        for result in runner.measure(GOOD):
            assert result.reason == ""
            assert len(result.latencies_s) >= 3
            assert all(0 < latency < 1 for latency in result.latencies_s)
            assert set(result.phases_s) == {"build", "run"}
            assert all(seconds > 0 for seconds in result.phases_s.values())

    def test_a_failure_has_one_line_of_reason_and_no_latency(self, runner: Runner) -> None:
        for result, word in zip(
            runner.measure([INVALID, FAILING]), ["split does not fit", "LLVM has given up"], strict=True
        ):
            assert word in result.reason
            assert "\n" not in result.reason
            assert result.latencies_s == ()
            assert math.isinf(result.latency_s)

    def test_a_known_best_leaves_the_status_as_it_is(self, runner: Runner) -> None:
        best_s = {GOOD[0].workload.hash: 1e-9}
        assert [result.status for result in runner.measure(GOOD[:2], best_s)] == [Status.OK, Status.OK]

    def test_verify_tells_right_from_wrong(self, runner: Runner) -> None:
        right, wrong = runner.verify([GOOD[0], WRONG])
        assert (right.status, right.reason) == (Status.OK, "")
        assert wrong.status is Status.WRONG_OUTPUT
        assert "relative error" in wrong.reason
        assert right.phases_s["verify"] >= 0

    def test_verify_reports_how_a_candidate_failed(self, runner: Runner) -> None:
        assert runner.verify([FAILING])[0].status is Status.BUILD_ERROR
