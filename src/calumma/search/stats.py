"""What a search has cost so far: steps, plans and seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PolicyUpdate:
    """What one update of an exploration policy did, averaged over its minibatches."""

    approximate_kl: float
    """Mean of (r - 1) - log r over the ratios r of new to old probabilities: how far the policy moved."""
    clip_fraction: float
    """Share of the ratios outside the clipping range."""
    entropy: float
    """Mean entropy per knob in nats, of the knobs that can move; log 3 for a policy that knows nothing."""
    explained_variance: float
    """1 - Var(return - value) / Var(return) before the update: 1 for a perfect critic, 0 for a useless one."""
    episode_return: float
    """Mean over the walkers of the summed rewards since the last update."""
    policy_loss: float
    value_loss: float


@dataclass
class SearchStats:
    """Counters of one strategy; they only grow."""

    steps: int = 0
    """Configurations scored by the cost model."""
    plans: int = 0
    """Explorations of the space."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase: "fit" and "score" (cost model), "policy" (learning to explore), "sampling" (which to measure)
    and "explore" (the rest)."""
    updates: list[PolicyUpdate] = field(default_factory=list)
    """One entry per update of the policy, oldest first; stays empty without a policy."""

    def __post_init__(self) -> None:
        self._running: list[str] = []
        self._mark = 0.0

    @property
    def total_s(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    @contextmanager
    def charge(self, phase: str) -> Iterator[None]:
        """Charge the seconds inside to `phase`; a phase inside another stops the outer one."""
        self._settle()
        self._running.append(phase)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._running:
            phase = self._running[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._mark
        self._mark = now
