"""Template of functions in several stages over the same rows: softmax, layer normalisation, and what is fused with
them.

All stages are computed for one row before the next row begins, so that a row stays in the first-level cache; rows are
shared out among threads; every stage runs in vectors. A *row* is the deepest loop of the output at which no stage would
be computed twice.
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

_CHEAP_OPERATIONS = 4
"""Operations of a stage that is computed again by each of its readers rather than stored."""


def matches(func: tirx.PrimFunc) -> bool:
    """Whether there is one output, and several reductions, or one that serves many elements, or a stage to be kept."""
    if not loops.is_regular(func):
        return False
    sch = s_tir.Schedule(func)
    blocks = loops.blocks_of(sch)
    outputs = [block for block in blocks if not sch.get_consumers(block)]
    reductions = [block for block in blocks if loops.is_reduction(sch, block)]
    if len(outputs) != 1:
        return False
    if len(reductions) == 1:
        return loops.results(sch, outputs[0]) > loops.results(sch, reductions[0])
    return bool(reductions) or any(loops.KEEP in sch.get(block).annotations for block in blocks)


class RowsSpace(loops.LoopSpace):
    """Knobs: threads, vector width, unrolled reduction loops."""

    template = "rows"
    version = 2

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int = 1) -> None:
        self.lanes = target.lanes
        sch = _prepared(func, self.lanes)
        self.outputs = loops.extents(sch, _axes(sch, loops.blocks_of(sch)[-1], self.lanes))
        self.row = _deepest_row(func, self.lanes)
        super().__init__(
            func,
            target,
            threads,
            (
                Knob("parallel", (0, 1)),
                Knob("vector", (self.lanes, self.lanes // 2, 2 * self.lanes)),
                Knob("unroll", (0, 1)),
            ),
        )

    def default_config(self) -> dict[str, KnobValue]:
        rows = math.prod(self.outputs[: self.row])
        return {
            "parallel": int(self.worth_threads and (rows > 1 or not self.row)),
            "vector": self.lanes,
            "unroll": 0,
        }

    def derived(self, columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Rows, and elements of the output in each."""
        rows = math.prod(self.outputs[: self.row])
        shape = columns["parallel"].shape
        return {"rows": np.full(shape, rows), "row_elements": np.full(shape, math.prod(self.outputs) / rows)}

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        sch = _prepared(self.func, self.lanes)
        *stages, output = loops.blocks_of(sch)
        depth = self.row
        axes = _axes(sch, output, self.lanes)
        _compute_rows(sch, stages, axes, depth)
        vector = int(config["vector"])
        spatial = [block for block in stages if not loops.is_reduction(sch, block)]
        reductions = [block for block in stages if loops.is_reduction(sch, block)]
        for block in (*spatial, output):
            _vectorize(sch, block, depth, vector)
        if config["parallel"] and depth:
            shared = axes[:depth]
            sch.parallel(sch.fuse(*shared) if depth > 1 else shared[0])
        elif config["parallel"]:
            for block in (*spatial, output):
                self._share(sch, block)
        for block in reductions:
            loops.accumulate(sch, block, vector, int(config["unroll"]))
        return sch

    def _share(self, sch: s_tir.Schedule, block: Any) -> None:
        """Share the outer loops of a stage that has all its rows to itself."""
        own = sch.get_loops(block)
        outer = [loop for loop in own if sch.get(loop).kind == tirx.ForKind.SERIAL][: len(sch.get(block).iter_vars) - 1]
        if outer:
            shared = outer[: loops.parallel_depth(loops.extents(sch, outer), self.threads)]
            sch.parallel(sch.fuse(*shared) if len(shared) > 1 else shared[0])


def _vectorize(sch: s_tir.Schedule, block: Any, depth: int, vector: int) -> None:
    """Vectorise a spatial stage along its last axis, unless it only gathers there: a value per row, then."""
    inner = sch.get_loops(block)[depth:]
    variable = sch.get(block).iter_vars[-1].var
    if inner and loops.walks_along(sch, block, variable):
        loops.vectorize(sch, block, inner[-1], vector)


def _prepared(func: tirx.PrimFunc, lanes: int) -> s_tir.Schedule:
    """Cheap producers inlined, epilogues inlined into the output, contiguous reductions split into lanes."""
    sch = s_tir.Schedule(func)
    inlining = loops.Inlining(sch)
    for block in loops.blocks_of(sch):
        consumers = sch.get_consumers(block)
        if not consumers or not loops.is_spatial(sch, block) or loops.KEEP in sch.get(block).annotations:
            continue
        if loops.has_reduction_before(sch, block):
            # A value per row stays stored; it would be computed again for every element.
            wanted = len(consumers) == 1 and loops.points(sch, block) >= loops.points(sch, consumers[0])
            wanted = wanted and loops.is_spatial(sch, consumers[0])
        else:
            wanted = len(consumers) == 1 or loops.operations(sch, block) <= _CHEAP_OPERATIONS
        if wanted:
            inlining.inline(block)
    for block in loops.blocks_of(sch):
        if loops.is_reduction(sch, block):
            if not sch.get_consumers(block):
                sch.cache_write(block, 0, "global")
            _split_into_lanes(sch, block, lanes)
    return sch


def _split_into_lanes(sch: s_tir.Schedule, block: Any, lanes: int) -> None:
    node = sch.get(block)
    last = node.iter_vars[-1]
    written = [part.min for part in node.writes[0].region][-1:]  # none of a lone row, whose result is a scalar
    inner = [int(iv.dom.extent) for iv in node.iter_vars if any(iv.var.same_as(place) for place in written)]
    if (inner and inner[0] >= lanes // 2) or not loops.reads_along(sch, block, last.var):
        return
    factors = loops.lane_factors(int(last.dom.extent), lanes)
    if factors:
        _, lane = sch.split(sch.get_loops(block)[-1], [None, factors[0]])
        partial = sch.rfactor(lane, len(node.writes[0].source.shape))
        if not written:  # as the variables of the block: nothing computes a lone row at a loop of another one
            steps, lane = sch.get_loops(partial)
            sch.reorder(lane, steps)


def _axes(sch: s_tir.Schedule, output: Any, lanes: int) -> list[Any]:
    """The output's loops, outermost first; where rows are reduced along another axis than the last, those of a row
    inside, and in it one vector of neighbouring rows.
    """
    axes = list(sch.get_loops(output))
    shape = loops.extents(sch, axes)
    reduced = {axis for block in loops.blocks_of(sch) for axis in _reduced_axes(sch, block, shape)}
    width = loops.vector_width(shape[-1], lanes) if shape else 1
    if not reduced or len(shape) - 1 in reduced or width < lanes // 2:
        return axes
    steps, lane = sch.split(axes[-1], [None, width])
    kept = [loop for axis, loop in enumerate(axes[:-1]) if axis not in reduced]
    ordered = [*kept, steps, *(axes[axis] for axis in sorted(reduced)), lane]
    sch.reorder(*ordered)
    return ordered


def _reduced_axes(sch: s_tir.Schedule, block: Any, shape: list[int]) -> list[int]:
    """Axes along which a reduction reads a tensor of this shape; none of any other block."""
    if not loops.is_reduction(sch, block):
        return []
    node = sch.get(block)
    variables = [iv.var for iv in node.iter_vars if iv.iter_type == tirx.IterVar.CommReduce]
    for read in node.reads:
        if [getattr(extent, "value", None) for extent in read.source.shape] == shape:
            places = [part.min for part in read.region]
            return [axis for axis, place in enumerate(places) if any(place.same_as(v) for v in variables)]
    return []


def _compute_rows(sch: s_tir.Schedule, stages: list[Any], axes: list[Any], depth: int) -> None:
    if depth:
        for block in reversed(stages):
            sch.compute_at(block, axes[depth - 1], preserve_unit_loops=True)


def _deepest_row(func: tirx.PrimFunc, lanes: int) -> int:
    """The largest number of output loops under which every stage can be computed without computing anything twice."""
    sch = _prepared(func, lanes)
    rank = len(_axes(sch, loops.blocks_of(sch)[-1], lanes))
    for depth in range(rank, 0, -1):
        sch = _prepared(func, lanes)
        *stages, output = loops.blocks_of(sch)
        before = [loops.points(sch, block) for block in stages]
        try:
            _compute_rows(sch, stages, _axes(sch, output, lanes), depth)
        except s_tir.ScheduleError:
            continue
        nests = [[sch.get(loop).extent for loop in sch.get_loops(block)] for block in stages]
        # An extent that varies belongs to a window cut off at a border, which shares elements with the next one.
        if before == [math.prod(map(int, nest)) for nest in nests if all(isinstance(e, tirx.IntImm) for e in nest)]:
            return depth
    return 0
