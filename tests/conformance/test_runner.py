"""What every `core.protocols.Runner` must do; an implementation only supplies a fixture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import Runner
from calumma.core.values import Candidate, MeasureRecord, MeasureResult, Status
from calumma.measure import LocalRunner, ReplayRunner
from tests import measure_spaces as spaces

pytestmark = pytest.mark.xdist_group("measures")

THREADS = 2

GOOD = [
    spaces.candidate(spaces.matmul(), split=8, parallel=True),
    spaces.candidate(spaces.matmul(), split=4),
    spaces.candidate(spaces.scale(), parallel=True),
]
INVALID = spaces.candidate(spaces.scale(), fault="invalid")
FAILING = spaces.candidate(spaces.scale(), fault="build_error")
WRONG = spaces.candidate(spaces.scale(), fault="wrong")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalRunner]:
    with LocalRunner(tvm_compat.target_for(), THREADS, space_entry=spaces.SPACE_ENTRY) as runner:
        yield runner


def record(candidate: Candidate, result: MeasureResult) -> MeasureRecord:
    return MeasureRecord(candidate, result, tvm_compat.target_for().hardware, THREADS, "cold", tvm_compat.toolchain())


@pytest.fixture(scope="module")
def records(local: LocalRunner) -> list[MeasureRecord]:
    measured = [*GOOD, INVALID, FAILING]
    recorded = [record(c, result) for c, result in zip(measured, local.measure(measured), strict=True)]
    return [*recorded, record(WRONG, local.verify([WRONG])[0])]


@pytest.fixture(params=["local", "replay"])
def runner(request: pytest.FixtureRequest, local: LocalRunner, records: list[MeasureRecord]) -> Runner:
    return local if request.param == "local" else ReplayRunner(records)


def test_says_under_which_conditions_it_measures(runner: Runner) -> None:
    assert (runner.threads, runner.cache_state) == (THREADS, "cold")


def test_an_empty_batch_has_no_results(runner: Runner) -> None:
    assert runner.measure([]) == []
    assert runner.verify([]) == []


def test_one_result_per_candidate_in_order(runner: Runner) -> None:
    batch = [GOOD[0], INVALID, GOOD[1], FAILING, GOOD[2], GOOD[0]]
    statuses = [result.status for result in runner.measure(batch)]
    assert statuses == [Status.OK, Status.INVALID_CONFIG, Status.OK, Status.BUILD_ERROR, Status.OK, Status.OK]


def test_a_success_has_latencies_and_phases(runner: Runner) -> None:
    for result in runner.measure(GOOD):
        assert result.reason == ""
        assert len(result.latencies_s) >= 3
        assert all(0 < latency < 1 for latency in result.latencies_s)
        assert set(result.phases_s) == {"build", "run"}
        assert all(seconds > 0 for seconds in result.phases_s.values())


def test_a_failure_has_one_line_of_reason_and_no_latency(runner: Runner) -> None:
    for result, word in zip(
        runner.measure([INVALID, FAILING]), ["split does not fit", "LLVM has given up"], strict=True
    ):
        assert word in result.reason
        assert "\n" not in result.reason
        assert result.latencies_s == ()
        assert math.isinf(result.latency_s)


def test_a_known_best_leaves_the_status_as_it_is(runner: Runner) -> None:
    best_s = {GOOD[0].workload.hash: 1e-9}
    assert [result.status for result in runner.measure(GOOD[:2], best_s)] == [Status.OK, Status.OK]


def test_verify_tells_right_from_wrong(runner: Runner) -> None:
    right, wrong = runner.verify([GOOD[0], WRONG])
    assert (right.status, right.reason) == (Status.OK, "")
    assert wrong.status is Status.WRONG_OUTPUT
    assert "relative error" in wrong.reason
    assert right.phases_s["verify"] >= 0


def test_verify_reports_how_a_candidate_failed(runner: Runner) -> None:
    assert runner.verify([FAILING])[0].status is Status.BUILD_ERROR


@pytest.mark.parametrize("kind", ["local", "replay"])
def test_close_is_idempotent(kind: str, records: list[MeasureRecord]) -> None:
    if kind == "local":
        runner: Runner = LocalRunner(tvm_compat.target_for(), THREADS, space_entry=spaces.SPACE_ENTRY)
    else:
        runner = ReplayRunner(records)
    runner.close()
    runner.close()


def test_replay_charges_the_recorded_seconds(records: list[MeasureRecord]) -> None:
    result = MeasureResult(Status.OK, (1e-3,), phases_s={"build": 0.25, "run": 0.5, "verify": 2.0})
    runner = ReplayRunner([replace(records[0], result=result)])
    runner.measure([GOOD[0], GOOD[0]])
    assert runner.charged_s == pytest.approx(1.5)
    runner.verify([GOOD[0]])
    assert runner.charged_s == pytest.approx(3.5)


def test_replay_answers_as_recorded(records: list[MeasureRecord]) -> None:
    assert ReplayRunner(records).measure([r.candidate for r in records]) == [r.result for r in records]


def test_replay_refuses_what_was_not_recorded(records: list[MeasureRecord]) -> None:
    result = ReplayRunner(records).measure([spaces.candidate(spaces.matmul(), split=32)])[0]
    assert result.status is Status.INVALID_CONFIG
    assert "not in the recording" in result.reason


def test_replay_refuses_latencies_that_do_not_compare(records: list[MeasureRecord]) -> None:
    with pytest.raises(InputError, match="got 2"):
        ReplayRunner([records[0], replace(records[1], cache_state="hot")])
    with pytest.raises(InputError, match="got 0"):
        ReplayRunner([])


def test_local_phases_add_up_to_the_batch(local: LocalRunner) -> None:
    import time

    start = time.perf_counter()
    results = local.measure(GOOD)
    wall_s = time.perf_counter() - start
    assert sum(sum(result.phases_s.values()) for result in results) == pytest.approx(wall_s, rel=0.1)
