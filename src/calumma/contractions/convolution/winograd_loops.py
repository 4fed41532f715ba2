"""Winograd's algorithm as loops: the three stages of one configuration, and weights in the form that they take.

Notation: as in `winograd`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import ir, s_tir, tirx

from calumma.core.values import KnobValue
from calumma.expressions import casts
from calumma.space import blocks
from calumma.tvm_compat import prefetch

if TYPE_CHECKING:
    from calumma.contractions.convolution.winograd import WinogradSpace

KERNEL = 3
"""Rows and columns of the convolution's window."""
Matrix = tuple[tuple[float, ...], ...]

_BT: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_G: dict[int, Matrix] = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_AT: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}


def transform_weights(packed: NDArray[np.float32], m: int) -> NDArray[np.float32]:
    """(OCB, ICB, 3, 3, L in, L out), or pairs of them, as direct convolutions take them, -> U (a^2, OCB, ICB, L, L)."""
    if packed.dtype != np.float32:
        packed = casts.unpacked(packed)
    g = np.array(_G[m])
    both = np.kron(g, g).astype(np.float32)  # (a^2, 9)
    oc, ic, _, _, lanes_in, lanes_out = packed.shape
    flat = np.ascontiguousarray(packed.transpose(2, 3, 0, 1, 4, 5)).reshape(KERNEL * KERNEL, -1)
    return (both @ flat).reshape(len(both), oc, ic, lanes_in, lanes_out)


class WinogradLoops:
    """The three stages as loops, for one configuration."""

    def __init__(self, space: WinogradSpace, config: Mapping[str, KnobValue]) -> None:
        self.space = space
        self.a = space.m + 2
        self.oc_tile, self.t_tile = int(config["oc_tile"]), int(config["t_tile"])
        self.oc_first = config["order"] == "oc,t"
        self.staged = config["parallel"] == "stages"
        self.prefetch = bool(config["prefetch"])
        whole = -(-space.tiles // self.t_tile) * self.t_tile
        self.block = whole if self.staged else int(config["tiles"])
        sch = blocks.schedule_of(space.func)
        anchor = blocks.anchor_of(sch)
        self.data = source_of(sch, anchor)
        self.last = sch.get(blocks.fuse_epilogue(sch, anchor))
        self.result = sch.get(anchor).writes[0].source
        lanes, points = space.lanes, space.points
        self.weight = _buffer((points, space.oc_blocks, space.in_blocks, lanes, lanes), "weight")
        self.v = _buffer((points, space.in_blocks, self.block, lanes), "v")
        self.products = _buffer((points, space.oc_blocks, self.block, lanes), "products")

    def function(self) -> tirx.PrimFunc:
        space, func = self.space, self.space.func
        if self.staged:
            everything = _const(0)
            stages = [
                _loop(space.in_blocks, lambda icb: self.input_stage(icb, everything), "parallel"),
                self.products_in_parallel(),
                _loop(space.oc_blocks, lambda oc: self.output_stage(oc, everything), "parallel"),
            ]
            body = _seq(tirx.AllocBuffer(self.v), tirx.AllocBuffer(self.products), *stages)
        else:
            body = _loop(-(-space.tiles // self.block), self.block_of_tiles, "parallel")
        params = list(func.params)
        params[space.weight_position] = self.weight
        return tirx.PrimFunc(params, body, func.ret_type, func.attrs)

    def block_of_tiles(self, number: Any) -> Any:
        space, first = self.space, number * self.block
        return _seq(
            tirx.AllocBuffer(self.v),
            tirx.AllocBuffer(self.products),
            _loop(space.in_blocks, lambda icb: self.input_stage(icb, first)),
            _loop(space.points, self.products_of),
            _loop(space.oc_blocks, lambda oc: self.output_stage(oc, first)),
        )

    # -- V = B^T d B ------------------------------------------------------------------------------

    def input_stage(self, icb: Any, first: Any) -> Any:
        """Transform all tiles of the block that starts at tile `first`, of one block of input channels."""
        return _loop(self.block, lambda t: self.transform_input(icb, first, t))

    def transform_input(self, icb: Any, first: Any, t: Any) -> Any:
        space, a = self.space, self.a
        n, top, left = self.place(first + t)
        patch = _buffer((a, a, space.lanes), "patch", "local")

        def pixel(i: Any, j: Any, lane: Any) -> Any:
            y, x = top * space.m - space.pad_top + i, left * space.m - space.pad_left + j
            inside = tirx.all(y >= 0, y < space.in_h, x >= 0, x < space.in_w, n < space.batch)
            value = casts.widened(self.data[n, icb, y, x, lane])
            return tirx.if_then_else(inside, value, tirx.const(0.0, "float32"))

        return _seq(
            tirx.AllocBuffer(patch),
            _loop(a, lambda i: _loop(a, lambda j: self.vector(patch, (i, j), lambda lane: pixel(i, j, lane)))),
            *self.sandwich(
                _BT[space.m],
                lambda i, j, lane: patch[i, j, lane],
                lambda r, c, value: self.vector(self.v, (r * a + c, icb, t), value),
            ),
        )

    def sandwich(self, matrix: Matrix, pick: Callable[..., Any], put: Callable[..., Any]) -> list[Any]:
        """Statements for T X T^T, T the matrix.

        Args:
            matrix: rows of T.
            pick: (i, j, lane) -> element X[i, j] of a lane.
            put: (r, c, value) -> the statement that keeps element (r, c) of the result; `value` takes a lane.

        `j` and `r` are loop variables.
        """
        rows, columns = range(len(matrix)), range(len(matrix[0]))
        half = _buffer((len(rows), len(columns), self.space.lanes), "half", "local")

        def left(r: int, j: Any) -> Any:
            return self.vector(half, (r, j), lambda lane: _combine(matrix[r], [pick(i, j, lane) for i in columns]))

        def right(r: Any, c: int) -> Any:
            return put(r, c, lambda lane: _combine(matrix[c], [half[r, j, lane] for j in columns]))

        # TVM unrolls late: the passes before that see one column and one row.
        return [
            tirx.AllocBuffer(half),
            _loop(len(columns), lambda j: _seq(*(left(r, j) for r in rows)), "unrolled"),
            _loop(len(rows), lambda r: _seq(*(right(r, c) for c in rows)), "unrolled"),
        ]

    def place(self, tile: Any) -> tuple[Any, Any, Any]:
        """Image, tile row and tile column of a tile."""
        per_image = self.space.rows * self.space.columns_of_tiles
        inside = tirx.indexmod(tile, per_image)
        image = tirx.indexdiv(tile, per_image)
        return (
            image,
            tirx.indexdiv(inside, self.space.columns_of_tiles),
            tirx.indexmod(inside, self.space.columns_of_tiles),
        )

    # -- M[p] = U[p] V[p] -------------------------------------------------------------------------

    def products_of(self, p: Any) -> Any:
        """All products of one position."""
        groups, steps = self.space.oc_blocks // self.oc_tile, self.block // self.t_tile
        if self.oc_first:
            return _loop(groups, lambda oc: _loop(steps, lambda t: self.product(p, oc, t, t, steps)))
        return _loop(steps, lambda t: _loop(groups, lambda oc: self.product(p, oc, t, _const(0), 1)))

    def products_in_parallel(self) -> Any:
        groups, steps = self.space.oc_blocks // self.oc_tile, self.block // self.t_tile

        def piece(number: Any) -> Any:
            p, oc = tirx.indexdiv(number, groups), tirx.indexmod(number, groups)
            return _loop(steps, lambda t: self.product(p, oc, t, t, steps))

        return _loop(self.space.points * groups, piece, "parallel")

    def product(self, p: Any, group: Any, step: Any, turn: Any, turns: int) -> Any:
        """One register tile over all input channels, in one of the `turns` in which a group's weights are used."""
        space = self.space
        sums = _buffer((self.oc_tile, self.t_tile, space.lanes), "sums", "local")
        oc, t = group * self.oc_tile, step * self.t_tile

        def each(body: Callable[[Any, Any], Any]) -> Any:
            # Channels inside tiles: the inner loop's operand stays in registers, and tiles are more than channels.
            return _loop(self.t_tile, lambda i: _loop(self.oc_tile, lambda o: body(o, i), "unrolled"), "unrolled")

        def multiply(icb: Any, ic: Any) -> Any:
            return each(
                lambda o, i: self.vector(
                    sums,
                    (o, i),
                    lambda lane: sums[o, i, lane] + self.v[p, icb, t + i, ic] * self.weight[p, oc + o, icb, ic, lane],
                )
            )

        def over_lanes(icb: Any) -> Any:
            lines = prefetch.share(turn, turns, space.lanes) if self.prefetch else []
            ahead = [
                prefetch.line(self.weight[p, oc + self.oc_tile + o, icb, ic, 0])
                for ic in lines
                for o in range(self.oc_tile)
            ]
            return _seq(*ahead, _loop(space.lanes, lambda ic: multiply(icb, ic)))

        return _seq(
            tirx.AllocBuffer(sums),
            each(lambda o, i: self.vector(sums, (o, i), lambda lane: tirx.const(0.0, "float32"))),
            _loop(space.in_blocks, over_lanes),
            each(lambda o, i: self.vector(self.products, (p, oc + o, t + i), lambda lane: sums[o, i, lane])),
        )

    # -- Y = A^T M A, and the epilogue ------------------------------------------------------------

    def output_stage(self, oc: Any, first: Any) -> Any:
        """Transform and finish all tiles of the block that starts at tile `first`, of one block of output channels."""
        return _loop(self.block, lambda t: self.transform_output(oc, first, t))

    def transform_output(self, oc: Any, first: Any, t: Any) -> Any:
        a, m = self.a, self.space.m
        n, row, column = self.place(first + t)
        body = _seq(
            *self.sandwich(
                _AT[m],
                lambda i, j, lane: self.products[i * a + j, oc, t, lane],
                lambda r, c, value: self.finish((n, oc, row * m + r, column * m + c), value),
            )
        )
        return tirx.IfThenElse(n < self.space.batch, body, None) if self.padded else body

    @property
    def padded(self) -> bool:
        """Whether the last block has more tiles than there are."""
        return self.space.tiles % self.block != 0

    def finish(self, place: Sequence[Any], value: Callable[[Any], Any]) -> Any:
        """The epilogue of one output pixel, where that exists."""
        space, m = self.space, self.space.m
        height, width = (int(extent) for extent in self.last.writes[0].source.shape[2:4])
        lane = tirx.Var("lane", "int64")
        store = self.epilogue((*place, lane), value(lane))
        vector = tirx.For(lane, _const(0), _const(space.lanes), tirx.ForKind.VECTORIZED, store)
        inside = []
        if space.rows * m > height:
            inside.append(place[2] < height)
        if space.columns_of_tiles * m > width:
            inside.append(place[3] < width)
        return tirx.IfThenElse(tirx.all(*inside), vector, None) if inside else vector

    def epilogue(self, place: Sequence[Any], value: Any) -> Any:
        """The store of the function's last block at `place`, with `value` where it reads the convolution."""
        body = self.last.body
        assert isinstance(body, tirx.BufferStore)
        at = {iv.var: index for iv, index in zip(self.last.iter_vars, place, strict=True)}

        def replace(load: ir.TensorLoad) -> Any:
            return value if load.source.same_as(self.result) else load

        store = tvm_ffi.structural_map(body, (ir.TensorLoad, replace))
        return tvm_ffi.structural_map(store, (tirx.Var, lambda v: at.get(v, v)))

    def vector(self, buffer: Any, place: Sequence[Any], value: Callable[[Any], Any]) -> Any:
        """Store one vector: buffer[place, lane] = value(lane)."""
        lane = tirx.Var("lane", "int64")
        store = tirx.BufferStore(buffer, value(lane), [*(_const(i) if isinstance(i, int) else i for i in place), lane])
        return tirx.For(lane, _const(0), _const(self.space.lanes), tirx.ForKind.VECTORIZED, store)


def source_of(sch: s_tir.Schedule, anchor: Any) -> Any:
    """The unpadded tensor that the convolution reads."""
    if blocks.has_block(sch, "data_pad"):
        return sch.get(sch.get_sblock("data_pad")).reads[0].source
    return sch.get(anchor).reads[0].source


_KINDS = {"serial": tirx.ForKind.SERIAL, "parallel": tirx.ForKind.PARALLEL, "unrolled": tirx.ForKind.UNROLLED}


def _const(value: int) -> Any:
    return tirx.IntImm("int64", value)


def _loop(extent: int, body: Callable[[Any], Any], kind: str = "serial") -> Any:
    variable = tirx.Var("i", "int64")
    return tirx.For(variable, _const(0), _const(extent), _KINDS[kind], body(variable))


def _seq(*statements: Any) -> Any:
    return tirx.SeqStmt(list(statements)) if len(statements) > 1 else statements[0]


def _buffer(shape: Sequence[int], name: str, scope: str = "global") -> Any:
    return tirx.decl_buffer([_const(extent) for extent in shape], "float32", name, scope=scope)


def _combine(coefficients: Sequence[float], terms: Sequence[Any]) -> Any:
    """sum_i coefficients[i] * terms[i], with no multiplication by 0 or 1.

    Terms 2k - 1 and 2k come as c * (x + y) or c * (x - y) where their coefficients differ in sign alone: neighbouring
    rows of the matrices then share the sums.
    """
    total = None
    i = 0
    while i < len(terms):
        c = coefficients[i]
        pair = i % 2 == 1 and i + 1 < len(terms) and c != 0 and abs(coefficients[i + 1]) == abs(c)
        if pair:
            both = terms[i] + terms[i + 1] if coefficients[i + 1] == c else terms[i] - terms[i + 1]
            total = _plus(total, c, both)
            i += 2
        else:
            total = _plus(total, c, terms[i])
            i += 1
    return total


def _plus(total: Any, coefficient: float, term: Any) -> Any:
    if coefficient == 0:
        return total
    scaled = term if abs(coefficient) == 1 else term * tirx.const(abs(coefficient), "float32")
    if total is None:
        return scaled if coefficient > 0 else tirx.const(0.0, "float32") - scaled
    return total + scaled if coefficient > 0 else total - scaled
