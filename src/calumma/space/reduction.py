"""Template of functions around one reduction: pooling, sums and means, with what is fused before and after them.

Producers are inlined into the reduction, consumers into the output. A tile of outputs is computed at a time: vectors
along the last axis, and several neighbours as independent accumulators, enough to hide the latency of the adder.

Where the last axis is too short for a vector and the reduced axis is contiguous in memory, the reduced axis is split
into one partial result per lane instead (rfactor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx

from calumma.core.values import KnobValue
from calumma.space import loops
from calumma.space.base import Knob
from calumma.target import Target

_TILES = (1, 2, 4, 8)
_MOST_UNROLLED = 256
"""Most taps that any configuration unrolls: a mean over 112 x 112, written out, takes more than 10 s to compile."""


def matches(func: tirx.PrimFunc) -> bool:
    """Whether exactly one stage reduces, one stage is the output, and the others can be inlined into these two."""
    if not loops.is_regular(func):
        return False
    sch = s_tir.Schedule(func)
    blocks = loops.blocks_of(sch)
    kept = any(loops.KEEP in sch.get(block).annotations for block in blocks)
    outputs = sum(not sch.get_consumers(block) for block in blocks)
    if kept or outputs != 1 or sum(loops.is_reduction(sch, block) for block in blocks) != 1:
        return False
    sch, reduction, _ = _prepared(func)
    return len(loops.blocks_of(sch)) == 2 and bool(sch.get(reduction).writes[0].region)  # a scalar has no axis to tile


class ReductionSpace(loops.LoopSpace):
    """Knobs: threads, loops they share, tile of accumulators, unrolled reduction loops, lanes of partial results."""

    template = "reduction"
    version = 1

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int = 1) -> None:
        sch, reduction, output = _prepared(func)
        self.outputs = loops.extents(sch, sch.get_loops(output))
        node = sch.get(reduction)
        axes = [iv for iv in node.iter_vars if iv.iter_type == tirx.IterVar.CommReduce]
        self.reduced = [int(iv.dom.extent) for iv in axes]
        along = loops.reads_along(sch, reduction, axes[-1].var)
        across = loops.reads_along(sch, reduction, node.writes[0].region[-1].min)
        self.vector = 1 if along and not across else loops.vector_width(self.outputs[-1], target.lanes)
        narrow = along and self.vector < target.lanes // 2
        partials = loops.lane_factors(self.reduced[-1], target.lanes) if narrow else ()
        self.outer = [*self.outputs[:-1], self.outputs[-1] // self.vector]
        super().__init__(
            func,
            target,
            threads,
            (
                Knob("parallel", (0, 1)),
                Knob("fused", tuple(range(1, len(self.outer) + 1))),
                Knob("tile", tuple(t for t in _TILES if self._tiled(t))),
                Knob("unroll", tuple(n for n, taps in enumerate(self._tails()) if taps <= _MOST_UNROLLED)),
                Knob("partials", (1, *partials)),
            ),
        )

    def _tiled(self, tile: int) -> bool:
        """Whether the innermost outer axis that is not 1 divides into tiles."""
        return tile == 1 or self.outer[self._tile_axis()] % tile == 0

    def _tile_axis(self) -> int:
        return max((i for i, extent in enumerate(self.outer) if extent > 1), default=0)

    def _tails(self) -> list[int]:
        """Taps that the n innermost reduced loops have, n from 0."""
        return [math.prod(self.reduced[len(self.reduced) - n :]) for n in range(len(self.reduced) + 1)]

    def default_config(self) -> dict[str, KnobValue]:
        tiles = [int(v) for v in self.knobs[2].values]
        costs = self.target.costs.loops
        outer = list(self.outer)
        partials = int(self.knobs[4].values[-1])
        if partials > self.target.lanes and self.reduced[-1] < costs.partial_steps * partials:
            partials = int(self.knobs[4].values[1])
        tile = 1 if partials > 1 else max(t for t in tiles if t <= costs.reduction_tile)
        outer[self._tile_axis()] //= tile
        unroll = 0
        while unroll < len(self.reduced) and math.prod(self.reduced[-unroll - 1 :]) * tile <= costs.unrolled_taps:
            unroll += 1
        return {
            "parallel": int(self.worth_threads),
            "fused": loops.parallel_depth(outer, self.threads),
            "tile": tile,
            "unroll": unroll,
            "partials": partials,
        }

    def derived(self, columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Parallel iterations, unrolled taps, and the length of one accumulator's chain."""
        products = np.cumprod([1, *self.outer])
        unrolled = np.array(self._tails())[columns["unroll"]]
        return {
            "shares": np.where(columns["parallel"] == 1, products[columns["fused"]], 1),
            "unrolled": unrolled * columns["tile"],
            "chain": math.prod(self.reduced) / columns["partials"],
        }

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        sch, reduction, output = _prepared(self.func)
        partials = int(config["partials"])
        partial = []
        if partials > 1:
            *_, last = sch.get_loops(reduction)
            _, lane = sch.split(last, [None, partials])
            partial.append(sch.rfactor(lane, len(sch.get(reduction).writes[0].source.shape)))
        axes = sch.get_loops(output)
        tile_axis, tile = self._tile_axis(), int(config["tile"])
        outer = list(axes)
        inner = []
        if self.vector > 1:
            outer[-1], vector = sch.split(axes[-1], [None, self.vector])
            inner = [vector]
        if tile > 1:
            outer[tile_axis], tiled = sch.split(outer[tile_axis], [None, tile])
            inner = [tiled, *inner]
        if tile > 1 or self.vector > 1:
            sch.reorder(*outer, *inner)
        for block in (reduction, *partial):
            sch.compute_at(block, outer[-1], preserve_unit_loops=True)
        if self.vector > 1:
            sch.vectorize(inner[-1])
        if tile > 1:
            sch.unroll(inner[0])
        if config["parallel"]:
            shared = outer[: int(config["fused"])]
            sch.parallel(sch.fuse(*shared) if len(shared) > 1 else shared[0])
        unroll = int(config["unroll"])
        for block in partial:
            loops.accumulate(sch, block, self.target.lanes, unroll)
        loops.accumulate(sch, reduction, self.target.lanes, 0 if partial else unroll)
        return sch


def _prepared(func: tirx.PrimFunc) -> tuple[s_tir.Schedule, Any, Any]:
    """A schedule with two blocks, the reduction and the output that reads it."""
    sch = s_tir.Schedule(func)
    inlining = loops.Inlining(sch)
    reduction = next(block for block in loops.blocks_of(sch) if loops.is_reduction(sch, block))
    for block in loops.blocks_of(sch):
        if sch.get_consumers(block) and loops.is_spatial(sch, block):
            inlining.inline(block)
    if not sch.get_consumers(reduction):
        return sch, reduction, sch.cache_write(reduction, 0, "global")
    return sch, reduction, loops.blocks_of(sch)[-1]
