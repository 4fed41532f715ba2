"""Design spaces: one template per operator family, chosen by what a PrimFunc computes.

Tried in this order: the template of the annotated anchor operator (convolutions, matrix products), then by structure:
row-wise functions, dense reductions (the space that MetaSchedule generates), other reductions, injective functions, and
a fallback that schedules anything.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from calumma.core.errors import InputError
from calumma.space import blocks, fallback, generated, injective, reduction, rows
from calumma.space.alternatives import AlternativesSpace
from calumma.space.base import Knob, KnobSpace, Repacking
from calumma.space.conv2d import Conv2dSpace
from calumma.space.depthwise import DepthwiseSpace
from calumma.space.matmul import MatmulSpace
from calumma.space.winograd import WinogradSpace
from calumma.target import Target

__all__ = ["Knob", "KnobSpace", "Repacking", "design_space", "register", "template_versions"]


def _convolution(func: tirx.PrimFunc, target: Target, threads: int) -> KnobSpace:
    """Direct convolutions, and Winograd's algorithm where it applies."""
    direct = Conv2dSpace(func, target, threads)
    if not WinogradSpace.matches(func):
        return direct
    winograd = {f"winograd{m}": WinogradSpace(func, target, threads, m) for m in (2, 4)}
    return AlternativesSpace({"direct": direct, **winograd})


_BY_ANCHOR: dict[str, Callable[[tirx.PrimFunc, Target, int], KnobSpace]] = {
    "conv2d": _convolution,
    "depthwise_conv2d": DepthwiseSpace,
    "matmul": MatmulSpace,
}
_BY_STRUCTURE = (
    (rows.matches, rows.RowsSpace),
    (generated.matches, generated.GeneratedSpace),
    (reduction.matches, reduction.ReductionSpace),
    (injective.matches, injective.InjectiveSpace),
    (fallback.matches, fallback.FallbackSpace),
)


def design_space(func: tirx.PrimFunc, target: Target, threads: int) -> KnobSpace:
    """Return the design space of a fused PrimFunc with static shapes.

    Args:
        func: the unscheduled function.
        target: the CPU it is compiled for: vector width, registers, caches.
        threads: threads the code will run on; the space itself does not depend on it, defaults and features do.
    """
    anchor = blocks.find_anchor(blocks.schedule_of(func))
    if anchor is not None and anchor[1] in _BY_ANCHOR:
        return _BY_ANCHOR[anchor[1]](func, target, threads)
    for matches, space in _BY_STRUCTURE:
        if matches(func):
            return space(func, target, threads)
    raise AssertionError("the fallback template takes every function")


def template_versions() -> dict[str, int]:
    """Version of every template of this package, by name."""
    spaces = (Conv2dSpace, DepthwiseSpace, MatmulSpace, *(space for _, space in _BY_STRUCTURE))
    return {space.template: space.version for space in spaces}


def register(operator: str, make: Callable[[tirx.PrimFunc, Target, int], KnobSpace]) -> None:
    """Let `design_space` call `make` for functions whose anchor is annotated with `operator`, in this process.

    For templates outside of this package. Workers build spaces too: give their runner a `space_entry` in the module
    that registers the template when it is imported.

    Raises:
        InputError: the operator has a template already.
    """
    if operator in _BY_ANCHOR:
        raise InputError(f"operator {operator!r} has a template already: change that one, or choose another name")
    _BY_ANCHOR[operator] = make
