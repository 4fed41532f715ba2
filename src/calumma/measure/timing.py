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
DISTURBED_SLOWER = 3.0
"""The same as long as all its repetitions were disturbed: the system may leave two threads of the pool on one core for
many milliseconds, which doubles the latency of the best candidate too."""
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
PATIENCE_S = 0.4
"""The same while other processes take the cores: repetitions they disturbed do not count if enough others are found."""
SMALL_CHUNK = 4
"""Repetitions of a chunk once one was disturbed."""
HOT_REPETITION_S = 1e-3
"""A repetition of a hot kernel lasts this long at least: the clock's resolution (some 30 ns) does not matter."""


def calls_per_repetition(first_s: float, cache_state: str) -> int:
    """Return how many back-to-back calls make one repetition of a kernel whose first call took `first_s` seconds.

    Unless caches are hot, a repetition is a single call: the second would find its arguments nearer than the first.
    """
    if cache_state != "hot":
        return 1
    return max(1, math.ceil(HOT_REPETITION_S / max(first_s, 1e-6)))


def given_up(latencies_s: Sequence[float]) -> bool:
    """Whether a measurement ended before its spread was looked at although there was time: it was taken for lost.

    Of such a candidate the latency is not known, only that something made it slow: itself, or its surroundings.
    """
    return len(latencies_s) < LEAST and LEAST * median(latencies_s) <= LIMIT_S


def standard_error(latencies_s: Sequence[float]) -> float:
    """Standard error of the median relative to the median, from the median absolute deviation."""
    middle = median(latencies_s)
    spread = 1.4826 * median(abs(t - middle) for t in latencies_s)
    return 1.2533 * spread / math.sqrt(len(latencies_s)) / middle


def repeat_adaptively(
    sample: Callable[[int], Sequence[float]],
    best_s: float | None,
    clock: Callable[[], float] = time.perf_counter,
    preemptions: Callable[[], int] = lambda: 0,
) -> tuple[float, ...]:
    """Time a kernel until its median is known well enough.

    Args:
        sample: times the kernel n times, seconds per repetition.
        best_s: b, None when nothing is known of the workload.
        clock: seconds, for the limit on the whole.
        preemptions: how often another process has taken a core from this one so far. A chunk of
            repetitions during which that happened is left out, unless too few others were found in `PATIENCE_S`.

    Returns:
        Repetitions in seconds, in order.
    """
    start = clock()
    clean: list[float] = []
    disturbed: list[float] = []

    def take(n: int) -> None:
        before = preemptions()
        values = sample(n)
        (clean if preemptions() == before else disturbed).extend(values)

    def known() -> list[float]:
        enough = len(clean) >= (LEAST if disturbed else FIRST) or len(clean) > len(disturbed)
        return clean if clean and enough else [*clean, *disturbed]

    def lost() -> bool:
        return best_s is not None and min(known()) > (SLOWER if clean else DISTURBED_SLOWER) * best_s

    take(1)
    if not lost() or clock() - start < LIMIT_S / FIRST:
        take(FIRST - 1)
    while len(clean) < MOST:
        elapsed = clock() - start
        limit = PATIENCE_S if disturbed and len(clean) < LEAST else LIMIT_S
        if elapsed >= limit or lost():
            break
        wanted = NEAR_ERROR if best_s is None or median(known()) < NEAR * best_s else FAR_ERROR
        if len(clean) >= LEAST and standard_error(clean) <= wanted:
            break
        each = elapsed / (len(clean) + len(disturbed))
        chunk = LEAST - len(clean) if len(clean) < LEAST else int(CHUNK_S / each)
        affordable = int((limit - elapsed) / each)
        most = SMALL_CHUNK if disturbed else MOST  # one disturbance costs the whole chunk
        take(max(1, min(chunk, affordable, most, MOST - len(clean))))
    return tuple(known())
