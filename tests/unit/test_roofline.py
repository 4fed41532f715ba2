"""The roofline bound, and the cache of the probe; the probe itself is replaced here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.target import Target
from calumma.tasks import roofline
from calumma.tasks.roofline import MachineLimits, bound_s, machine_limits

GOOD = {
    "peak_flops": 510e9,
    "core_flops": 256e9,
    "clock_hz": 4e9,
    "dram_bandwidth": 40e9,
    "l3_bandwidth": 200e9,
    "l2_bandwidth": 400e9,
}
DISTURBED = GOOD | {"peak_flops": 300e9, "l2_bandwidth": 500e9}
LIMITS = MachineLimits(
    threads=2,
    peak_flops=500e9,
    dram_bandwidth=40e9,
    l3_bandwidth=200e9,
    l2_bandwidth=400e9,
    flops_per_cycle=64.0,
    clock_hz=4e9,
    l2_bytes=2 << 20,
    l3_bytes=32 << 20,
)


class TestBound:
    def test_compute_bound(self) -> None:
        assert bound_s(5e9, 1e5, 1e5, LIMITS, weights_resident=True) == pytest.approx(0.01)

    def test_weights_come_from_dram_unless_the_model_stays_in_l3(self) -> None:
        assert bound_s(1.0, 8e6, 0.0, LIMITS, weights_resident=False) == pytest.approx(8e6 / 40e9)
        assert bound_s(1.0, 8e6, 0.0, LIMITS, weights_resident=True) == pytest.approx(8e6 / 200e9)

    @pytest.mark.parametrize(
        ("activation_bytes", "bandwidth"), [(1 << 20, 400e9), (2 << 20, 400e9), (16 << 20, 200e9), (64 << 20, 40e9)]
    )
    def test_activations_come_from_the_nearest_level_that_holds_them(
        self, activation_bytes: int, bandwidth: float
    ) -> None:
        assert bound_s(0.0, 0.0, activation_bytes, LIMITS, True) == pytest.approx(activation_bytes / bandwidth)

    def test_weights_count_among_all_bytes(self) -> None:
        alone = bound_s(0.0, 0.0, 1 << 20, LIMITS, True)
        assert bound_s(0.0, 16 << 20, 1 << 20, LIMITS, True) == pytest.approx((17 << 20) / 200e9) != alone


class Probe:
    """Stands for the child process: hands out given numbers and counts."""

    def __init__(self, *answers: Mapping[str, float] | Exception) -> None:
        self.answers = list(answers)
        self.calls = 0

    def __call__(self, target: Target, threads: int) -> dict[str, float]:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The host, with an empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tvm_compat.target_for()


def install(monkeypatch: pytest.MonkeyPatch, *answers: Mapping[str, float] | Exception) -> Probe:
    probe = Probe(*answers)
    monkeypatch.setattr(roofline, "_probe_in_child", probe)
    return probe


def cache_file(directory: Path) -> Path:
    [path] = directory.rglob("*.json")
    return path


def test_limits_follow_from_the_numbers(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    per_cycle = 4.0 * target.lanes
    install(monkeypatch, GOOD | {"core_flops": 0.98 * per_cycle * 4e9, "peak_flops": 0.97 * 2 * per_cycle * 4e9})
    limits = machine_limits(target, 2)
    assert limits.flops_per_cycle == per_cycle
    assert limits.consistency == pytest.approx(0.97)
    assert limits.confirmed
    assert not limits.estimated
    assert limits.l2_bytes == 2 * target.l2_bytes
    assert "97%" in limits.note


def scaled(numbers: Mapping[str, float], target: Target) -> dict[str, float]:
    """`numbers`, which are of a CPU with 16 lanes, for the host's vectors."""
    factor = target.lanes / 16
    return {name: value * factor if name.endswith("flops") else value for name, value in numbers.items()}


def test_a_confirmed_probe_is_read_from_the_cache(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = install(monkeypatch, scaled(GOOD, target))
    first = machine_limits(target, 2)
    assert machine_limits(target, 2) == first
    assert probe.calls == 1
    machine_limits(target, 1)
    assert probe.calls == 2


def test_refresh_keeps_the_better_of_each_number(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = install(monkeypatch, scaled(GOOD, target), scaled(DISTURBED, target))
    good = machine_limits(target, 2)
    both = machine_limits(target, 2, refresh=True)
    assert probe.calls == 2
    assert both.peak_flops == good.peak_flops
    assert both.l2_bandwidth == 500e9
    assert machine_limits(target, 2) == both


def test_a_disturbed_probe_is_used_noted_and_repeated_three_times_at_most(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = install(monkeypatch, scaled(DISTURBED, target))
    for _ in range(5):
        limits = machine_limits(target, 2)
        assert not limits.confirmed
        assert "other load" in limits.note
    assert probe.calls == 3


def test_a_later_better_probe_replaces_a_disturbed_one(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = install(monkeypatch, scaled(DISTURBED, target), scaled(GOOD, target))
    assert not machine_limits(target, 2).confirmed
    assert machine_limits(target, 2).confirmed
    assert machine_limits(target, 2).confirmed
    assert probe.calls == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps(json.loads(text) | {"numbers": GOOD | {"peak_flops": -510e9}}),
        lambda text: json.dumps(json.loads(text) | {"numbers": GOOD | {"clock_hz": 10**400}}),
        lambda text: json.dumps(json.loads(text) | {"attempts": "1"}),
        lambda text: json.dumps(json.loads(text) | {"machine": "another CPU"}),
        lambda text: json.dumps(json.loads(text) | {"numbers": GOOD | {"clock_hz": float("nan")}}),
        lambda text: json.dumps(json.loads(text) | {"numbers": GOOD | {"clock_hz": "4e9"}}),
        lambda text: json.dumps(json.loads(text) | {"numbers": {"clock_hz": 4e9}}),
        lambda text: json.dumps(json.loads(text) | {"numbers": GOOD | {"more": 1.0}}),
        lambda text: "\ufffe",
    ],
)
def test_a_bad_cache_is_probed_again(damage, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = install(monkeypatch, scaled(GOOD, target))
    good = machine_limits(target, 2)
    path = cache_file(tmp_path)
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    assert machine_limits(target, 2) == good
    assert probe.calls == 2
    assert machine_limits(target, 2) == good
    assert probe.calls == 2


def test_bytes_that_are_no_text_are_a_bad_cache(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = install(monkeypatch, scaled(GOOD, target))
    machine_limits(target, 2)
    cache_file(tmp_path).write_bytes(b"\xff\xfe\x00")
    machine_limits(target, 2)
    assert probe.calls == 2


def test_a_cache_that_cannot_be_written_is_noted(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calumma").write_text("a file where the directory should be")
    install(monkeypatch, scaled(GOOD, target))
    limits = machine_limits(target, 2)
    assert limits.confirmed
    assert "not cached" in limits.note


def test_writing_is_atomic(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, scaled(GOOD, target), scaled(DISTURBED, target))
    machine_limits(target, 2)
    before = cache_file(tmp_path).read_text()

    def fail(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    assert "disk full" in machine_limits(target, 2, refresh=True).note
    assert cache_file(tmp_path).read_text() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cache_file(tmp_path)]


def test_a_cpu_that_is_not_at_hand_is_estimated(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = install(monkeypatch, GOOD)
    other, host = tvm_compat.target_for("skylake-avx512"), tvm_compat.target_for("x86-64")
    monkeypatch.setattr(tvm_compat, "target_for", lambda: host)
    limits = machine_limits(other, 4)
    assert limits.estimated
    assert not limits.confirmed
    assert "skylake-avx512" in limits.note
    assert limits.peak_flops == 4 * 16 * 4 * limits.clock_hz
    assert limits.dram_bandwidth < limits.l3_bandwidth < limits.l2_bandwidth
    assert probe.calls == 0
    assert not list(tmp_path.rglob("*.json"))


def test_a_failed_probe_gives_an_estimate_that_says_why(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, roofline._ProbeFailed("the probe ended with status -4: illegal instruction"))
    limits = machine_limits(target, 2)
    assert limits.estimated
    assert "illegal instruction" in limits.note
    assert not list(tmp_path.rglob("*.json"))


def test_a_failed_repetition_keeps_what_is_known(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, scaled(GOOD, target), roofline._ProbeFailed("out of memory"))
    good = machine_limits(target, 2)
    again = machine_limits(target, 2, refresh=True)
    assert again.peak_flops == good.peak_flops
    assert not again.estimated
    assert "out of memory" in again.note


def test_no_threads_is_refused(target: Target) -> None:
    with pytest.raises(InputError, match="0 threads"):
        machine_limits(target, 0)
