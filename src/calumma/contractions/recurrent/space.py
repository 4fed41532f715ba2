"""Design space of recurrent layers.

Notation: T steps, N rows of the batch, H hidden units in B blocks of L lanes, G gates of the widest phase. A register
tile is `blocks` blocks of hidden units x `rows` rows x G gates, each `splits` times. Per step of the reduction it
loads `blocks` x G weight vectors and multiplies each with `rows` broadcast elements of the state. With one row every
weight is used once per step: the layer is a stream over its recurrent weights, from L2 where a thread's part of them
fits, else from L3.

Threads either share the hidden units, and meet after every phase of every step, or the rows of the batch, and never
meet; then each reads all weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx

from calumma.contractions.recurrent.expression import LAYER, layer_from
from calumma.contractions.recurrent.recurrent_loops import RecurrentLoops, Tiling
from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space import blocks
from calumma.space.base import Knob, KnobSpace
from calumma.target import Target

_MAX_BLOCKS = 8
_MAX_ROWS = 8
_MAX_CHUNKS = 64
"""Limits of a tile's sides and of the pieces of work: they keep spaces small."""


class RecurrentSpace(KnobSpace):
    """Tilings of one layer in one direction."""

    template = "recurrent"
    version = 1

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int) -> None:
        self.func = func
        self.target = target
        self.threads = threads
        sch = blocks.schedule_of(func)
        self.layer = layer_from(str(sch.get(blocks.anchor_of(sch)).annotations[LAYER]))
        self.gates = max(len(phase) for phase in self.layer.phases)
        batch, own = self.layer.batch, self.layer.blocks
        chunks = {*blocks.divisors(own, _MAX_CHUNKS), *blocks.divisors(batch, _MAX_CHUNKS)}
        super().__init__(
            (
                Knob("blocks", blocks.divisors(own, _MAX_BLOCKS)),
                Knob("rows", blocks.divisors(batch, _MAX_ROWS)),
                Knob("splits", (1, 2, 4)),
                Knob("unroll", (1, 2, 4)),
                Knob("shared", ("units", "rows") if batch > 1 else ("units",)),
                Knob("chunks", tuple(sorted(chunks))),
                Knob("alternate", (False, True)),
            )
        )

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        k = self.columns(indices)
        fits = self._accumulators(k) + self._window(k) + k["rows"] + 1 <= self.target.registers
        fits &= self._window(k) <= self.layer.steps
        deep = k["splits"] * k["unroll"] <= self.layer.hidden
        by_rows = k["shared"] == "rows"
        tiles = self.layer.blocks // k["blocks"]
        own_rows = self.layer.batch // k["chunks"]
        even_rows = (self.layer.batch % k["chunks"] == 0) & (own_rows % k["rows"] == 0) & (k["chunks"] > 1)
        even = np.where(by_rows, even_rows, tiles % k["chunks"] == 0)
        turns = np.where(by_rows, tiles, tiles // k["chunks"]) > 1
        return fits & deep & even & (turns | ~k["alternate"])

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(self._quantities(self.columns(np.zeros((1, len(self.knobs)), np.int32))))

    def features(self, indices: Indices) -> NDArray[np.float32]:
        quantities = self._quantities(self.columns(indices)).values()
        return np.stack([np.broadcast_to(q, len(indices)) for q in quantities], axis=1).astype(np.float32)

    def _quantities(self, k: dict[str, NDArray]) -> dict[str, Any]:
        """Features by name: (N,) from knob values (N,), or a number that all configurations share."""
        by_rows = k["shared"] == "rows"
        return {
            "accumulators": self._accumulators(k),
            "blocks": k["blocks"],
            "rows": k["rows"],
            "splits": k["splits"],
            "unroll": k["unroll"],
            "loads_per_fma": self._loads(k),
            "by_rows": by_rows,
            "chunks_log2": np.log2(k["chunks"]),
            "balance": blocks.balance(k["chunks"], self.threads),
            "alternate": k["alternate"],
            "thread_weights_log2_bytes": np.log2(self._thread_bytes(k)),
            "log2_hidden": np.log2(self.layer.hidden),
            "log2_batch": np.log2(self.layer.batch),
            "log2_steps": np.log2(self.layer.steps),
            "phases": len(self.layer.phases),
            "window": self._window(k),
            "log2_inputs": np.log2(1 + self.layer.inputs),
        }

    def _accumulators(self, k: dict[str, NDArray]) -> NDArray:
        return k["splits"] * k["blocks"] * k["rows"] * self.gates

    def _window(self, k: dict[str, NDArray]) -> NDArray:
        """Steps for which gate inputs are computed ahead; 0 where they are given."""
        return k["blocks"] * len(self.layer.recurrence.gates) * (self.layer.inputs > 0)

    def _loads(self, k: dict[str, NDArray]) -> NDArray:
        vectors = k["blocks"] * self.gates
        return (vectors + k["rows"]) / (vectors * k["rows"])

    def _weights(self) -> int:
        """Cache lines of all recurrent weights of a step."""
        gates = sum(len(phase) for phase in self.layer.phases)
        return -(-4 * self.layer.blocks * self.layer.lanes * self.layer.hidden * gates // self.target.line_bytes)

    def _busy(self, k: dict[str, NDArray]) -> NDArray:
        """Threads that the pieces of work keep busy."""
        return self.threads * blocks.balance(k["chunks"], self.threads)

    def _thread_bytes(self, k: dict[str, NDArray]) -> NDArray:
        """Recurrent weights that one thread reads per step."""
        total = self._weights() * self.target.line_bytes
        return np.where(k["shared"] == "rows", total, total / self._busy(k))

    def default(self) -> Indices:
        """Weights read once per step by the thread that has them in its L2; threads only where meeting pays."""
        grid = self.grid()
        return grid[int(np.argmin(self.estimate(grid)))]

    def estimate(self, indices: Indices) -> NDArray[np.float64]:
        """Multiply-adds that one core could do during a step: the longer of computing and reading, gates, meetings."""
        costs, tile, layer = self.target.costs.recurrent, self.target.costs.tile, self.layer
        k = self.columns(indices)
        gates = sum(len(phase) for phase in layer.phases)
        vectors = layer.batch * layer.blocks
        rate = np.minimum(1.0, self._accumulators(k) / costs.accumulators)
        rate = rate / (1 + costs.load_penalty * np.maximum(0.0, self._loads(k) - tile.free_loads))
        ahead = vectors * layer.inputs * len(layer.recurrence.gates)
        products = (vectors * layer.hidden * gates + ahead) / (rate * self._busy(k))
        near = self._thread_bytes(k) <= costs.l2_share * self.target.l2_bytes
        line = np.where(near, costs.near_line, costs.far_line * np.where(k["alternate"], costs.turned, 1.0))
        vectors_per_line = self.target.line_bytes // (4 * layer.lanes)
        ahead_lines = ahead / vectors_per_line / np.maximum(1, self._window(k)) / self._busy(k)
        reading = self._thread_bytes(k) / self.target.line_bytes * line + ahead_lines * costs.far_line
        meetings = len(layer.phases) * costs.meeting * ((k["shared"] == "units") & (k["chunks"] > 1))
        cost = np.maximum(products, reading) + vectors * costs.unit / self._busy(k) + meetings
        cost = cost * (1 + costs.split_penalty * np.log2(k["splits"]))
        return cost * (1 + costs.unroll_penalty * np.log2(k["unroll"] * k["chunks"]))

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        tiling = Tiling(
            blocks=int(config["blocks"]),
            rows=int(config["rows"]),
            splits=int(config["splits"]),
            unroll=int(config["unroll"]),
            shared=str(config["shared"]),
            chunks=int(config["chunks"]),
            alternate=bool(config["alternate"]),
        )
        function = RecurrentLoops(self.layer, tiling).function()
        return s_tir.Schedule(function.with_attrs(dict(self.func.attrs.items())))
