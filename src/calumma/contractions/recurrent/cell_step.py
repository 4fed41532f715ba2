"""One step of a cell as loops over the lanes of a vector: gates, activation functions, new state.

Notation: as in `recurrent_loops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script import builder as T

from calumma.contractions.recurrent.cell_functions import apply
from calumma.graph.recurrence import GRU, LSTM

if TYPE_CHECKING:
    from calumma.contractions.recurrent.recurrent_loops import RecurrentLoops


class CellStep:
    """The gates of one block of hidden units, in one row and step, applied to the sums of a phase."""

    def __init__(self, loops: RecurrentLoops, phase: int, step: Any, block: Any, row: Any) -> None:
        self.loops, self.layer, self.recurrence = loops, loops.layer, loops.recurrence
        self.phase, self.step, self.block, self.row = phase, step, block, row
        self.gates = loops.layer.phases[phase]
        self.first = block * loops.layer.lanes

    def emit(self, sums: Callable[[int, Any], Any]) -> None:
        """Emit the step; `sums` gives an element of the recurrent product, from the gate's number in the phase."""
        # What activations are given: gate inputs, and recurrent products but for that which a reset gate multiplies.
        self.before = {gate: self._local() for gate in self.gates}
        self._gate_inputs()
        apart = self.recurrence.linear_before_reset and self.recurrence.cell == GRU
        for number, gate in enumerate(self.gates):
            if not (apart and gate == "h"):
                before = self.before[gate]
                with self.loops.vector() as lane:
                    T.buffer_store(before, before[lane] + sums(number, lane), [lane])
        if self.recurrence.cell == LSTM:
            self._lstm()
        elif self.recurrence.cell == GRU:
            self._gru(sums)
        else:
            self._rnn()

    def _lstm(self) -> None:
        loops, (f, g, h) = self.loops, self.recurrence.activations
        old, new = self._local(), self._local()
        self._each(old, lambda lane: loops.cell[self.row, self.first + lane])
        gates = {gate: self._local() for gate in "iofc"}
        self._activate(gates["i"], f, lambda lane: self.before["i"][lane] + self._peep(0, old, lane))
        if self.recurrence.input_forget:
            self._each(gates["f"], lambda lane: _f32(1.0) - gates["i"][lane])
        else:
            self._activate(gates["f"], f, lambda lane: self.before["f"][lane] + self._peep(2, old, lane))
        self._activate(gates["c"], g, lambda lane: self.before["c"][lane])
        self._each(new, lambda lane: gates["f"][lane] * old[lane] + gates["i"][lane] * gates["c"][lane])
        self._activate(gates["o"], f, lambda lane: self.before["o"][lane] + self._peep(1, new, lane))
        result = self._local()
        self._each(result, lambda lane: gates["o"][lane] * apply(h, new[lane]))
        self._write(result, new)

    def _gru(self, sums: Callable[[int, Any], Any]) -> None:
        loops, (f, g) = self.loops, self.recurrence.activations
        update, old, result = self._local(), self._local(), self._local()
        self._each(old, lambda lane: loops.hidden[self.step % 2, self.row, self.first + lane])
        if "z" in self.gates:
            self._activate(update, f, lambda lane: self.before["z"][lane])
            reset = self._local()
            self._activate(reset, f, lambda lane: self.before["r"][lane])
        if "h" not in self.gates:
            with loops.vector() as lane:
                T.buffer_store(loops.update, update[lane], [self.row, self.first + lane])
            with loops.vector() as lane:
                T.buffer_store(loops.gated, reset[lane] * old[lane], [self.row, self.first + lane])
            return
        if "z" in self.gates:
            number = self.gates.index("h")

            def candidate(lane: Any) -> Any:
                product = sums(number, lane)
                product = product if loops.bias is None else product + loops.bias[self.first + lane]
                return self.before["h"][lane] + reset[lane] * product

            self._activate(result, g, candidate)
        else:
            self._each(update, lambda lane: loops.update[self.row, self.first + lane])
            self._activate(result, g, lambda lane: self.before["h"][lane])
        self._each(result, lambda lane: (_f32(1.0) - update[lane]) * result[lane] + update[lane] * old[lane])
        self._write(result)

    def _rnn(self) -> None:
        result = self._local()
        self._activate(result, self.recurrence.activations[0], lambda lane: self.before["h"][lane])
        self._write(result)

    # -- pieces -----------------------------------------------------------------------------------

    def _local(self) -> Any:
        return T.alloc_buffer((self.layer.lanes,), "float32", scope="local")

    def _each(self, buffer: Any, value: Callable[[Any], Any]) -> None:
        with self.loops.vector() as lane:
            T.buffer_store(buffer, value(lane), [lane])

    def _activate(self, buffer: Any, activation: Any, value: Callable[[Any], Any]) -> None:
        clip = self.recurrence.clip

        def clipped(lane: Any) -> Any:
            # max(c, x) becomes c > x ? c : x, so that NaN falls through.
            return value(lane) if clip is None else tirx.min(_f32(clip), tirx.max(_f32(-clip), value(lane)))

        self._each(buffer, clipped)
        self._each(buffer, lambda lane: apply(activation, buffer[lane]))

    def _peep(self, number: int, cell: Any, lane: Any) -> Any:
        weights = self.loops.peepholes
        return _f32(0.0) if weights is None else weights[number, self.first + lane] * cell[lane]

    def _gate_inputs(self) -> None:
        loops, hidden = self.loops, self.layer.hidden
        if loops.windows is not None:
            for gate in self.gates:
                number, before = self.recurrence.gates.index(gate), self.before[gate]
                with loops.vector() as lane:
                    value = loops.windows.element(self.step, self.block, number, lane)
                    T.buffer_store(before, value, [lane])
            return
        time = loops.time(self.step)
        for gate in self.gates:
            start = self.recurrence.gates.index(gate) * hidden + self.first
            self._read(self.before[gate], loops.x, [time, self.row], start)

    def _read(self, buffer: Any, source: Any, place: list[Any], start: Any) -> None:
        """The block's hidden units from `start` on, zeros beyond the last one."""

        def value(lane: Any) -> Any:
            return source[(*place, start + lane)]

        def part() -> None:
            self._each(buffer, lambda lane: _f32(0.0))
            with T.serial(self.layer.hidden % self.layer.lanes) as lane:
                T.buffer_store(buffer, value(lane), [lane])

        self._either_whole(lambda: self._each(buffer, value), part)

    def _either_whole(self, vector: Callable[[], None], part: Callable[[], None]) -> None:
        """Do one thing for a whole block, another for the last one if that is not whole."""
        if self.loops.whole:
            vector()
            return
        with T.If(self.block < self.layer.blocks - 1):
            with T.Then():
                vector()
            with T.Else():
                part()

    def _write(self, hidden: Any, cell: Any = None) -> None:
        """Store the state and the output of the step; a row whose sequence has ended keeps its state."""
        loops = self.loops

        def new() -> None:
            self._store_hidden(lambda lane: hidden[lane])
            if cell is not None:
                with loops.vector() as lane:
                    T.buffer_store(loops.cell, cell[lane], [self.row, self.first + lane])
            self._store_output(lambda lane: hidden[lane])

        if loops.length is None:
            new()
            return
        with T.If(loops.time(self.step) < loops.length[self.row]):
            with T.Then():
                new()
            with T.Else():
                self._store_hidden(lambda lane: loops.hidden[self.step % 2, self.row, self.first + lane])
                self._store_output(lambda lane: _f32(0.0))

    def _store_hidden(self, value: Callable[[Any], Any]) -> None:
        with self.loops.vector() as lane:
            T.buffer_store(self.loops.hidden, value(lane), [(self.step + 1) % 2, self.row, self.first + lane])

    def _store_output(self, value: Callable[[Any], Any]) -> None:
        loops = self.loops
        time = loops.time(self.step)

        def store(loop: Any) -> None:
            with loop as lane:
                T.buffer_store(loops.y, value(lane), [time, self.row, self.first + lane])

        self._either_whole(lambda: store(loops.vector()), lambda: store(T.serial(self.layer.hidden % self.layer.lanes)))


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")
