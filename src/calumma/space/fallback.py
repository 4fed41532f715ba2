"""Template of whatever has no other: always right, seldom the fastest.

Elementwise stages are inlined where TVM allows it; of each remaining stage the outermost loop runs in parallel and the
innermost in vectors where TVM finds that legal. Anything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import s_tir, tirx

from calumma.core.values import KnobValue
from calumma.space import loops
from calumma.space.base import Knob
from calumma.target import Target


def matches(func: tirx.PrimFunc) -> bool:
    """Everything."""
    return True


class FallbackSpace(loops.LoopSpace):
    """Knobs: threads and vector width."""

    template = "fallback"
    version = 1

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int = 1) -> None:
        knobs = (Knob("parallel", (0, 1)), Knob("vector", (target.lanes, 1)))
        super().__init__(func, target, threads, knobs)

    def default_config(self) -> dict[str, KnobValue]:
        return {"parallel": int(self.worth_threads), "vector": self.target.lanes}

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        sch = s_tir.Schedule(self.func)
        inlining = loops.Inlining(sch)
        for block in loops.blocks_of(sch):
            if sch.get_consumers(block) and loops.is_spatial(sch, block):
                inlining.inline(block)
        for block in loops.blocks_of(sch):
            own = sch.get_loops(block)
            if not own:
                continue
            if loops.is_spatial(sch, block) and len(own) > 1:
                self._try(
                    sch, lambda block=block, loop=own[-1]: loops.vectorize(sch, block, loop, int(config["vector"]))
                )
            if config["parallel"]:
                self._try(sch, lambda loop=own[0]: sch.parallel(loop))
        return sch

    @staticmethod
    def _try(sch: s_tir.Schedule, step: Any) -> None:
        """Apply a step that TVM checks itself; one it refuses changes nothing."""
        try:
            step()
        except s_tir.ScheduleError:
            return
