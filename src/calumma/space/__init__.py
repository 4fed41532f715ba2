"""Design spaces: knobs, what templates share, and the templates that go by a function's structure alone.

Operator families bring templates of their own (`calumma.operators`), which are asked first. What they leave is tried in
this order: dense reductions (the space that MetaSchedule generates), other reductions, injective functions, and a
fallback that schedules anything.
"""

from __future__ import annotations

from tvm import tirx

from calumma.space import fallback, generated, injective, reduction
from calumma.space.base import Knob, KnobSpace, Repacking
from calumma.target import Target

__all__ = ["STRUCTURAL_TEMPLATES", "Knob", "KnobSpace", "Repacking", "structural_space"]

_BY_STRUCTURE = (
    (generated.matches, generated.GeneratedSpace),
    (reduction.matches, reduction.ReductionSpace),
    (injective.matches, injective.InjectiveSpace),
    (fallback.matches, fallback.FallbackSpace),
)
STRUCTURAL_TEMPLATES = tuple(space for _, space in _BY_STRUCTURE)


def structural_space(func: tirx.PrimFunc, target: Target, threads: int) -> KnobSpace:
    """The design space of a function that no operator family schedules."""
    for matches, space in _BY_STRUCTURE:
        if matches(func):
            return space(func, target, threads)
    raise AssertionError("the fallback template takes every function")
