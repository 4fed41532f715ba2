"""The input product of a recurrent layer, computed a window of steps ahead, in the loops of the recurrent product.

With one row, the recurrent product waits for its weights: it has twice the time that its multiply-adds take. The
product with the input has as many again, and needs nothing of the recurrence. Notation: as in `recurrent_loops`; I
inputs, M steps of a *window*, as many as a tile has vectors of gates.

    x        [T, 1, I]       the layer's input
    wx       [B, G, I, L]    input weights, lanes beyond H zero
    bx       [B, G, L]       bias

In every step a tile computes the gate inputs of one of its M vectors of gates for all steps of the next window; after
M steps it has them all. The last window may overlap the one before it. A thread only reads gate inputs that it has
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script import builder as T

if TYPE_CHECKING:
    from calumma.contractions.recurrent.recurrent_loops import RecurrentLoops


class InputWindows:
    """What the loops of a layer need of its input product."""

    def __init__(self, loops: RecurrentLoops, read: Callable[..., Any]) -> None:
        """`read` makes the buffer of one more argument, from its name and shape."""
        layer = loops.layer
        self.loops, self.steps, self.inputs, self.lanes = loops, layer.steps, layer.inputs, layer.lanes
        self.gates = len(layer.recurrence.gates)
        self.size = loops.tiling.blocks * self.gates
        self._x = read("x", (layer.steps, layer.batch, layer.inputs))
        self._weights = read("wx", (layer.blocks, self.gates, layer.inputs, layer.lanes))
        self._bias = read("bx", (layer.blocks, self.gates, layer.lanes))

    def allocate(self) -> None:
        """Room for the gate inputs of two windows, by turns."""
        shape = (2, self.loops.layer.blocks, self.gates, self.size, self.lanes)
        self._buffer = T.alloc_buffer(shape, "float32")

    def element(self, step: Any, block: Any, gate: int, lane: Any) -> Any:
        """A gate input."""
        window = step // self.size
        return self._buffer[window % 2, block, gate, step - self._first(window), lane]

    def first_window(self, first_block: Any) -> None:
        """Compute all gate inputs of the first window for the tile that starts at a block."""
        with T.serial(self.size) as vector:
            ahead = GatesAhead(self, 0, first_block, vector)
            ahead.start()
            with T.serial(self.inputs) as k:
                ahead.add(k)
            ahead.finish()

    def goes_on(self, step: Any) -> Any:
        """Whether there is a window after that of a step."""
        return (step // self.size + 1) * self.size < self.steps

    def next_window(self, step: Any, first_block: Any) -> GatesAhead:
        """The part of the next window's gate inputs that a tile computes in a step."""
        return GatesAhead(self, step // self.size + 1, first_block, step % self.size)

    def _first(self, window: Any) -> Any:
        """The first step of a window."""
        return tirx.min(window * self.size, self.steps - self.size)


class GatesAhead:
    """One vector of gates of a tile, for all steps of a window."""

    def __init__(self, windows: InputWindows, window: Any, first_block: Any, vector: Any) -> None:
        self._windows, self._window = windows, window
        self._place = first_block + vector // windows.gates, vector % windows.gates
        self._sums = T.alloc_buffer((windows.size, windows.lanes), "float32", scope="local")

    def start(self) -> None:
        """Begin with zeros."""
        with T.unroll(self._windows.size) as m, self._windows.loops.vector() as lane:
            T.buffer_store(self._sums, tirx.const(0.0, "float32"), [m, lane])

    def add(self, k: Any) -> None:
        """Add the products of one input."""
        windows, first = self._windows, self._windows._first(self._window)
        with T.unroll(windows.size) as m, windows.loops.vector() as lane:
            value = windows._x[windows.loops.time(first + m), 0, k] * windows._weights[(*self._place, k, lane)]
            T.buffer_store(self._sums, self._sums[m, lane] + value, [m, lane])

    def finish(self) -> None:
        """Add the bias and store."""
        windows = self._windows
        with T.unroll(windows.size) as m, windows.loops.vector() as lane:
            value = self._sums[m, lane] + windows._bias[(*self._place, lane)]
            T.buffer_store(windows._buffer, value, [self._window % 2, *self._place, m, lane])
