"""Design space of Winograd convolutions, F(m x m, 3 x 3) with m = 2 or 4: fewer multiplications for more additions.

Notation (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, arXiv 1509.09308): an output tile
of m x m pixels comes from an input tile d of a x a, a = m + 2; g is a 3 x 3 kernel, P the number of tiles, L the lanes.

    U = G g G^T        per pair of channels, at compile time: the kernel takes weights in this form
    V = B^T d B        per tile and input channel
    M[p] = U[p] V[p]   for each of the a^2 positions p: a matrix product over input channels
    Y = A^T M A        per tile and output channel; then the epilogue

The a^2 products take a^2 / 9 m^2 of the multiplications of the direct algorithm: 0.44 (m = 2) or 0.25 (m = 4).

Two ways to run in parallel. In "blocks", a thread takes `tiles` tiles through all three stages, whose scratch then
stays in its L2 cache, and reads all weights per block. In "stages", the threads share each stage over all tiles, and
every weight is read once by one of them: better where there are many channels and few tiles.

The register tile of the product is oc_tile x t_tile vector accumulators: output-channel blocks x tiles.

All is computed in float32, whatever the convolution reads: in the transformed domain fewer bits would not do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import s_tir, tirx

from calumma.contractions.convolution.winograd_loops import KERNEL, WinogradLoops, source_of, transform_weights
from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space import blocks
from calumma.space.base import Knob, Repacking
from calumma.target import Target

_ERROR = {2: 0.7, 4: 8.0}
"""Largest error, relative to the largest output, per float32 epsilon and square root of the input channels: what was
measured (docs/winograd.md) rounded up."""
_PARALLEL = ("blocks", "stages")
_ORDERS = ("oc,t", "t,oc")
_BLOCKS = (7, 12, 14, 16, 24, 28, 32, 48, 49, 56, 64, 98, 112, 128, 196)
_LEAST_ACCUMULATORS = 4
"""Fewer cannot hide the latency of a multiply-add on any CPU."""
_MAX_CHANNEL_BLOCKS = 8
"""Of a tile: it keeps spaces small."""
_T_TILES = (1, 2, 4, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28)


class WinogradSpace(blocks.AnchorSpace):
    """Schedules of 3 x 3 convolutions of stride 1, with any elementwise epilogue, by F(m x m, 3 x 3)."""

    template = "winograd"
    version = 1
    """Not in any record: as an algorithm of the convolutions' space it goes under that one's version."""

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int, m: int) -> None:
        self.m = m
        super().__init__(func, target, threads)

    @staticmethod
    def matches(func: tirx.PrimFunc) -> bool:
        """Whether the function's anchor is a blocked 3 x 3 convolution of stride 1 in one group."""
        sch = blocks.schedule_of(func)
        anchor = blocks.anchor_of(sch)
        data, weight, *more = (read.source for read in sch.get(anchor).reads)
        if more or len(data.shape) != 5:  # gathered, or of a model's input
            return False
        extents = blocks.anchor_extents(sch)
        source = source_of(sch, anchor)
        if extents[6:8] != [KERNEL, KERNEL] or int(weight.shape[1]) != int(source.shape[1]):
            return False
        return _window(sch, anchor) is not None and _epilogue_fits(sch, anchor)

    def _knobs(self, sch: s_tir.Schedule) -> tuple[Knob, ...]:
        anchor = blocks.anchor_of(sch)
        self.batch, self.oc_blocks, self.out_h, self.out_w, self.lanes, self.in_blocks = blocks.anchor_extents(sch)[:6]
        self.error = _ERROR[self.m] * float(np.finfo(np.float32).eps) * math.sqrt(self.in_blocks * self.lanes)
        window = _window(sch, anchor)
        assert window is not None, "matches() was not asked"
        self.pad_top, self.pad_left = window
        self.weight_position = blocks.argument_of(self.func, sch.get(anchor).reads[1].source)
        source = source_of(sch, anchor)
        self.in_h, self.in_w = int(source.shape[2]), int(source.shape[3])
        self.rows, self.columns_of_tiles = -(-self.out_h // self.m), -(-self.out_w // self.m)
        self.tiles = self.batch * self.rows * self.columns_of_tiles
        self.points = (self.m + 2) ** 2
        most = self.registers - 2
        t_tiles = tuple(t for t in _T_TILES if t <= min(most, self.tiles + 1))
        block = [t for t in _BLOCKS if t < self.tiles]
        return (
            Knob("oc_tile", blocks.divisors(self.oc_blocks, _MAX_CHANNEL_BLOCKS)),
            Knob("t_tile", t_tiles),
            Knob("tiles", tuple(block) or (self.tiles,)),
            Knob("parallel", _PARALLEL),
            Knob("order", _ORDERS),
            Knob("prefetch", (False, True)),
        )

    def canonical(self, indices: Indices) -> Indices:
        """ "stages" has one block and one order, and no use for the knobs that choose them."""
        result = indices.copy()
        staged = indices[:, 3] == _PARALLEL.index("stages")
        result[np.ix_(staged, [2, 4])] = 0
        return result

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        k = self.columns(indices)
        accumulators = k["oc_tile"] * k["t_tile"]
        fits = (accumulators + k["oc_tile"] <= self.registers) & (accumulators >= min(_LEAST_ACCUMULATORS, self.tiles))
        staged = k["parallel"] == "stages"
        idle_at_rest = (self.canonical(indices) == indices).all(axis=1)
        whole = k["tiles"] % k["t_tile"] == 0  # a block is a whole number of register tiles
        return fits & idle_at_rest & (staged | whole)

    # -- knowledge about a configuration ----------------------------------------------------------

    def _quantities(self, k: dict[str, NDArray]) -> dict[str, Any]:
        d = self._derived(k)
        return {
            "accumulators": k["oc_tile"] * k["t_tile"],
            "oc_tile": k["oc_tile"],
            "t_tile": k["t_tile"],
            "loads_per_fma": d["loads"],
            "staged": k["parallel"] == "stages",
            "oc_first": k["order"] == "oc,t",
            "prefetch": k["prefetch"],
            "tiles_log2": np.log2(d["block"]),
            "waste": d["computed"] / self.tiles,
            "balance": d["balance"],
            "scratch_log2_bytes": np.log2(d["scratch"]),
            "weight_log2_bytes": np.log2(d["weight"]),
            "m": self.m,
            "log2_tiles": np.log2(self.tiles),
            "log2_oc_blocks": np.log2(self.oc_blocks),
            "log2_in_blocks": np.log2(self.in_blocks),
        }

    def _derived(self, k: dict[str, NDArray]) -> dict[str, NDArray]:
        staged = k["parallel"] == "stages"
        whole = np.ceil(self.tiles / k["t_tile"]) * k["t_tile"]
        block = np.where(staged, whole, k["tiles"])
        count = np.where(staged, self.points * self.oc_blocks / k["oc_tile"], np.ceil(self.tiles / block))
        weight = self.sum_bytes * self.points * self.lanes**2 * self.in_blocks * self.oc_blocks
        return {
            "block": block,
            "loads": (k["oc_tile"] + k["t_tile"]) / (k["oc_tile"] * k["t_tile"]),
            "computed": np.where(staged, whole, block * np.ceil(self.tiles / block)),
            "balance": blocks.balance(count, self.threads),
            "scratch": self.sum_bytes * self.points * self.lanes * block * (self.in_blocks + self.oc_blocks),
            "weight": np.full(len(block), weight),
        }

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        """Estimated time (N,) of configurations, in vector multiply-adds that one core does meanwhile."""
        k = self.columns(indices)
        d = self._derived(k)
        staged = k["parallel"] == "stages"
        costs, tile, line = self.target.costs.winograd, self.target.costs.tile, self.target.line_bytes
        compute = tile.typical_share * blocks.issue_rate(k["oc_tile"], k["t_tile"], self.target)
        compute /= 1 + tile.load_penalty * np.maximum(0, d["loads"] - tile.free_loads)
        products = self.points * d["computed"] * self.oc_blocks * self.in_blocks * self.lanes / compute
        scratch = self.points * d["computed"] * (self.in_blocks + self.oc_blocks)  # vectors written, then read
        share = d["scratch"] / np.where(staged, self.threads, 1)
        far = share > costs.l2_share * self.target.l2_bytes
        scratch = scratch * np.where(far, costs.far_scratch_vector, costs.scratch_vector)
        passes = np.where(staged, 1, np.ceil(self.tiles / d["block"]))
        reread = costs.reread_line * d["weight"] / line * (passes - 1)
        concurrency = self.threads * d["balance"]
        products = (products + reread) / concurrency
        memory = tile.dram_line * d["weight"] / line * (1 + costs.stream_penalty * (k["oc_tile"] - 1))
        # Prefetched weights come while the products of others are computed.
        both = np.where(k["prefetch"], blocks.overlapped(products, memory, tile), products + memory)
        return both + scratch / concurrency + np.where(staged, costs.staged_start, costs.blocked_start)

    def default(self) -> Indices:
        candidates = self.grid()
        return candidates[int(np.argmin(self.estimate(candidates)))]

    def costs(self, flops: float, weight_bytes: float) -> tuple[tuple[float, float], ...]:
        direct = 2.0 * self.batch * self.oc_blocks * self.out_h * self.out_w * self.lanes**2 * self.in_blocks * 9
        products = 2.0 * self.points * self.tiles * self.oc_blocks * self.in_blocks * self.lanes**2
        kernel = 9 * self.lanes**2 * self.in_blocks * self.oc_blocks
        weights = weight_bytes - self.read_bytes * kernel + self.sum_bytes * kernel * self.points / 9
        return ((flops - direct + products, weights),)

    def repacking(self, config: Mapping[str, KnobValue]) -> Mapping[int, Repacking]:
        return {self.weight_position: Repacking(f"winograd{self.m}", lambda packed: transform_weights(packed, self.m))}

    # -- applying a configuration -----------------------------------------------------------------

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        # The epilogue is written out once per pixel of a tile, and may bind variables (tanh, erf): each wants its own.
        module = tvm.IRModule({"main": WinogradLoops(self, config).function()})
        return blocks.schedule_of(tirx.transform.ConvertSSA()(module)["main"])


def _epilogue_fits(sch: s_tir.Schedule, anchor: Any) -> bool:
    """Whether the function's result has one element per element of the convolution, columns cropped at most."""
    computed = [int(extent) for extent in sch.get(anchor).writes[0].source.shape]
    scratch = sch.copy()
    last = blocks.fuse_epilogue(scratch, blocks.anchor_of(scratch))
    result = [int(extent) for extent in scratch.get(last).writes[0].source.shape]
    return (
        len(result) == len(computed)
        and result[3] <= computed[3]
        and result[:3] + result[4:] == computed[:3] + computed[4:]
    )


def _window(sch: s_tir.Schedule, anchor: Any) -> tuple[int, int] | None:
    """Top and left padding of a convolution of stride and dilation 1; None for any other."""
    block = sch.get(anchor)
    _, _, y, x, _, _, kh, kw, *_ = (iv.var for iv in block.iter_vars)
    region = block.reads[0].region
    analyzer = tvm.sym.Analyzer()
    for at, (outer, inner) in zip(region[2:4], ((y, kh), (x, kw)), strict=True):
        if not analyzer.can_prove_equal(at.min, outer + inner):
            return None
    if not blocks.has_block(sch, "data_pad"):
        return 0, 0
    pad = sch.get(sch.get_sblock("data_pad"))
    _, _, py, px, _ = (iv.var for iv in pad.iter_vars)
    starts = [analyzer.simplify(iv - at.min) for iv, at in zip((py, px), pad.reads[0].region[2:4], strict=True)]
    if not all(isinstance(start, tirx.IntImm) for start in starts):
        return None
    return int(starts[0]), int(starts[1])
