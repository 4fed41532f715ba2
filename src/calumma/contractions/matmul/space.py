"""Design space of matrix products: packed constant weights (`dense`) and products of two activations (`batch_matmul`).

Notation: B batch elements, M rows (already padded to what a tile divides), NB column blocks of L lanes, K reduction.
A register tile is m_tile rows x n_tile column blocks. Per k it loads n_tile weight vectors and multiplies each with
m_tile broadcast elements; what the inner of these two loops reads stays in registers while the outer goes on. With one
row (batch-1 dense layers) the product is a stream over the weights and bound by memory: the tile is then only columns,
and k is unrolled. Where the contraction packs several elements of the reduction, they take the place of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx

from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space import blocks
from calumma.space.base import Knob
from calumma.target import Target
from calumma.tvm_compat import prefetch, tails

_LEAST_ACCUMULATORS = 4
"""Fewer cannot hide the latency of a multiply-add on any CPU; they are allowed only where nothing larger fits."""
_MAX_M_TILE = 16
_MAX_N_TILE = 8
_MAX_N_GROUP = 64
"""Limits of a tile's sides and of a column group: they keep spaces small."""


class MatmulSpace(blocks.AnchorSpace):
    """Schedules of `dense` and `batch_matmul` with any epilogue."""

    template = "matmul"
    version = 1

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int) -> None:
        super().__init__(func, target, threads)
        m_tiles, n_tiles = np.meshgrid(*(np.array(knob.values) for knob in self.knobs[:2]))
        fitting = (m_tiles * n_tiles)[m_tiles * n_tiles + n_tiles <= self.registers]
        self._least_accumulators = min(_LEAST_ACCUMULATORS, int(fitting.max()))

    def _knobs(self, sch: s_tir.Schedule) -> tuple[Knob, ...]:
        extents = blocks.anchor_extents(sch)
        *batch, self.rows, self.col_blocks, self.lanes, self.depth = extents[:-1] if self.packs_elements else extents
        self.batch = int(np.prod(batch, dtype=np.int64))
        self.batch_axes = len(batch)
        self.packs = blocks.has_block(sch, "packed")
        outer = ("n,m", "m,n") if self.rows > 1 else ("n,m",)
        return (
            Knob("m_tile", blocks.divisors(self.rows, _MAX_M_TILE)),
            Knob("n_tile", blocks.divisors(self.col_blocks, _MAX_N_TILE)),
            Knob("n_group", blocks.divisors(self.col_blocks, _MAX_N_GROUP)),
            Knob("outer", outer),
            Knob("fused", (1, 2, 3) if self.batch_axes else (1, 2)),
            Knob("k_unroll", tuple(u for u in (1, 2, 4, 8) if self.depth % u == 0)),
            Knob("pack", ("batch", "apart") if self.packs else ("batch",)),
            Knob("prefetch", (False,) if self.packs else (False, True)),
            Knob("inner", ("m", "n") if self.rows > 1 else ("m",)),
        )

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        k = self.columns(indices)
        accumulators = k["m_tile"] * k["n_tile"]
        fits = accumulators + k["n_tile"] <= self.registers
        grouped = k["n_group"] % k["n_tile"] == 0
        # Packing at the batch loop needs the batch loop to be where threads split, or every thread packs again.
        packable = ~((k["pack"] == "batch") & (k["fused"] != 1)) if self.packs else True
        # The elements or the vectors of the inner loop stay in registers while the other loop goes on.
        fewer_live = (k["inner"] == "m") | (k["n_tile"] < k["m_tile"])
        return fits & grouped & packable & fewer_live & (accumulators >= self._least_accumulators)

    def _live(self, k: dict[str, NDArray]) -> NDArray[np.int64]:
        """Vector registers that a tile needs."""
        by_columns = k["inner"] == "n"
        kept, others = (np.where(by_columns, k[a], k[b]) for a, b in (("n_tile", "m_tile"), ("m_tile", "n_tile")))
        return blocks.live_registers(kept, others)

    def _quantities(self, k: dict[str, NDArray]) -> dict[str, Any]:
        chunks = self._chunks(k)
        return {
            "accumulators": k["m_tile"] * k["n_tile"],
            "m_tile": k["m_tile"],
            "n_tile": k["n_tile"],
            "log2_n_group": np.log2(k["n_group"]),
            "loads_per_fma": (k["m_tile"] + k["n_tile"]) / (k["m_tile"] * k["n_tile"]),
            "outer_m_first": k["outer"] == "m,n",
            "fused": k["fused"],
            "balance": blocks.balance(chunks, self.threads),
            "chunks_log2": np.log2(chunks),
            "k_unroll": k["k_unroll"],
            "pack_apart": k["pack"] == "apart",
            "prefetch": k["prefetch"],
            "live_registers": self._live(k),
            "spills": self._live(k) > self.registers,
            "weight_group_log2_bytes": np.log2(self.step_bytes * k["n_group"] * self.lanes * self.depth),
            "log2_rows": np.log2(self.rows),
            "log2_col_blocks": np.log2(self.col_blocks),
            "log2_depth": np.log2(self.depth),
            "log2_batch": np.log2(self.batch),
        }

    def _chunks(self, k: dict[str, NDArray]) -> NDArray[np.float64]:
        """Pieces of work dealt to the threads."""
        groups, rows = self.col_blocks / k["n_group"], self.rows / k["m_tile"]
        first = np.where(k["outer"] == "n,m", groups, rows)
        if self.batch_axes:
            return (
                self.batch * np.where(k["fused"] >= 2, first, 1) * np.where(k["fused"] == 3, groups * rows / first, 1)
            )
        return first * np.where(k["fused"] == 2, groups * rows / first, 1)

    def default(self) -> Indices:
        """Full register tiles, equal shares for the threads, a column group whose weights stay in L2; the next group's
        weights prefetched where there are rows enough to spread that over."""
        grid = self.grid()
        return grid[int(np.argmin(self.estimate(grid)))]

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        costs = self.target.costs.matmul
        k = self.columns(indices)
        accumulators = k["m_tile"] * k["n_tile"]
        loads = (k["m_tile"] + k["n_tile"]) / accumulators
        compute = np.minimum(1.0, accumulators / costs.accumulators)
        compute /= 1 + costs.load_penalty * np.maximum(0, loads - costs.free_loads)
        compute *= np.where(self._live(k) > self.registers, costs.spill_rate, 1.0)
        compute /= 1 + costs.row_reload_penalty * (k["inner"] == "n")
        compute = np.minimum(compute, k["m_tile"] / costs.weight_uses)
        group = self.step_bytes * k["n_group"] * self.lanes * self.depth
        rows_group = self.step_bytes * k["m_tile"] * self.depth
        n_first, m_first = k["outer"] == "n,m", k["outer"] == "m,n"
        spills = (group > costs.group_l2_share * self.target.l2_bytes) & n_first & (self.rows > k["m_tile"])
        matrix = self.step_bytes * self.col_blocks * self.lanes * self.depth
        spills |= m_first & (matrix > costs.matrix_l2_share * self.target.l2_bytes)
        cost = 1 / (compute * blocks.balance(self._chunks(k), self.threads))
        cost *= np.where(spills & (self.rows > k["m_tile"]), costs.spill_factor, 1.0)
        cost *= 1 + costs.rows_penalty * (rows_group > costs.rows_l1_share * self.target.l1_bytes)
        # Rows that start a multiple of a way apart share a set of L1, which holds as many lines as there are ways.
        way = self.target.l1_way_bytes
        places = way // math.gcd(int(self.step_bytes) * self.depth, way)
        lines = self.target.l1_bytes // way - costs.other_streams
        cost *= np.where(k["m_tile"] > max(lines, 1) * places, costs.conflict_factor, 1.0)
        ahead = k["prefetch"].astype(bool)
        unrolled = np.where(ahead | (self.rows == 1), costs.unroll_log2, 0)
        steps = np.abs(np.log2(k["k_unroll"]) - unrolled)
        cost *= 1 + costs.unroll_penalty * steps + costs.group_penalty * np.log2(k["n_group"])
        # Prefetches come k_unroll at a time; more often, or for many columns at once, they cost more than they save.
        spread = (k["n_tile"] <= costs.prefetch_columns) & (k["k_unroll"] >= costs.prefetch_unroll) & n_first
        spread &= self.rows >= costs.prefetch_row_tiles * k["m_tile"]
        prefetched = np.where(spread, costs.prefetch_factor, costs.hasty_prefetch_factor)
        cost *= np.where(ahead, prefetched, 1.0)
        return cost * (1 + costs.rows_outside_penalty * m_first)

    def costs(self, flops: float, weight_bytes: float) -> tuple[tuple[float, float], ...]:
        products = 2.0 * self.batch * self.rows * self.col_blocks * self.lanes * self.depth
        return ((flops - (self.contraction.pack - 1) * products, weight_bytes),)

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        sch = blocks.schedule_of(self.func)
        anchor = blocks.anchor_of(sch)
        weight = sch.get(anchor).reads[1].source
        out = blocks.fuse_epilogue(sch, anchor)
        axes = sch.get_loops(anchor)
        packed = [axes.pop()] if self.packs_elements else []
        *batch, m, n, lane, k = axes
        m_o, m_i = sch.split(m, [None, config["m_tile"]])
        n_o, n_g, n_i = sch.split(n, [None, int(config["n_group"]) // int(config["n_tile"]), config["n_tile"]])
        k_o, k_i = sch.split(k, [None, config["k_unroll"]])
        tiles = [n_o, m_o] if config["outer"] == "n,m" else [m_o, n_o]
        tile = [n_i, m_i] if config["inner"] == "m" else [m_i, n_i]
        sch.reorder(*batch, *tiles, n_g, k_o, k_i, *tile, lane, *packed)
        outer = [sch.fuse(*batch)] if len(batch) > 1 else list(batch)
        outer += tiles
        fused = int(config["fused"])
        parallel = sch.fuse(*outer[:fused]) if fused > 1 else outer[0]
        sch.reverse_compute_at(out, n_g)
        sch.parallel(parallel)
        if self.packs:
            self._place_packing(sch, str(config["pack"]), parallel)
        sch.set_scope(anchor, 0, "local")
        for loop in (k_i, n_i, m_i):
            sch.unroll(loop)
        blocks.vectorize_lanes(sch, lane, anchor, k_o, self.target)
        self._vectorize_out(sch, out, n_g)
        if config["prefetch"]:
            argument = blocks.argument_of(self.func, weight)
            sch.annotate(k_o, prefetch.MARK, prefetch.text_of([self._ahead(argument, config)]))
        return sch

    def _ahead(self, argument: int, config: Mapping[str, KnobValue]) -> prefetch.Ahead:
        """Weights of the next column group to prefetch; positions are the anchor's loops (batch, m, n, lane, k)."""
        m, n, k = (self.batch_axes + i for i in (0, 1, 3))
        m_tile = int(config["m_tile"])
        n_first = config["outer"] == "n,m"
        return prefetch.Ahead(
            argument=argument,
            place=((n, int(config["n_group"])), (k, 0), (None, 0)),
            rows=int(config["n_tile"]),
            along=1,
            lines=int(config["k_unroll"]),
            turn=((m, m_tile, 1),) if n_first else (),
            turns=self.rows // m_tile if n_first else 1,
        )

    def _place_packing(self, sch: s_tir.Schedule, where: str, parallel: Any) -> None:
        packed = sch.get_sblock("packed")
        if where == "batch":
            sch.compute_at(packed, parallel)
        else:
            *rest, _, _ = sch.get_loops(packed)
            sch.parallel(sch.fuse(*rest) if len(rest) > 1 else rest[0])
        sch.vectorize(sch.get_loops(packed)[-1])

    def _vectorize_out(self, sch: s_tir.Schedule, out: Any, group: Any) -> None:
        last = sch.get_loops(out)[-1]
        if sch.get(last).loop_var.same_as(sch.get(group).loop_var):  # a single number has no loops of its own
            return
        extent = int(sch.get(last).extent)
        if extent % self.lanes == 0 and extent > self.lanes:
            _, last = sch.split(last, [None, self.lanes])
        sch.vectorize(last)
        sch.annotate(out, tails.MARK, 1)
