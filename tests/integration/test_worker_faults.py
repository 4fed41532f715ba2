"""Candidates that crash, hang, lie or eat memory, in real worker processes: only the guilty one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calumma import tvm_compat
from calumma.core.errors import EnvironmentFault, InputError
from calumma.core.values import Status
from calumma.measure import LocalRunner
from tests import measure_spaces as spaces

pytestmark = pytest.mark.xdist_group("measures")

BEFORE = [spaces.candidate(spaces.matmul(), split=8), spaces.candidate(spaces.matmul(), split=16)]
AFTER = [spaces.candidate(spaces.scale(), parallel=True), spaces.candidate(spaces.scale(), split=4)]


def make_runner(**settings: object) -> LocalRunner:
    defaults = {"space_entry": spaces.SPACE_ENTRY, "memory_bytes": 1 << 30, "build_timeout_s": 5, "run_timeout_s": 3}
    return LocalRunner(tvm_compat.target_for(), 2, **{**defaults, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    with make_runner() as runner:
        yield runner


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("invalid", Status.INVALID_CONFIG, "this split does not fit"),
        ("build_error", Status.BUILD_ERROR, "LLVM has given up"),
        ("build_memory", Status.BUILD_ERROR, "MemoryError"),
        ("build_crash", Status.WORKER_LOST, "SIGSEGV during build"),
        ("build_exit", Status.WORKER_LOST, "exit status 3 during build"),
        ("build_hang", Status.BUILD_TIMEOUT, "build took longer than 5 s"),
        ("run_crash", Status.WORKER_LOST, "SIGSEGV during run"),
        ("run_hang", Status.RUN_TIMEOUT, "run took longer than 3 s"),
        ("run_error", Status.RUN_ERROR, "tests.no_such_function"),
        ("run_memory", Status.RUN_ERROR, "bad_alloc"),
    ],
)
def test_only_the_guilty_candidate_fails(runner: LocalRunner, fault: str, status: Status, reason: str) -> None:
    guilty = spaces.candidate(spaces.scale(), fault=fault)
    results = runner.measure([*BEFORE, guilty, *AFTER])
    assert [result.status for result in results] == [Status.OK, Status.OK, status, Status.OK, Status.OK]
    assert reason in results[2].reason
    assert "\n" not in results[2].reason


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("wrong", Status.WRONG_OUTPUT, "relative error"),
        ("unwritten", Status.WRONG_OUTPUT, "1024 of 2048 elements"),
        ("run_crash", Status.WORKER_LOST, "SIGSEGV during verify"),
        ("run_hang", Status.RUN_TIMEOUT, "verify took longer"),
        ("build_error", Status.BUILD_ERROR, "LLVM has given up"),
    ],
)
def test_verification_catches(runner: LocalRunner, fault: str, status: Status, reason: str) -> None:
    guilty = spaces.candidate(spaces.scale(), fault=fault)
    results = runner.verify([BEFORE[0], guilty, AFTER[0]])
    assert [result.status for result in results] == [Status.OK, status, Status.OK]
    assert reason in results[1].reason


def test_verification_finds_inputs_on_which_the_reference_is_finite(runner: LocalRunner) -> None:
    assert runner.verify([spaces.candidate(spaces.negative_logarithm(), split=8)])[0].status is Status.OK


def test_what_cannot_be_verified_is_not_called_right(runner: LocalRunner) -> None:
    result = runner.verify([spaces.candidate(spaces.zeros(), split=8)])[0]
    assert result.status is Status.RUN_ERROR
    assert "cannot be verified" in result.reason


def test_two_crashes_in_one_batch(runner: LocalRunner) -> None:
    crash = spaces.candidate(spaces.scale(), fault="run_crash")
    broken = spaces.candidate(spaces.scale(), fault="build_crash")
    statuses = [result.status for result in runner.measure([crash, *BEFORE, broken, *AFTER])]
    assert statuses == [Status.WORKER_LOST, Status.OK, Status.OK, Status.WORKER_LOST, Status.OK, Status.OK]


def test_a_candidate_of_another_template_version_is_invalid(runner: LocalRunner) -> None:
    from dataclasses import replace

    result = runner.measure([replace(AFTER[0], template_version=2)])[0]
    assert result.status is Status.INVALID_CONFIG
    assert "toy version 2" in result.reason


def test_a_slow_candidate_stops_early(runner: LocalRunner) -> None:
    slow = spaces.candidate(spaces.matmul(96))
    unlimited = runner.measure([slow])[0]
    pruned = runner.measure([slow], {slow.workload.hash: unlimited.latency_s / 20})[0]
    assert pruned.status is Status.OK
    assert len(pruned.latencies_s) < len(unlimited.latencies_s)


def test_a_hot_kernel_is_timed_in_loops() -> None:
    with make_runner(cache_state="hot", workers=1) as runner:
        result = runner.measure(AFTER[:1])[0]
    assert result.status is Status.OK
    assert result.latency_s > 0


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell runs the tests in the background and has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_leaves_the_runner_usable() -> None:
    hanging = spaces.candidate(spaces.scale(), fault="build_hang")
    with make_runner(build_timeout_s=60) as runner:
        assert runner.measure(AFTER)[0].status is Status.OK
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            runner.measure([hanging, *AFTER])
        assert [result.status for result in runner.measure(AFTER)] == [Status.OK, Status.OK]


def test_workers_end_with_their_runner_even_when_they_hang(tmp_path: Path) -> None:
    script = """
from calumma import tvm_compat
from calumma.measure import LocalRunner
from tests import measure_spaces as spaces
runner = LocalRunner(tvm_compat.target_for(), 2, space_entry=spaces.SPACE_ENTRY, run_timeout_s=600)
runner.measure([spaces.candidate(spaces.scale())])
print(runner.server_pid, flush=True)
runner.measure([spaces.candidate(spaces.scale(), fault="run_hang")])
"""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src")])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = int(parent.stdout.readline())
    workers = _children(server)
    assert len(workers) == 2
    time.sleep(1.0)  # until the kernel hangs
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(_running, [server, *workers])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in [server, *workers] if _running(pid)]
    assert not list(tmp_path.glob("calumma-measure-*"))


def test_workers_that_cannot_start_are_one_clear_error() -> None:
    with (
        make_runner(space_entry="no_such_module:space") as runner,
        pytest.raises(EnvironmentFault, match="no_such_module"),
    ):
        runner.measure(AFTER)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="lukewarm"):
        make_runner(cache_state="lukewarm")
    with pytest.raises(InputError, match="0 workers"):
        make_runner(workers=0)


def test_a_closed_runner_says_so() -> None:
    runner = make_runner()
    runner.close()
    with pytest.raises(InputError, match="closed"):
        runner.measure(AFTER)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
