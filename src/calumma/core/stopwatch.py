"""Seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Charges every second to one phase. Phases nest: the inner one stops the outer one until it ends."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, between: str | None = None) -> None:
        """Start.

        Args:
            clock: seconds since some moment; never goes back.
            between: phase of the time outside all others, so that all sum to the time elapsed; None charges it to none.
        """
        self.clock = clock
        self._charged: dict[str, float] = {}
        self._running = [] if between is None else [between]
        self._mark = clock()

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._settle()
        return dict(self._charged)

    @contextmanager
    def charge(self, phase: str) -> Iterator[None]:
        """Charge the seconds inside to `phase`."""
        self._settle()
        self._running.append(phase)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def add(self, phase: str, seconds: float) -> None:
        """Charge seconds to a phase, or, where they are negative, take them from it."""
        self._charged[phase] = self._charged.get(phase, 0.0) + seconds

    def restart(self) -> None:
        """Forget what was charged; time counts from now."""
        self._charged.clear()
        self._mark = self.clock()

    def _settle(self) -> None:
        now = self.clock()
        if self._running:
            self.add(self._running[-1], now - self._mark)
        self._mark = now
