"""Arguments prefetched before they are needed: weights, and what a convolution adds to its result.

A convolution uses the weights of a group of output channels in several turns (the tiles of pixels), and reads those of
the next group right afterwards. Each turn prefetches its share of the next group's cache lines, so that they come from
memory while this group is computed. Hardware does that badly here: its prefetchers stop at every page, and many
streams are read at once. F(2 x 2, 3 x 3) over 7 x 7 x 512 with its weights in memory: 829 us without, 342 us with,
which is what reading 16.8 MB takes.

A schedule marks the loop (an annotation, so that its trace stays whole and other builders may ignore it); the
prefetches are put in when the function is built.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

MARK = "calumma.prefetch"
"""Annotation of the loop at whose start lines are prefetched: the text of some `Ahead`."""
_READ, _INTO_L2, _DATA = 0, 2, 1


@dataclass(frozen=True)
class Ahead:
    """Which lines of an argument to prefetch when an iteration of the marked loop starts.

    A *position* is one of the loops that the one block below the mark had before it was scheduled.
    """

    argument: int
    """Position of the argument."""
    place: tuple[tuple[int | None, int], ...]
    """Index on each of its axes: the value at a position (or 0 for None), plus an offset."""
    rows: int
    """So many consecutive indices of axis `row_axis`."""
    along: int
    """Axis along which `lines` cache lines follow each other, one per index."""
    lines: int
    turn: tuple[tuple[int, int, int], ...]
    """In which turn this is: the sum of value at a position // divisor * factor."""
    turns: int
    """The lines are shared out among so many turns."""
    row_axis: int = 0

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> Ahead:
        place, turn = (tuple(tuple(item) for item in fields[name]) for name in ("place", "turn"))
        return cls(**{**fields, "place": place, "turn": turn})

    def elements(self, buffer: Any, at: list[Any]) -> list[Any]:
        """The first element of every line, from the values `at` all positions."""
        zero = tirx.IntImm("int64", 0)
        turn = sum((at[i] // divisor * factor for i, divisor, factor in self.turn), start=zero)
        start = [(zero if i is None else at[i]) + offset for i, offset in self.place]
        found = []
        for line_number in share(turn, self.turns, self.lines):
            for row in range(self.rows):
                index = list(start)
                index[self.row_axis] = index[self.row_axis] + row
                index[self.along] = index[self.along] + line_number
                found.append(buffer[tuple(index)])
        return found


def text_of(aheads: Iterable[Ahead]) -> str:
    """The value of a mark."""
    return json.dumps([asdict(ahead) for ahead in aheads])


def share(turn: Any, turns: int, lines: int) -> list[Any]:
    """Which of `lines` cache lines to prefetch in turn `turn` of `turns`; over all turns, each at least once."""
    if turns <= 1:
        return [tirx.IntImm("int64", i) for i in range(lines)]
    if turns >= lines:
        return [tirx.indexmod(turn, lines)]
    return [turn + i for i in range(0, lines, turns)]


def line(element: Any) -> Any:
    """A statement that prefetches the cache line of a buffer's element, to be read; beyond the end, in vain."""
    arguments = (tirx.IntImm("int32", value) for value in (_READ, _INTO_L2, _DATA))
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(element), *arguments))


def insert(mod: tvm.IRModule) -> tvm.IRModule:
    """Put the prefetches into all marked loops of a module's scheduled functions."""
    updated = {var: _inserted(func) if isinstance(func, tirx.PrimFunc) else func for var, func in mod.functions.items()}
    return tvm.IRModule(updated, attrs=mod.attrs)


def _inserted(func: tirx.PrimFunc) -> tirx.PrimFunc:
    def visit(loop: tirx.For) -> tirx.For:
        if MARK not in loop.annotations:
            return loop
        aheads = [Ahead._from_fields(fields) for fields in json.loads(str(loop.annotations[MARK]))]
        inner: list[Any] = []
        realized: list[Any] = []
        tvm_ffi.structural_walk(loop.body, (tirx.For, lambda each: inner.append(each.loop_var)))
        tvm_ffi.structural_walk(loop.body, (s_tir.SBlockRealize, realized.append))
        (block,) = realized
        start = {variable: tirx.IntImm("int64", 0) for variable in inner}
        at = [
            tvm_ffi.structural_map(value, (tirx.Var, lambda variable: start.get(variable, variable)))
            for value in block.iter_values
        ]
        prefetches = [line(element) for ahead in aheads for element in ahead.elements(func.params[ahead.argument], at)]
        annotations = {key: value for key, value in loop.annotations.items() if key != MARK}
        body = tirx.SeqStmt([*prefetches, loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=annotations)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, visit)))
