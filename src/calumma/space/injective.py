"""Template of functions that only move and map elements: elementwise chains, broadcast, transpose, reshape, concat,
slice, gather, resize.

Everything is inlined into the outputs, as far as it stays small enough to compile. Neighbouring axes that every access
treats as one are collapsed, so that index arithmetic stays out of the inner loop; the outer axes run in parallel, the
last one in vectors. A read whose contiguous axis is not the written one (a transpose) is tiled in both, so that each
cache line is used whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import ir, s_tir, tirx

from calumma.core.values import KnobValue
from calumma.space import loops
from calumma.space.base import Knob
from calumma.target import Target


@dataclass(frozen=True)
class Nest:
    """The loops of one output after inlining."""

    groups: tuple[tuple[int, ...], ...]
    """Loop positions that collapse into one, outermost first."""
    extents: tuple[int, ...]
    """Extent of each group."""
    across: int | None
    """Group along which some read is contiguous, where that is not the last one: the other axis of a transpose."""


def matches(func: tirx.PrimFunc) -> bool:
    """Whether every stage only writes each element once, and none asks to be kept."""
    if not loops.is_regular(func):
        return False
    sch = s_tir.Schedule(func)
    return all(
        loops.is_spatial(sch, block) and loops.KEEP not in sch.get(block).annotations for block in loops.blocks_of(sch)
    )


class InjectiveSpace(loops.LoopSpace):
    """Knobs: whether to use threads, how many outer loops they share, vector width, tile of a transpose."""

    template = "injective"
    version = 1

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int = 1) -> None:
        sch = _inlined(func)
        self.nests = [_nest(sch, block) for block in loops.blocks_of(sch)]
        lanes = target.lanes
        depth = max(len(nest.extents) for nest in self.nests)
        tiled = any(nest.across is not None for nest in self.nests)
        super().__init__(
            func,
            target,
            threads,
            (
                Knob("parallel", (0, 1)),
                Knob("fused", tuple(range(1, max(depth, 2)))),
                Knob("vector", (lanes, 1, lanes // 2, 2 * lanes, 4 * lanes)),
                Knob("tile", (1, 4, 8, 16, 32) if tiled else (1,)),
            ),
        )

    def default_config(self) -> dict[str, KnobValue]:
        lanes, costs = self.target.lanes, self.target.costs.loops
        flat_vector = costs.flat_vectors * lanes
        nest = max(self.nests, key=lambda n: math.prod(n.extents))
        transposed = nest.across is not None
        flat = len(nest.extents) == 1
        depth = loops.parallel_depth(nest.extents[:-1], self.threads)
        return {
            "parallel": int(self.worth_threads),
            "fused": max(1, min(depth, int(self.knobs[1].values[-1]))),
            "vector": flat_vector if flat and nest.extents[0] % flat_vector == 0 else lanes,
            "tile": costs.transpose_tile if transposed else 1,
        }

    def derived(self, columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Parallel iterations, and elements of the output under one of them."""
        nest = max(self.nests, key=lambda n: math.prod(n.extents))
        products = np.cumprod([1, *nest.extents])
        shared = products[np.minimum(columns["fused"], len(nest.extents) - 1)]
        return {"shares": np.where(columns["parallel"] == 1, shared, 1), "share_elements": products[-1] / shared}

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        sch = _inlined(self.func)
        for block, nest in zip(loops.blocks_of(sch), self.nests, strict=True):
            self._apply(sch, block, nest, config)
        return sch

    def _apply(self, sch: s_tir.Schedule, block: Any, nest: Nest, config: Mapping[str, KnobValue]) -> None:
        every = sch.get_loops(block)
        axes = [sch.fuse(*(every[i] for i in group)) if len(group) > 1 else every[group[0]] for group in nest.groups]
        vector, tile = int(config["vector"]), int(config["tile"])
        if len(axes) == 1:
            self._flat(sch, block, axes[0], vector, parallel=bool(config["parallel"]))
            return
        outer, last = axes[:-1], axes[-1]
        if nest.across is not None and tile > 1:
            outer[nest.across], tiled = sch.split(outer[nest.across], [None, min(tile, nest.extents[nest.across])])
            *vectors, vector_loop = loops.vectorize(sch, block, last, vector)
            sch.reorder(*outer, *vectors, tiled, vector_loop)
        else:
            loops.vectorize(sch, block, last, vector)
        if config["parallel"]:
            shared = outer[: int(config["fused"])]
            sch.parallel(sch.fuse(*shared) if len(shared) > 1 else shared[0])

    def _flat(self, sch: s_tir.Schedule, block: Any, loop: Any, vector: int, *, parallel: bool) -> None:
        """One contiguous loop: every thread takes an equal run of vectors."""
        if parallel:
            # A ragged loop cannot be partitioned once it is parallel: a divisor serves as the vector.
            vector = loops.largest_divisor(int(sch.get(loop).extent), vector)
        outer, *inner = loops.vectorize(sch, block, loop, vector)
        if parallel and (inner or vector == 1):
            sch.parallel(outer)


def _inlined(func: tirx.PrimFunc) -> s_tir.Schedule:
    sch = s_tir.Schedule(func)
    inlining = loops.Inlining(sch)
    for block in loops.blocks_of(sch):
        if sch.get_consumers(block):
            inlining.inline(block)
    return sch


def _nest(sch: s_tir.Schedule, block: Any) -> Nest:
    node = sch.get(block)
    variables = [iv.var for iv in node.iter_vars]
    sizes = [int(iv.dom.extent) for iv in node.iter_vars]
    accesses = [node.body, *(e for e in loops.walk(node.body) if isinstance(e, ir.TensorLoad))]
    elsewhere = _outside_accesses(node.body)
    groups: list[list[int]] = [[0]] if sizes else []
    for i in range(1, len(sizes)):
        joined = all(_one_axis(access, variables[i - 1], variables[i], sizes[i]) for access in accesses)
        free = not {i - 1, i} & {j for j, v in enumerate(variables) if any(v.same_as(e) for e in elsewhere)}
        if sizes[i] == 1 or (sizes[i - 1] == 1 and len(groups[-1]) == 1) or (joined and free):
            groups[-1].append(i)
        else:
            groups.append([i])
    extents = tuple(math.prod(sizes[i] for i in group) for group in groups)
    return Nest(tuple(map(tuple, groups)), extents, _across(accesses[1:], variables, sizes, groups))


def _outside_accesses(body: tirx.BufferStore) -> list[tirx.Expr]:
    """Loop variables used by value: in conditions, or as operands."""
    found: list[tirx.Expr] = []

    def visit(node: Any) -> None:
        if isinstance(node, ir.TensorLoad):
            return
        if isinstance(node, tirx.Var):
            found.append(node)
            return
        for child in loops.children(node):
            visit(child)

    visit(body.value)
    return found


def _one_axis(access: Any, first: tirx.Var, second: tirx.Var, extent: int) -> bool:
    """Whether an access has both variables as whole neighbouring axes of its buffer, or neither anywhere."""
    uses = [[loops.uses(index, v) for index in access.indices] for v in (first, second)]
    if not any(uses[0]) and not any(uses[1]):
        return True
    for position in range(len(access.indices) - 1):
        here, after = access.indices[position], access.indices[position + 1]
        if first.same_as(here) and second.same_as(after):
            alone = sum(uses[0]) == 1 and sum(uses[1]) == 1
            return alone and int(loops.buffer_of(access).shape[position + 1]) == extent
    return False


def _across(loads: list[Any], variables: list[Any], sizes: list[int], groups: list[list[int]]) -> int | None:
    """The group of the innermost loop along which a load is contiguous, if that is not the last group's."""
    group_of = {i: g for g, group in enumerate(groups) for i in group}
    last = [i for i in groups[-1] if sizes[i] > 1] if groups else []
    for load in loads:
        if not load.indices:
            continue
        inner = [i for i, v in enumerate(variables) if sizes[i] > 1 and loops.uses(load.indices[-1], v)]
        anywhere = [i for i in last if any(loops.uses(index, variables[i]) for index in load.indices)]
        if inner and anywhere and not set(inner) & set(groups[-1]):
            return group_of[inner[-1]]
    return None
