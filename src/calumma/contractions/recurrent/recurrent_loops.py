"""A recurrent layer in one direction as loops: the whole sequence in one function, for one tiling.

Notation: T steps, N rows of the batch, H hidden units, G gates, L lanes of one vector, B = ceil(H / L) blocks of hidden
units, K = H the reduction of the recurrent product. The function's arguments, in order, those in brackets where the
layer has them:

    x        [T, N, G H]            gate inputs: what the product with the step's input and the biases have made;
                                    or x, wx, bx of `input_windows`, from which the function makes them itself
    w        [B, K, g, L]           recurrent weights by phase, see `phases`; lanes beyond H are zero
    [bias]   [B L]                  GRU with `linear_before_reset`: the candidate's recurrent bias
    [p]      [3, B L]               LSTM: peepholes of the gates i, o, f
    [h0, c0] [N, H]                 initial state
    [length] [N] int32              steps of each row
    y        [T, N, H]              hidden state of every step
    h, c     [N, H]                 state after the last step; c for LSTM

A *tile* is some blocks of hidden units by some rows, with all gates of a phase: its accumulators stay in registers
for the reduction, and the gates are applied to them at once. Per step the tiles are dealt to the threads in the same
way, so that a thread reads the same part of the weights again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from calumma.contractions.recurrent.cell_step import CellStep
from calumma.contractions.recurrent.input_windows import GatesAhead, InputWindows
from calumma.graph.recurrence import GRU, LSTM, Recurrence

Steps = list[tuple[str, ...]]


@dataclass(frozen=True)
class RecurrentLayer:
    """A recurrence and its sizes: all that decides about the function."""

    recurrence: Recurrence
    steps: int
    batch: int
    hidden: int
    lanes: int
    bias: bool = False
    peepholes: bool = False
    initial: tuple[bool, bool] = (False, False)
    """Whether h0 and c0 are given; they are zero otherwise."""
    lengths: bool = False
    inputs: int = 0
    """Inputs of the layer, where the function computes the product with them as well; 0 where it is given the gate
    inputs."""

    @property
    def blocks(self) -> int:
        """Blocks of hidden units."""
        return -(-self.hidden // self.lanes)

    @property
    def phases(self) -> Steps:
        """Gates whose recurrent products read the same vector, by what has to be finished before what."""
        recurrence = self.recurrence
        if recurrence.cell == GRU and not recurrence.linear_before_reset:
            return [("z", "r"), ("h",)]
        return [tuple(gate for gate in recurrence.gates if not (recurrence.input_forget and gate == "f"))]


@dataclass(frozen=True)
class Tiling:
    """How the work of a step is cut and dealt."""

    blocks: int = 1
    rows: int = 1
    """Of a tile: blocks of hidden units, rows of the batch."""
    splits: int = 1
    """Partial sums per accumulator."""
    unroll: int = 1
    """Steps of the reduction unrolled, for each partial sum."""
    shared: str = "units"
    """What is dealt to the threads: blocks of hidden "units" in every step, or "rows" of the batch once and for all."""
    chunks: int = 1
    """Pieces that are dealt; with one there is one thread."""
    alternate: bool = False
    """Every other step walks the tiles backwards, and finds in the caches what the step before has read last."""
    vectors: bool = True
    """Whether lanes are vectors."""


class RecurrentLoops:
    """The function of a layer in one tiling.

    Attributes:
        x, weights, bias, peepholes, h0, c0, length: buffers of the arguments; None for what the layer does not have.
        y, last: of the outputs, the second those of the final state.
        hidden, cell: of the state, [2, N, B L] by turns and [N, B L].
        gated, update: [N, B L], what a GRU's first phase leaves to its second: r * h and z.
    """

    x: Any
    windows: InputWindows | None
    weights: list[Any]
    bias: Any
    peepholes: Any
    h0: Any
    c0: Any
    length: Any
    y: Any
    last: list[Any]
    hidden: Any
    cell: Any
    gated: Any
    update: Any

    def __init__(self, layer: RecurrentLayer, tiling: Tiling) -> None:
        self.layer, self.tiling = layer, tiling
        self.recurrence = layer.recurrence
        self.width = layer.blocks * layer.lanes
        self.whole = layer.hidden == self.width

    def function(self, block: Callable[[Sequence[Any], Sequence[Any]], None] | None = None) -> tirx.PrimFunc:
        """The function; `block` describes the one block around its loops, from what it reads and writes."""
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"tirx.noalias": True})
            reads, writes = self._arguments()
            root, own = (T.sblock("root"), T.sblock("recurrent")) if block else (nullcontext(), nullcontext())
            with root, own:
                if block:
                    block(reads, writes)
                self._state()
                if self.tiling.shared == "rows":
                    self._rows_apart()
                else:
                    self._steps_apart()
        return builder.get()

    # -- arguments and state ----------------------------------------------------------------------

    def _arguments(self) -> tuple[list[Any], list[Any]]:
        layer = self.layer
        steps, batch, hidden, blocks = layer.steps, layer.batch, layer.hidden, layer.blocks
        reads: list[Any] = []

        def read(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
            reads.append(T.arg(name, T.buffer(shape, dtype)))
            return reads[-1]

        self.x = self.windows = None
        if layer.inputs:
            self.windows = InputWindows(self, read)
        else:
            self.x = read("x", (steps, batch, len(self.recurrence.gates) * hidden))
        self.weights = [
            read(f"w{i}", (blocks, hidden, len(gates), layer.lanes)) for i, gates in enumerate(layer.phases)
        ]
        self.bias = read("bias", (self.width,)) if layer.bias else None
        self.peepholes = read("p", (3, self.width)) if layer.peepholes else None
        self.h0 = read("h0", (batch, hidden)) if layer.initial[0] else None
        self.c0 = read("c0", (batch, hidden)) if layer.initial[1] else None
        self.length = read("length", (batch,), "int32") if layer.lengths else None
        self.y = T.arg("y", T.buffer((steps, batch, hidden), "float32"))
        self.last = [T.arg("h", T.buffer((batch, hidden), "float32"))]
        if self.recurrence.cell == LSTM:
            self.last.append(T.arg("c", T.buffer((batch, hidden), "float32")))
        return reads, [self.y, *self.last]

    def _state(self) -> None:
        batch, width = self.layer.batch, self.width
        self.hidden = T.alloc_buffer((2, batch, width), "float32")
        self.cell = T.alloc_buffer((batch, width), "float32") if self.recurrence.cell == LSTM else None
        if self.windows is not None:
            self.windows.allocate()
        self.gated = self.update = None
        if len(self.layer.phases) > 1:
            self.gated = T.alloc_buffer((batch, width), "float32")
            self.update = T.alloc_buffer((batch, width), "float32")

    def _start(self, first: Any, rows: int) -> None:
        with T.serial(rows) as i, T.serial(self.width) as unit:
            self._store(self.hidden, self._initial(self.h0, first + i, unit), 0, first + i, unit)
            if self.cell is not None:
                self._store(self.cell, self._initial(self.c0, first + i, unit), first + i, unit)

    def _initial(self, given: Any, row: Any, unit: Any) -> Any:
        if given is None:
            return _f32(0.0)
        value = given[row, tirx.min(unit, self.layer.hidden - 1)]
        return value if self.whole else tirx.if_then_else(unit < self.layer.hidden, value, _f32(0.0))

    def _finish(self, first: Any, rows: int) -> None:
        with T.serial(rows) as i, T.serial(self.layer.hidden) as unit:
            states = [self.hidden[self.layer.steps % 2, first + i, unit]]
            if self.cell is not None:
                states.append(self.cell[first + i, unit])
            for result, state in zip(self.last, states, strict=True):
                if self.length is not None:
                    state = tirx.Select(self.length[first + i] > 0, state, _f32(0.0))
                self._store(result, state, first + i, unit)

    # -- who does what ----------------------------------------------------------------------------

    def _steps_apart(self) -> None:
        """The threads meet after every phase of every step; each computes some hidden units."""
        layer, tiling = self.layer, self.tiling
        self._start(0, layer.batch)
        own = layer.blocks // tiling.blocks // tiling.chunks
        if self.windows is not None:
            with self._dealt() as chunk, T.serial(own) as i:
                self.windows.first_window((chunk * own + i) * tiling.blocks)
        with T.serial(layer.steps) as step:
            for phase in range(len(layer.phases)):
                with self._dealt() as chunk, T.serial(own) as i, T.serial(layer.batch // tiling.rows) as row:
                    tile = chunk * own + self._turned(i, own, step)
                    self._tile(phase, step, tile * tiling.blocks, row * tiling.rows)
        self._finish(0, layer.batch)

    def _rows_apart(self) -> None:
        """The threads never meet: each computes all steps of some rows."""
        layer, tiling = self.layer, self.tiling
        own = layer.batch // tiling.chunks
        tiles = layer.blocks // tiling.blocks
        with self._dealt() as chunk:
            self._start(chunk * own, own)
            with T.serial(layer.steps) as step:
                for phase in range(len(layer.phases)):
                    with T.serial(tiles) as i, T.serial(own // tiling.rows) as row:
                        first = chunk * own + row * tiling.rows
                        self._tile(phase, step, self._turned(i, tiles, step) * tiling.blocks, first)
            self._finish(chunk * own, own)

    def _dealt(self) -> Any:
        return T.parallel(self.tiling.chunks) if self.tiling.chunks > 1 else T.serial(1)

    def _turned(self, i: Any, tiles: int, step: Any) -> Any:
        return i + step % 2 * (tiles - 1 - 2 * i) if self.tiling.alternate else i

    # -- one tile ---------------------------------------------------------------------------------

    def _tile(self, phase: int, step: Any, first_block: Any, first_row: Any) -> None:
        layer, tiling = self.layer, self.tiling
        gates = len(layer.phases[phase])
        sums = T.alloc_buffer((tiling.rows, tiling.blocks, gates, layer.lanes), "float32", scope="local")
        self._product(phase, step, first_block, first_row, sums)
        with T.serial(tiling.rows) as row, T.serial(tiling.blocks) as block:
            cell = CellStep(self, phase, step, first_block + block, first_row + row)
            cell.emit(lambda gate, lane: sums[row, block, gate, lane])

    def _product(self, phase: int, step: Any, first_block: Any, first_row: Any, sums: Any) -> None:
        layer, tiling = self.layer, self.tiling
        shape = (tiling.splits, tiling.rows, tiling.blocks, len(layer.phases[phase]))
        acc = T.alloc_buffer((*shape, layer.lanes), "float32", scope="local")
        with ExitStack() as loops:
            place = [loops.enter_context(T.unroll(extent)) for extent in shape]
            with self.vector() as lane:
                self._store(acc, _f32(0.0), *place, lane)
        add = self._step_of_product(phase, step, first_block, first_row, acc)
        if self.windows is None or phase:
            self._reduce(0, layer.hidden, add)
        else:
            with T.If(self.windows.goes_on(step)):
                with T.Then():
                    self._both_products(self.windows.next_window(step, first_block), add)
                with T.Else():
                    self._reduce(0, layer.hidden, add)
        _, *kept = shape
        with ExitStack() as loops:
            place = [loops.enter_context(T.unroll(extent)) for extent in kept]
            with self.vector() as lane:
                parts = [acc[(split, *place, lane)] for split in range(tiling.splits)]
                self._store(sums, sum(parts[1:], parts[0]), *place, lane)

    def _step_of_product(
        self, phase: int, step: Any, first_block: Any, first_row: Any, acc: Any
    ) -> Callable[[Any, Any], None]:
        """What adds the products with element k of the state to partial sum `split` of the tile."""
        gates, weight, tiling = len(self.layer.phases[phase]), self.weights[phase], self.tiling

        def add(split: Any, k: Any) -> None:
            with T.unroll(tiling.blocks) as b, T.unroll(gates) as g, T.unroll(tiling.rows) as r, self.vector() as lane:
                state = self.gated[first_row + r, k] if phase else self.hidden[step % 2, first_row + r, k]
                value = acc[split, r, b, g, lane] + state * weight[first_block + b, k, g, lane]
                self._store(acc, value, split, r, b, g, lane)

        return add

    def _both_products(self, ahead: GatesAhead, add: Callable[[Any, Any], None]) -> None:
        """The recurrent product, and some of the input product of the next window in between."""
        stride = self.tiling.splits * self.tiling.unroll
        common = min(self.layer.hidden, self.layer.inputs) // stride * stride

        def add_both(split: Any, k: Any) -> None:
            add(split, k)
            ahead.add(k)

        ahead.start()
        self._reduce(0, common, add_both)
        self._reduce(common, self.layer.hidden, add)
        self._reduce(common, self.layer.inputs, lambda _, k: ahead.add(k))
        ahead.finish()

    def _reduce(self, start: int, stop: int, add: Callable[[Any, Any], None]) -> None:
        """Steps of a reduction from `start` to before `stop`, unrolled."""
        splits, stride = self.tiling.splits, self.tiling.splits * self.tiling.unroll
        whole = (stop - start) // stride
        if whole:
            with T.serial(whole) as outer, T.unroll(self.tiling.unroll) as inner, T.unroll(splits) as split:
                add(split, start + outer * stride + inner * splits + split)
        if (stop - start) % stride:
            with T.unroll((stop - start) % stride) as rest:
                add(0, start + whole * stride + rest)

    # -- what all of it uses ----------------------------------------------------------------------

    def vector(self) -> Any:
        """The loop over the lanes of one vector."""
        return T.vectorized(self.layer.lanes) if self.tiling.vectors else T.serial(self.layer.lanes)

    def time(self, step: Any) -> Any:
        """The place in the sequence of the `step`-th step."""
        return self.layer.steps - 1 - step if self.recurrence.reverse else step

    @staticmethod
    def _store(buffer: Any, value: Any, *index: Any) -> None:
        T.buffer_store(buffer, value, list(index))


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")
