"""Every runner of the package keeps what runners promise; and what only one of them promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import Runner
from calumma.core.values import Candidate, MeasureRecord, MeasureResult, Status
from calumma.measure import LocalRunner, ReplayRunner
from calumma.testing import toy_kernels
from calumma.testing.runner_suite import FAILING, GOOD, INVALID, WRONG, RunnerConformance

pytestmark = pytest.mark.xdist_group("measures")

THREADS = 2


def local_runner() -> LocalRunner:
    return LocalRunner(tvm_compat.target_for(), THREADS, space_entry=toy_kernels.SPACE_ENTRY)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalRunner]:
    with local_runner() as runner:
        yield runner


def record(candidate: Candidate, result: MeasureResult) -> MeasureRecord:
    return MeasureRecord(candidate, result, tvm_compat.target_for().hardware, THREADS, "cold", tvm_compat.toolchain())


@pytest.fixture(scope="module")
def records(local: LocalRunner) -> list[MeasureRecord]:
    measured = [*GOOD, INVALID, FAILING]
    recorded = [record(c, result) for c, result in zip(measured, local.measure(measured), strict=True)]
    return [*recorded, record(WRONG, local.verify([WRONG])[0])]


class Common(RunnerConformance):
    def test_conditions(self, runner: Runner) -> None:
        assert (runner.threads, runner.cache_state) == (THREADS, "cold")


class TestLocalRunner(Common):
    @pytest.fixture
    def make_runner(self) -> Callable[[], Runner]:
        return local_runner

    @pytest.fixture
    def runner(self, local: LocalRunner) -> Runner:
        return local


class TestReplayRunner(Common):
    @pytest.fixture
    def make_runner(self, records: list[MeasureRecord]) -> Callable[[], Runner]:
        return lambda: ReplayRunner(records)


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
    result = ReplayRunner(records).measure([toy_kernels.candidate(toy_kernels.matmul(), split=32)])[0]
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
