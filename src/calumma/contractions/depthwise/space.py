"""Design space of depthwise convolutions: one block of L channels at a time, weights and outputs in registers.

Notation: as in `conv2d`, without a reduction over channels. The tile is oh_tile x ow_tile accumulators; the kernel
window is unrolled. These layers do few operations per byte: what counts is that inputs are read from L1 once. With
`fused` = 1 or 2 threads share channels, or rows of tiles, channel after channel; with 3, bands of rows of all channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir

from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space import blocks
from calumma.space.base import Knob

_PAD = ("channel", "tile", "inline")
_MAX_ROWS = 8
"""Of a tile: it keeps the unrolled code small."""


class DepthwiseSpace(blocks.AnchorSpace):
    """Schedules of `depthwise_conv2d` with any epilogue."""

    template = "depthwise_conv2d"
    version = 1

    def _knobs(self, sch: s_tir.Schedule) -> tuple[Knob, ...]:
        extents = blocks.anchor_extents(sch)
        self.batch, self.channel_blocks, self.out_h, self.out_w, self.lanes, self.kernel_h, self.kernel_w = extents
        self.has_pad = blocks.has_block(sch, "data_pad")
        return (
            Knob("oh_tile", blocks.divisors(self.out_h, _MAX_ROWS)),
            Knob("ow_tile", blocks.divisors(self.out_w, self.registers - 4)),
            Knob("fused", (1, 2, 3)),
            Knob("unroll", ("both", "width", "none")),
            Knob("pad", _PAD if self.has_pad else _PAD[:1]),
        )

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        k = self.columns(indices)
        fits = k["oh_tile"] * k["ow_tile"] <= self.registers - 2
        # Padding at the channel loop belongs to the thread that owns the channel.
        return fits & ~((k["pad"] == "channel") & (k["fused"] != 1) & self.has_pad)

    def _quantities(self, k: dict[str, NDArray]) -> dict[str, Any]:
        chunks = self._chunks(k)
        return {
            "accumulators": k["oh_tile"] * k["ow_tile"],
            "oh_tile": k["oh_tile"],
            "ow_tile": k["ow_tile"],
            "balance": blocks.balance(chunks, self.threads),
            "chunks_log2": np.log2(chunks),
            "unroll_both": k["unroll"] == "both",
            "unroll_width": k["unroll"] == "width",
            "pad_tile": k["pad"] == "tile",
            "pad_inline": k["pad"] == "inline",
            "log2_channel_blocks": np.log2(self.channel_blocks),
            "log2_out_h": np.log2(self.out_h),
            "log2_out_w": np.log2(self.out_w),
            "kernel": self.kernel_h * self.kernel_w,
        }

    def _chunks(self, k: dict[str, NDArray]) -> NDArray[np.float64]:
        return self.batch * self.channel_blocks * np.where(k["fused"] > 1, self.out_h / k["oh_tile"], 1.0)

    def default(self) -> Indices:
        """As many accumulators as fit beside their inputs, in one row; equal shares, no padded copy.

        A copy is written and read again for nine multiply-adds per element; without it, the conditions at the borders
        of an unrolled row are known when the code is generated.
        """
        grid = self.grid()
        return grid[int(np.argmin(self.estimate(grid)))]

    def default_in_model(self) -> Indices:
        """Threads share rows where these are equal shares, as the convolutions around do that have few weights."""
        default = self.default()
        config = self.decode(default)
        rows = self.out_h // int(config["oh_tile"])
        banded = self.encode({**config, "fused": 3})
        equal = self.batch < self.threads and rows % self.threads == 0
        return banded if equal and self.valid(banded[None, :])[0] else default

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        k = self.columns(indices)
        accumulators = k["oh_tile"] * k["ow_tile"]
        costs = self.target.costs.depthwise
        rate = accumulators / (accumulators + costs.tile_start) * blocks.balance(self._chunks(k), self.threads)
        # Inputs that the next positions of an unrolled window read again stay in registers, beside one weight.
        live = 1 + accumulators * np.where(k["unroll"] == "none", 1, 2)
        cost = 1 / (rate * np.where(live > self.registers, costs.spill_rate, 1.0))
        copied, in_tile = k["pad"] != "inline", k["pad"] == "tile"
        cost *= 1 + costs.row_penalty * k["oh_tile"] + costs.padding_penalty * copied + costs.pad_tile_penalty * in_tile
        rolled, width = k["unroll"] == "none", k["unroll"] == "width"
        cost *= 1 + costs.rolled_border_penalty * (rolled & ~copied & self.has_pad)
        return cost * (1 + costs.rolled_penalty * rolled + costs.width_penalty * width)

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        sch = blocks.schedule_of(self.func)
        anchor = blocks.anchor_of(sch)
        out = blocks.fuse_epilogue(sch, anchor)
        n, c, oh, ow, lane, kh, kw = sch.get_loops(anchor)
        oh_o, oh_i = sch.split(oh, [None, config["oh_tile"]])
        ow_o, ow_i = sch.split(ow, [None, config["ow_tile"]])
        sch.reorder(n, c, oh_o, ow_o, kh, kw, oh_i, ow_i, lane)
        if config["fused"] == 3:  # a thread takes a band of rows of all channels
            bands = blocks.divisors(int(sch.get(oh_o).extent), self.threads)[-1]
            band, oh_o = sch.split(oh_o, [bands, None])
            sch.reorder(n, band, c, oh_o)
            parallel = sch.fuse(n, band, c, oh_o)
        else:
            parallel = sch.fuse(n, c, oh_o) if config["fused"] == 2 else sch.fuse(n, c)
        sch.reverse_compute_at(out, ow_o)
        sch.parallel(parallel)
        if self.has_pad:
            pad = sch.get_sblock("data_pad")
            if config["pad"] == "inline":
                sch.compute_inline(pad)
            else:
                sch.compute_at(pad, parallel if config["pad"] == "channel" else ow_o)
                sch.vectorize(sch.get_loops(pad)[-1])
        sch.set_scope(anchor, 0, "local")
        sch.unroll(oh_i)
        sch.unroll(ow_i)
        sch.vectorize(lane)
        if config["unroll"] == "both":
            sch.unroll(kh)
        if config["unroll"] != "none":
            sch.unroll(kw)
        sch.decompose_reduction(anchor, kh)
        sch.vectorize(sch.get_loops(out)[-1])
        return sch
