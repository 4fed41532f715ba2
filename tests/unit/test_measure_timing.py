"""Adaptive repetition, on a simulated kernel and clock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from calumma.measure import timing


class SimulatedKernel:
    """Latencies from a generator; every call also moves the clock, by `overhead_s` more than it took."""

    def __init__(self, latency_s: float, spread: float, overhead_s: float = 0.0) -> None:
        self.now_s = 0.0
        self._latency_s, self._spread, self._overhead_s = latency_s, spread, overhead_s
        self._rng = np.random.default_rng(0)

    def sample(self, n: int) -> Sequence[float]:
        latencies = self._latency_s * (1 + self._spread * self._rng.random(n))
        self.now_s += float(latencies.sum()) + n * self._overhead_s
        return latencies.tolist()

    def measure(self, best_s: float | None = None) -> tuple[float, ...]:
        return timing.repeat_adaptively(self.sample, best_s, lambda: self.now_s)


def test_a_steady_kernel_stops_once_its_spread_is_small() -> None:
    assert len(SimulatedKernel(1e-3, 0.001).measure()) == timing.LEAST


def test_a_noisy_kernel_is_measured_longer() -> None:
    assert timing.LEAST < len(SimulatedKernel(1e-4, 0.5).measure()) <= timing.MOST


def test_a_clearly_slower_kernel_stops_at_the_first_decision() -> None:
    assert len(SimulatedKernel(1.6e-3, 0.001).measure(best_s=1e-3)) == timing.FIRST


def test_a_very_slow_kernel_that_has_lost_runs_once() -> None:
    assert len(SimulatedKernel(2.0, 0.001).measure(best_s=1e-3)) == 1


def test_an_equal_kernel_is_measured_as_without_a_best() -> None:
    assert len(SimulatedKernel(1e-3, 0.2).measure(1e-3)) == len(SimulatedKernel(1e-3, 0.2).measure())


def test_the_time_limit_holds_with_overhead() -> None:
    kernel = SimulatedKernel(1e-3, 0.9, overhead_s=4e-3)
    kernel.measure()
    assert kernel.now_s <= timing.LIMIT_S + timing.CHUNK_S


def test_standard_error_of_a_normal_sample() -> None:
    values = np.random.default_rng(1).normal(1.0, 0.1, 4000).tolist()
    assert timing.standard_error(values) == pytest.approx(1.2533 * 0.1 / np.sqrt(4000), rel=0.1)


def test_calls_per_repetition() -> None:
    assert timing.calls_per_repetition(5e-6, "cold") == 1
    assert timing.calls_per_repetition(5e-6, "hot") == 200
    assert timing.calls_per_repetition(0.1, "hot") == 1


class SharedCore(SimulatedKernel):
    """Another process takes the core during every call whose number `takes` says so: that call takes twice as long."""

    def __init__(self, takes) -> None:
        super().__init__(1e-3, 0.001)
        self._takes, self.calls, self.preemptions = takes, 0, 0

    def sample(self, n: int) -> Sequence[float]:
        latencies = super().sample(n)
        self.calls += 1
        if not self._takes(self.calls):
            return latencies
        self.preemptions += 1
        self.now_s += sum(latencies)
        return [2 * latency for latency in latencies]

    def measure(self, best_s: float | None = None) -> tuple[float, ...]:
        return timing.repeat_adaptively(self.sample, best_s, lambda: self.now_s, lambda: self.preemptions)


def test_repetitions_that_another_process_disturbed_do_not_count() -> None:
    kernel = SharedCore(lambda call: call % 2)
    latencies = kernel.measure()
    assert len(latencies) >= timing.LEAST and max(latencies) < 1.1e-3


def test_a_machine_that_is_never_quiet_is_measured_all_the_same() -> None:
    kernel = SharedCore(lambda call: True)
    latencies = kernel.measure()
    assert len(latencies) >= timing.LEAST and min(latencies) > 1.9e-3
    assert timing.LIMIT_S < kernel.now_s <= timing.PATIENCE_S + 2 * timing.MOST * 2e-3


def test_a_candidate_that_lost_on_a_busy_machine_stops_early() -> None:
    kernel = SharedCore(lambda call: True)
    assert len(kernel.measure(best_s=0.6e-3)) == timing.FIRST


def test_threads_that_shared_a_core_at_first_do_not_cost_a_candidate_its_chance() -> None:
    kernel = SharedCore(lambda call: call <= 3)
    latencies = kernel.measure(best_s=1e-3)
    assert len(latencies) >= timing.LEAST and max(latencies) < 1.1e-3
