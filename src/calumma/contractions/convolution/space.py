"""Design space of blocked convolutions: register tiles, reduction order, padding, parallel loops.

Notation: L lanes; a register tile is oc_tile x oh_tile x ow_tile vector accumulators (output-channel blocks x rows x
columns); OCB, OH, OW output extents; ICB input blocks read per output block (1 in the first layer, whose channels
are not blocked); KH, KW kernel. Where the contraction packs several input channels, they take the place of one.

The micro-kernel keeps the tile in registers over the whole reduction: per input channel and kernel position it loads
oc_tile weight vectors and multiplies each with oh_tile * ow_tile broadcast inputs. `order` is the reduction order,
outermost first; `outer` the order of the tile loops, of which the first `fused` run in parallel. With `accumulate` =
"plane" the input channels are the loop around the tiles of one parallel step: a chunk of weights small enough for L1
serves all its pixels, and the accumulators of the whole step live in memory, loaded and stored once per chunk.
"""

from __future__ import annotations

import functools
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
from calumma.tvm_compat import prefetch

_ORDERS = ("ic,kh,kw", "kh,ic,kw", "kh,kw,ic", "ic,kh,lane,kw")
_OUTER = ("oc,oh,ow", "oh,oc,ow", "oh,ow,oc")
_PAD = ("apart", "parallel", "tile")
_ACCUMULATE = ("tile", "plane")
_LEAST_ACCUMULATORS = 6
"""Fewer cannot hide the latency of a multiply-add on any CPU; they are allowed only where nothing larger fits."""
_MAX_CHANNEL_BLOCKS = 8
_MAX_ROWS = 8
_MOST_CHUNK = 32
"""Limits of a tile's sides and of a chunk: they keep spaces small."""


class Conv2dSpace(blocks.AnchorSpace):
    """Schedules of `conv2d`, `conv2d_gathered` and `conv2d_plain` with any epilogue."""

    template = "conv2d"
    version = 1

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int) -> None:
        super().__init__(func, target, threads)
        oc, oh, ow = np.meshgrid(*(np.array(knob.values) for knob in self.knobs[:3]))
        fitting = (oc * oh * ow)[oc * oh * ow + oc <= self.registers]
        self._least_accumulators = min(_LEAST_ACCUMULATORS, int(fitting.max()))

    def _knobs(self, sch: s_tir.Schedule) -> tuple[Knob, ...]:
        anchor = blocks.anchor_of(sch)
        reads = [read.source for read in sch.get(anchor).reads]
        self.plain = len(reads[0].shape) == 4  # the model's input, whose channels are not blocked
        self.has_pad = blocks.has_block(sch, "data_pad")
        shape = blocks.anchor_extents(sch)
        self.batch, self.oc_blocks, self.out_h, self.out_w, self.lanes = shape[:5]
        self.in_blocks, self.kernel_h, self.kernel_w = shape[5:8]
        self.in_lanes = 1 if self.plain else shape[8]
        *inputs, result = self.func.params
        data = reads[0]
        self.addends = [
            position
            for position, param in enumerate(inputs)
            if len(param.shape) == 5 and list(param.shape) == list(result.shape) and not param.same_as(data)
        ]
        elements = float(np.prod([int(d) for d in data.shape]))
        self.data_bytes = self.read_bytes * elements
        most = self.registers - 2
        alike = self.oc_blocks
        if len(reads) > 2:  # gathered by a table: a tile is of blocks that read the same inputs
            alike //= int(reads[1].shape[0])
        return (
            Knob("oc_tile", blocks.divisors(alike, _MAX_CHANNEL_BLOCKS)),
            Knob("oh_tile", blocks.divisors(self.out_h, _MAX_ROWS)),
            Knob("ow_tile", blocks.divisors(self.out_w, most)),
            Knob("ic_chunk", blocks.divisors(self.in_blocks, _MOST_CHUNK)),
            Knob("order", _ORDERS[: 3 if self.plain else 4] if self.kernel_h * self.kernel_w > 1 else _ORDERS[:1]),
            Knob("outer", _OUTER),
            Knob("fused", (1, 2, 3)),
            Knob("unroll", (False, True)),
            Knob("pad", _PAD if self.has_pad else _PAD[:1]),
            Knob("accumulate", _ACCUMULATE if self.in_blocks > 1 and not self.plain else _ACCUMULATE[:1]),
            Knob("prefetch", (False,) if self.plain else (False, True)),
        )

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        k = self.columns(indices)
        accumulators = k["oc_tile"] * k["oh_tile"] * k["ow_tile"]
        fits = accumulators + k["oc_tile"] <= self.registers
        fits &= ~k["prefetch"] | _may_prefetch(k)
        return fits & (accumulators >= self._least_accumulators)

    # -- knowledge about a configuration ----------------------------------------------------------

    def _quantities(self, k: dict[str, NDArray]) -> dict[str, Any]:
        d = self._derived(k)
        return {
            "accumulators": d["accumulators"],
            "oc_tile": k["oc_tile"],
            "oh_tile": k["oh_tile"],
            "ow_tile": k["ow_tile"],
            "ic_chunk": k["ic_chunk"],
            "loads_per_fma": d["loads"],
            "balance": d["balance"],
            "chunks_log2": np.log2(d["chunks"]),
            "tiles_per_chunk_log2": np.log2(d["tiles"] / d["chunks"]),
            "weight_tile_log2_bytes": np.log2(d["weight_tile"]),
            "input_tile_log2_bytes": np.log2(d["input_tile"]),
            "order_kh_first": k["order"] == "kh,ic,kw",
            "order_k_before_ic": k["order"] == "kh,kw,ic",
            "order_lane_before_kw": k["order"] == "ic,kh,lane,kw",
            "outer_oh_first": k["outer"] == "oh,oc,ow",
            "outer_oc_last": k["outer"] == "oh,ow,oc",
            "unroll": k["unroll"],
            "pad_parallel": k["pad"] == "parallel",
            "pad_tile": k["pad"] == "tile",
            "plane": k["accumulate"] == "plane",
            "prefetch": k["prefetch"],
            "chunk_steps_log2": np.log2(k["ic_chunk"] * self.in_lanes * self.kernel_h * self.kernel_w),
            "kernel": self.kernel_h * self.kernel_w,
            "log2_oc_blocks": np.log2(self.oc_blocks),
            "log2_in_blocks": np.log2(self.in_blocks),
            "log2_out_h": np.log2(self.out_h),
            "log2_out_w": np.log2(self.out_w),
        }

    def _derived(self, k: dict[str, NDArray]) -> dict[str, NDArray]:
        pixels = k["oh_tile"] * k["ow_tile"]
        oc_loops = self.oc_blocks / k["oc_tile"]
        oh_loops = self.out_h / k["oh_tile"]
        ow_loops = self.out_w / k["ow_tile"]
        outer, fused = k["outer"], k["fused"]
        first = np.where(outer == "oc,oh,ow", oc_loops, oh_loops)
        second = np.select([outer == "oc,oh,ow", outer == "oh,oc,ow"], [oh_loops, oc_loops], ow_loops)
        chunks = self.batch * np.where(fused == 1, 1, first) * np.where(fused == 3, second, 1)
        weight = (
            self.step_bytes * k["oc_tile"] * self.in_blocks * self.in_lanes * self.kernel_h * self.kernel_w * self.lanes
        )
        source = (
            self.step_bytes
            * self.in_blocks
            * self.in_lanes
            * (k["oh_tile"] + self.kernel_h - 1)
            * (k["ow_tile"] + self.kernel_w - 1)
        )
        return {
            "accumulators": k["oc_tile"] * pixels,
            "loads": (pixels + k["oc_tile"]) / (pixels * k["oc_tile"]),
            "chunks": chunks,
            "tiles": self.batch * oc_loops * oh_loops * ow_loops,
            "balance": blocks.balance(chunks, self.threads),
            "weight_tile": weight,
            "input_tile": source,
        }

    def default(self) -> Indices:
        """The best configuration by a simple model of the micro-kernel.

        Multiply-adds issue at full rate when about ten accumulators hide their latency and loads stay below half a
        load per multiply-add; threads must get equal shares; and what is read again (the weights of a tile for every
        pixel, the input rows for every channel block) should come from the L2 cache.
        """
        candidates = self._reasoned
        return self._completed(candidates[int(np.argmin(self._cost(self.columns(candidates))))])

    def default_in_model(self) -> Indices:
        """The best by the same model, and what threads read of one another.

        Where threads share output channels, each of them reads the whole input, of which others wrote a part; where
        they share rows, each reads all weights.
        """
        candidates = self._reasoned
        k = self.columns(candidates)
        by_rows = (k["outer"] != _OUTER[0]) & (k["oh_tile"] < self.out_h)
        common = np.where(by_rows, self._weight_bytes, self.data_bytes)
        moved = common * (1 - 1 / self.threads) * (self.batch < self.threads)  # else threads have images of their own
        return self._completed(
            candidates[int(np.argmin(self._cost(k) + self.target.costs.convolution.traffic * moved))]
        )

    @functools.cached_property
    def _reasoned(self) -> Indices:
        """Configurations that differ in what `_cost` decides; the rest is decided apart, or hardly matters."""
        return self.grid(fixed=("ic_chunk", "order", "unroll", "prefetch"))

    def _completed(self, indices: Indices) -> Indices:
        """A configuration (D,) of `_reasoned` with its other knobs."""
        best = self.decode(indices)
        if best["accumulate"] == "plane":
            best["ic_chunk"] = self._least_chunk()
            best["prefetch"] = bool(_may_prefetch(self.columns(self.encode(best)[None, :]))[0])
        elif not self.plain and self._weight_bytes > self.target.l1_bytes and int(best["oc_tile"]) < self.oc_blocks:
            # Prefetching weights again with every row of tiles costs more than their first time saves.
            passes = 1 if best["outer"] == "oc,oh,ow" else self.out_h // int(best["oh_tile"])
            best["prefetch"] = passes <= self.target.costs.convolution.most_passes
        return self.encode(best)

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        """In vector multiply-adds that one core does meanwhile, as `best_case`, which is the default's."""
        return self.best_case() * self._cost(self.columns(indices)) / self._default_cost

    @functools.cached_property
    def _default_cost(self) -> float:
        return float(self._cost(self.columns(self.default()[None, :]))[0])

    @property
    def _weight_bytes(self) -> float:
        blocks_of_weights = self.oc_blocks * self.lanes * self.in_blocks * self.in_lanes
        return self.step_bytes * blocks_of_weights * self.kernel_h * self.kernel_w

    def _cost(self, k: dict[str, NDArray]) -> NDArray[np.float64]:
        """Time (N,) in no particular unit, by the model of `default`."""
        d = self._derived(k)
        costs, tile = self.target.costs.convolution, self.target.costs.tile
        compute = blocks.issue_rate(k["oc_tile"], k["oh_tile"] * k["ow_tile"], self.target)
        compute /= 1 + tile.load_penalty * np.maximum(0, d["loads"] - tile.free_loads)
        # Weights that do not stay in L1 come from L2 for every tile: few pixels use them too seldom.
        pixels = k["oh_tile"] * k["ow_tile"]
        missing = np.maximum(0, costs.enough_pixels - pixels)
        compute /= 1 + costs.pixel_penalty * missing * (d["weight_tile"] > self.target.l1_bytes)
        # Traffic from beyond L2, in vector loads per multiply-add, for the operand that the loop order streams.
        l2 = costs.l2_share * self.target.l2_bytes
        flops = 2.0 * self.batch * self.oc_blocks * self.out_h * self.out_w * self.lanes
        flops *= self.in_blocks * self.in_lanes * self.kernel_h * self.kernel_w
        weights = self._weight_bytes
        oc_first = k["outer"] == "oc,oh,ow"
        rows = self.out_h / k["oh_tile"]
        input_passes = np.where(oc_first, self.oc_blocks / k["oc_tile"], 1)
        input_passes = np.where(self.data_bytes <= l2, 1, input_passes)
        plane = k["accumulate"] == "plane"
        sheltered = _is_sheltered(k)
        weight_passes = np.where(oc_first & ((d["weight_tile"] <= l2) | sheltered), 1, rows)
        weight_passes = np.where(weights <= l2, 1, weight_passes)
        traffic = self.data_bytes * input_passes + weights * weight_passes
        seconds = flops / (compute * d["balance"]) + costs.traffic * traffic
        in_tile, in_parallel = k["pad"] == "tile", k["pad"] == "parallel"
        seconds *= 1 + costs.pad_tile_penalty * in_tile + costs.pad_parallel_penalty * in_parallel
        narrow = (k["ow_tile"] < costs.narrow_columns) & (k["oh_tile"] > 1)
        seconds *= 1 + costs.unroll_penalty * k["unroll"] + costs.narrow_penalty * narrow
        other, lane = k["order"] != "ic,kh,kw", k["order"] == "ic,kh,lane,kw"
        seconds *= 1 + costs.order_penalty * other + costs.lane_order_penalty * lane
        # Weights that fill most of L2 are better read once per chunk; a plane beyond L2 costs more than that saves.
        large = d["weight_tile"] > costs.large_weights_share * self.target.l2_bytes
        seconds *= 1 + costs.large_weights_penalty * (~sheltered & large)
        plane_bytes = self.sum_bytes * k["oc_tile"] * self.lanes * self.out_h * self.out_w
        in_memory = costs.plane_penalty + costs.large_plane_penalty * (plane_bytes > costs.plane_share * l2)
        return seconds * (1 + plane * in_memory + costs.open_plane_penalty * (plane & ~sheltered))

    def best_case(self) -> float:
        """Estimated time of a good schedule, in vector multiply-adds that one core does meanwhile."""
        work = float(self.batch * self.oc_blocks * self.out_h * self.out_w * self.in_blocks * self.in_lanes)
        kernel = self.kernel_h * self.kernel_w
        weight = self.step_bytes * self.oc_blocks * self.lanes * self.in_blocks * self.in_lanes * kernel
        costs = self.target.costs.tile
        products = work * kernel / (costs.typical_share * self.threads)
        return float(blocks.overlapped(products, costs.dram_line * weight / self.target.line_bytes, costs))

    def costs(self, flops: float, weight_bytes: float) -> tuple[tuple[float, float], ...]:
        return ((flops - (self.contraction.pack - 1) * self.products, weight_bytes),)

    @property
    def products(self) -> float:
        """Operations of all multiply-adds; one is of all packed elements."""
        work = float(self.batch * self.oc_blocks * self.out_h * self.out_w * self.in_blocks * self.in_lanes)
        return 2.0 * work * self.kernel_h * self.kernel_w * self.lanes

    def _least_chunk(self) -> int:
        """The smallest chunk of input channels after which storing the accumulators costs little."""
        steps = self.in_lanes * self.kernel_h * self.kernel_w
        least = self.target.costs.convolution.chunk_steps
        chunks = blocks.divisors(self.in_blocks, _MOST_CHUNK)
        return next((chunk for chunk in chunks if chunk * steps >= least), chunks[-1])

    # -- applying a configuration -----------------------------------------------------------------

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        sch = blocks.schedule_of(self.func)
        anchor = blocks.anchor_of(sch)
        weight = sch.get(anchor).reads[-1].source
        out = blocks.fuse_epilogue(sch, anchor)
        loops = sch.get_loops(anchor)
        n, oc, oh, ow, lane = loops[:5]
        icb, kh, kw = loops[5:8]
        oc_o, oc_i = sch.split(oc, [None, config["oc_tile"]])
        oh_o, oh_i = sch.split(oh, [None, config["oh_tile"]])
        ow_o, ow_i = sch.split(ow, [None, config["ow_tile"]])
        ic_o, ic_i = sch.split(icb, [None, config["ic_chunk"]])
        in_lane, packed = loops[8:9], loops[9:]
        plane = config["accumulate"] == "plane"
        chunks = [] if plane else [ic_o]
        order = {
            "ic,kh,kw": [*chunks, kh, kw, ic_i, *in_lane],
            "kh,ic,kw": [*chunks, kh, ic_i, kw, *in_lane],
            "kh,kw,ic": [kh, kw, *chunks, ic_i, *in_lane],
            "ic,kh,lane,kw": [*chunks, ic_i, kh, *in_lane, kw],
        }[str(config["order"])]
        tiles = {"oc": oc_o, "oh": oh_o, "ow": ow_o}
        outer = [n, *(tiles[name] for name in str(config["outer"]).split(","))]
        fused = int(config["fused"])
        chunked = [ic_o] if plane else []
        # Channels inside pixels: the other way round LLVM keeps every pixel's input for the next channels, and spills.
        sch.reorder(*outer[:fused], *chunked, *outer[fused:], *order, oh_i, ow_i, oc_i, lane, *packed)
        parallel = sch.fuse(*outer[:fused]) if fused > 1 else outer[0]
        tile = outer[-1] if fused < len(outer) else parallel
        sch.reverse_compute_at(out, parallel if plane else tile)
        sch.parallel(parallel)
        self._place_padding(sch, str(config["pad"]), parallel, tile)
        if not plane:
            sch.set_scope(anchor, 0, "local")
        for loop in (oc_i, oh_i, ow_i):
            sch.unroll(loop)
        if config["unroll"]:
            sch.unroll(order[-1] if config["order"] == "ic,kh,lane,kw" else kw)
        blocks.vectorize_lanes(sch, lane, anchor, ic_o if plane else order[0], self.target)
        sch.vectorize(sch.get_loops(out)[-1])
        marks: dict[int, list[prefetch.Ahead]] = {}
        if self.addends and order[0] is ic_o:
            marks[0] = self._addends(config)
        if config["prefetch"]:
            ahead, depth = self._ahead(blocks.argument_of(self.func, weight), config)
            marks.setdefault(depth, []).append(ahead)
        for depth, aheads in marks.items():
            sch.annotate((ic_o, kh, kw)[depth], prefetch.MARK, prefetch.text_of(aheads))
        return sch

    def _ahead(self, argument: int, config: Mapping[str, KnobValue]) -> tuple[prefetch.Ahead, int]:
        """Weights to prefetch, and the loop where: 0 for that of chunks, 1 and 2 for the kernel's rows and columns.

        They are those of the next tile's channels, shared out among the tiles of pixels; of a plane, whose chunks are
        around its tiles, those of its next chunk. (Behind the last chunk of a block of outputs lies the first of the
        next, which is wanted soon.) Few tiles would prefetch many lines at once, which makes the core wait: then
        each position of the kernel prefetches a part.
        """
        oc_tile, oh_tile, ow_tile, chunk = (int(config[name]) for name in ("oc_tile", "oh_tile", "ow_tile", "ic_chunk"))
        rows, columns = self.out_h // oh_tile, self.out_w // ow_tile
        oh, ow, icb, kh, kw = 2, 3, 5, 6, 7  # positions of the anchor's loops
        turn, turns = {
            "oc,oh,ow": (((oh, oh_tile, columns), (ow, ow_tile, 1)), rows * columns),
            "oh,oc,ow": (((ow, ow_tile, 1),), columns),
            "oh,ow,oc": ((), 1),
        }[str(config["outer"])]
        plane = config["accumulate"] == "plane"
        lines = chunk * self.kernel_h * self.kernel_w * self.in_lanes
        depth = 0
        for position, extent in ((kh, self.kernel_h), (kw, self.kernel_w)):
            if (plane and not depth) or (turns < lines and config["order"] == _ORDERS[0]):
                depth += 1
                turn = (*((i, divisor, factor * extent) for i, divisor, factor in turn), (position, 1, 1))
                turns *= extent
        group, next_chunk = (0, chunk) if plane else (oc_tile, 0)
        ahead = prefetch.Ahead(
            argument=argument,
            place=((1, group), (icb, next_chunk), (None, 0), (None, 0), (None, 0), (None, 0)),
            rows=oc_tile,
            along=4,
            lines=lines,
            turn=turn,
            turns=turns,
        )
        return ahead, depth

    def _addends(self, config: Mapping[str, KnobValue]) -> list[prefetch.Ahead]:
        """What the next tile of pixels adds to its sums (the shortcut of a residual block) is prefetched in this one.

        Loaded only where it is added, it would make the core wait: ResNet-50's 64 -> 256 over 56 x 56 takes twice its
        time where the shortcut comes from memory.
        """
        oc_tile, oh_tile, ow_tile, chunk = (int(config[name]) for name in ("oc_tile", "oh_tile", "ow_tile", "ic_chunk"))
        return [
            prefetch.Ahead(
                argument=argument,
                place=((0, 0), (1, 0), (2, row), (3, ow_tile), (None, 0)),
                rows=oc_tile,
                row_axis=1,
                along=3,
                lines=ow_tile,
                turn=((5, chunk, 1),),
                turns=self.in_blocks // chunk,
            )
            for argument in self.addends
            for row in range(oh_tile)
        ]

    def _place_padding(self, sch: s_tir.Schedule, where: str, parallel: Any, tile: Any) -> None:
        if not self.has_pad:
            return
        pad = sch.get_sblock("data_pad")
        if where == "apart":
            loops = sch.get_loops(pad)
            sch.parallel(sch.fuse(*loops[:3]))
        else:
            sch.compute_at(pad, parallel if where == "parallel" else tile)
        if not self.plain:
            sch.vectorize(sch.get_loops(pad)[-1])


def _is_sheltered(k: Mapping[str, NDArray]) -> NDArray[np.bool_]:
    """Where a chunk of weights is read from beyond L1 once for all pixels of its output channels (N,)."""
    return (k["accumulate"] == "plane") & (k["outer"] == _OUTER[0]) & (k["fused"] <= 2)


def _may_prefetch(k: Mapping[str, NDArray]) -> NDArray[np.bool_]:
    """Where it is known which weights come next (N,): the next channels', or those of a plane's next chunk."""
    tile = (k["accumulate"] == "tile") & np.isin(k["order"], [order for order in _ORDERS if order.startswith("ic")])
    return tile | (_is_sheltered(k) & (k["order"] == _ORDERS[0]))
