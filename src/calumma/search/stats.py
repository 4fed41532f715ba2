"""What a search has cost so far: steps, plans and seconds by phase."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from calumma.core.stopwatch import Stopwatch


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
    updates: list[PolicyUpdate] = field(default_factory=list)
    """One entry per update of the policy, oldest first; stays empty without a policy."""
    _stopwatch: Stopwatch = field(default_factory=Stopwatch, init=False, repr=False, compare=False)

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Count the seconds from now on, from zero, by another clock."""
        self._stopwatch = Stopwatch(clock)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase: "fit" and "score" (cost model), "policy" (learning to explore), "sampling" (which to
        measure) and "explore" (the rest)."""
        return self._stopwatch.phases_s

    @property
    def total_s(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    def charge(self, phase: str) -> AbstractContextManager[None]:
        """Charge the seconds inside to `phase`; a phase inside another stops the outer one."""
        return self._stopwatch.charge(phase)
