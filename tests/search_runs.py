"""Hand-made runs of strategies, for tests of the benchmarks that compare them."""

from __future__ import annotations

from benchmarks.curves import Improvement, Run


def run(strategy, *improvements, workload="w", seed=0, seconds=100.0, steps=1000, budget=256, **more):
    """A run; an improvement is (trial, seconds, steps, throughput)."""
    found = tuple(Improvement(trial, at, done, 1 / throughput) for trial, at, done, throughput in improvements)
    phases = {
        "build": 0.5 * seconds,
        "run": 0.3 * seconds,
        "search": 0.1 * seconds,
        "model": 0.1 * seconds,
        "other": 0.0,
    }
    more = {"trials": budget, "failed": 0, "phases_s": phases, **more}
    return Run(workload, strategy, seed, budget, seconds=seconds, steps=steps, improvements=found, **more)


BASE = run("autotvm", (1, 1.0, 10, 50), (100, 40.0, 500, 99.5), (200, 80.0, 900, 100.0))
QUICK = run("chameleon", (1, 1.0, 10, 50), (20, 10.0, 100, 99.2), (40, 16.0, 120, 105.0), seconds=50.0)
NEVER = run("random", (1, 1.0, 0, 50), (10, 5.0, 0, 90.0), steps=0)
