"""How a tuning session spends its budget."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TuningSettings:
    """The defaults are what `calumma tune` uses."""

    round_size: int = 8
    """Candidates of one round, all tasks together: enough to keep two build workers busy."""
    candidate_s: float = 0.25
    """What a candidate costs, until the session's own are known."""
    task_share: int = 2
    """Candidates a task gets at a time within a round."""
    defaults_share: float = 0.35
    """At most this part of the budget goes to measuring defaults first; the tasks left over, the smallest, wait."""
    final_share: float = 0.15
    """At most this part of the seconds is kept for the final check."""
    contest_s: float = 4.0
    """Seconds kept for running the tuned model against the default one; building both comes on top, as it would at the
    end."""
    contest_share: float = 0.1
    """At most this part of the seconds is kept for that."""
    near_bound: float = 0.95
    """A task whose roofline bound / latency reaches this is finished."""
    min_gain: float = 0.01
    """A candidate becomes the new best (and is verified) if it is faster by more than this part of the latency."""
    rivals: int = 3
    """Tuned configurations of a task that may enter the final check."""
    rival_margin: float = 0.05
    """Only those within this part of the best enter."""
    final_passes: int = 3
    """Alternations of the final check; the last ones are for what is still undecided."""
    unchecked_gain: float = 0.03
    """Where no time was left for the final check, a schedule is kept if it was faster than the default by this part."""
    transfer: bool = True
    """Tasks of one template share a cost model and try each other's winners."""
    hints: int = 3
    """Winners of similar tasks that a task tries at most."""
    hopeless: int = 16
    """A task none of whose first trials worked is given up after this many."""
