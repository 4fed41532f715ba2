"""How often a kernel is timed: few repetitions for one that has clearly lost, enough for one near the best.

Notation: t_1 .. t_n repetitions in seconds, m their median, b the best latency known for the workload (or none).
The standard error of a median of n values with robust spread s = 1.4826 MAD is 1.2533 s / sqrt(n).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

SLOWER = 1.5
"""A candidate whose fastest repetition exceeds b by this factor has lost: its exact latency does not matter."""
NEAR = 1.15
"""Up to this factor of b the order of candidates is decided, so they are measured to `NEAR_ERROR`."""
NEAR_ERROR = 0.005
FAR_ERROR = 0.02
"""Relative standard error of the median at which measuring stops, near the best and elsewhere."""
FIRST = 3
LEAST = 12
MOST = 100
"""Repetitions: before the first decision, before the spread is trusted, at most."""
LIMIT_S = 0.1
"""Seconds spent on one candidate, unless the first repetitions alone take longer."""
CHUNK_S = 0.02
"""Seconds between two looks at the spread."""
HOT_REPETITION_S = 1e-3
"""A repetition of a hot kernel lasts this long at least: the clock's resolution (some 30 ns) does not matter."""


def calls_per_repetition(first_s: float, cache_state: str) -> int:
    """Return how many back-to-back calls make one repetition of a kernel whose first call took `first_s` seconds.

    A cold repetition is a single call: the second would find its weights in the cache.
    """
    if cache_state == "cold":
        return 1
    return max(1, math.ceil(HOT_REPETITION_S / max(first_s, 1e-6)))


def standard_error(latencies_s: Sequence[float]) -> float:
    """Standard error of the median relative to the median, from the median absolute deviation."""
    middle = median(latencies_s)
    spread = 1.4826 * median(abs(t - middle) for t in latencies_s)
    return 1.2533 * spread / math.sqrt(len(latencies_s)) / middle


def repeat_adaptively(
    sample: Callable[[int], Sequence[float]], best_s: float | None, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Time a kernel until its median is known well enough.

    Args:
        sample: times the kernel n times, seconds per repetition.
        best_s: b, None when nothing is known of the workload.
        clock: seconds, for the limit on the whole.

    Returns:
        All repetitions in seconds, in order.
    """
    start = clock()
    latencies = list(sample(1))
    if best_s is None or latencies[0] < SLOWER * best_s or clock() - start < LIMIT_S / FIRST:
        latencies += sample(FIRST - 1)
    while len(latencies) < MOST:
        elapsed = clock() - start
        if elapsed >= LIMIT_S or (best_s is not None and min(latencies) > SLOWER * best_s):
            break
        wanted = NEAR_ERROR if best_s is None or median(latencies) < NEAR * best_s else FAR_ERROR
        if len(latencies) >= LEAST and standard_error(latencies) <= wanted:
            break
        each = elapsed / len(latencies)
        chunk = LEAST - len(latencies) if len(latencies) < LEAST else int(CHUNK_S / each)
        affordable = int((LIMIT_S - elapsed) / each)
        latencies += sample(max(1, min(chunk, affordable, MOST - len(latencies))))
    return tuple(latencies)
