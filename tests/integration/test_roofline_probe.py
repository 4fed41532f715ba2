"""The real probe, in its child process. Tolerances are wide: other load makes every number lower."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import tvm
from tvm import tirx

from calumma import tvm_compat
from calumma.tasks import roofline
from calumma.tasks.roofline import machine_limits

pytestmark = pytest.mark.xdist_group("measures")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_limits_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tvm_compat.target_for()
    for _ in range(roofline._MOST_ATTEMPTS):  # other load may disturb a probe; so often is it repeated at most
        limits = machine_limits(target, 1)
    assert not limits.estimated, limits.note
    assert 0.5e9 < limits.clock_hz < 8e9
    assert limits.flops_per_cycle in {2.0 * target.lanes * fmas for fmas in (1, 2, 3, 4)}
    assert 0.5 < limits.consistency < 1.15, limits.note
    assert 0.5e9 < limits.dram_bandwidth < limits.l2_bandwidth < 64 * 8 * limits.clock_hz

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a settled probe does not run again")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with roofline.early_probe(target, 1) as child:
        assert child is None
    assert machine_limits(target, 1).peak_flops >= limits.peak_flops


def test_a_probe_that_is_started_early_measures_when_it_is_asked() -> None:
    target = tvm_compat.target_for()
    with roofline.early_probe(target, 1) as child:
        assert child is not None
        assert not machine_limits(target, 1, child=child).estimated
    with roofline.early_probe(target, 2) as other:
        assert other is not None and other._process is not None
    assert other._process.returncode == -signal.SIGKILL, "left without being asked"


def test_multiply_adds_stay_in_registers() -> None:
    """Whatever the compiler does to the peak kernel, its loop holds `chains` multiply-adds and no memory access."""
    target = tvm_compat.target_for("x86-64-v3")
    library = tirx.build(
        tvm.IRModule({"peak": roofline._fma_kernel("peak", 1, 12, 8, 1000)}),
        target=tvm_compat.tvm_target(target, 1),
    )
    fused = [line for line in library.inspect_source("asm").splitlines() if "vfmadd" in line and "ymm" in line]
    assert len(fused) >= 12
    assert not [line for line in fused if "(" in line]


def test_a_baseline_cpu_is_probed_with_its_own_vectors() -> None:
    target = tvm_compat.target_for("x86-64-v3")
    if not roofline._runs_here(target):
        assert machine_limits(target, 1).estimated
        return
    limits = machine_limits(target, 1)
    assert not limits.estimated, limits.note
    assert limits.flops_per_cycle in {16.0, 32.0, 48.0, 64.0}


def test_a_failing_child_gives_an_estimate_with_its_message() -> None:
    threads = (os.cpu_count() or 1) + 1
    limits = machine_limits(tvm_compat.target_for(), threads)
    assert limits.estimated
    assert f"threads={threads}" in limits.note
