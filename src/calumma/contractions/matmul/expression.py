"""Matrix products as tensor expressions.

Notation: M rows, K reduction, N columns, L lanes of one vector; NB >= N / L column blocks. The accumulator has
Mp >= M rows, so that a register tile divides it: a row beyond M repeats the last one and is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from calumma.core.contraction import contraction_reading
from calumma.expressions import casts
from calumma.expressions.windows import tileable
from calumma.space.blocks import OPERATOR


def pack_dense_weight(weight: NDArray[np.float32], lanes: int) -> NDArray[np.float32]:
    """(K, N) -> (NB, K, L), columns beyond N zero."""
    k, n = weight.shape
    blocks = column_blocks(n, lanes)
    full = np.zeros((k, blocks * lanes), np.float32)
    full[:, :n] = weight
    return np.ascontiguousarray(full.reshape(k, blocks, lanes).transpose(1, 0, 2))


def column_blocks(columns: int, lanes: int) -> int:
    """Blocks of L lanes for `columns`, rounded up so that a register tile of 2, 3 or 4 blocks divides them."""
    blocks = -(-columns // lanes)
    while blocks > 3 and all(blocks % tile for tile in (2, 3, 4)):
        blocks += 1
    return blocks


def dense(data: te.Tensor, weight: te.Tensor, columns: int) -> te.Tensor:
    """data [..., K] x packed weight [NB, K, L] -> [..., columns]; all leading axes are rows.

    Where the data's contraction packs p elements, weights come as [NB, K / p, p L] (`casts.packed`); the result is
    float32.
    """
    *lead, k = (int(d) for d in data.shape)
    blocks, _, lanes = (int(d) for d in weight.shape)
    pack = contraction_reading(str(data.dtype)).pack
    lanes //= pack
    # The last leading axis gives the rows of a tile; the others stay axes of their own, so that no tile crosses them.
    kept = [a for a, extent in enumerate(lead) if extent > 1] or [len(lead) - 1]
    *batch, rows = (lead[a] for a in kept)
    tiled = tileable(rows)
    axes = [te.reduce_axis((0, k // pack), "k")]
    if pack > 1:
        axes.append(te.reduce_axis((0, pack), "part"))

    def product_body(*i: tirx.Var) -> tirx.Expr:
        *b, m, j, lane = i
        place: list[tirx.Expr] = [0] * len(lead)
        for a, index in zip(kept, [*b, m if tiled == rows else tirx.min(m, rows - 1)], strict=True):
            place[a] = index
        step, *part = axes
        element, slot = (step * pack + part[0], lane * pack + part[0]) if part else (step, lane)
        left, right = casts.widened(data(*place, element)), casts.widened(weight(j, step, slot))
        return te.sum(left * right, axis=axes)

    product = te.compute((*batch, tiled, blocks, lanes), product_body, name="dense", attrs={OPERATOR: "matmul"})
    return te.compute(
        (*lead, columns),
        lambda *i: product(*(i[a] for a in kept), i[-1] // lanes, i[-1] % lanes),
        name="dense_out",
    )


def batch_matmul(
    left: te.Tensor,
    right: te.Tensor,
    lanes: int,
    left_axes: Sequence[int] | None = None,
    right_axes: Sequence[int] | None = None,
    out_axes: Sequence[int] | None = None,
) -> te.Tensor:
    """[B..., M, K] x [B..., K, N] -> [B..., M, N], with transposes of operands and result absorbed.

    Args:
        left_axes, right_axes: the operand is read as `transpose(operand, axes)`.
        out_axes: the result is written as `transpose(product, out_axes)`.
        lanes: the right operand is packed to [B..., NB, K, L] inside, one batch element at a time.

    Batch axes broadcast where one side has extent 1.
    """
    rank = len(left.shape)
    axes_l = list(left_axes or range(rank))
    axes_r = list(right_axes or range(rank))
    shape_l = [int(left.shape[a]) for a in axes_l]
    shape_r = [int(right.shape[a]) for a in axes_r]
    batch = [max(a, b) for a, b in zip(shape_l[:-2], shape_r[:-2], strict=True)]
    rows, k, columns = shape_l[-2], shape_l[-1], shape_r[-1]
    blocks, tiled = column_blocks(columns, lanes), tileable(rows)

    def read(tensor: te.Tensor, axes: list[int], shape: list[int], index: list[tirx.Expr]) -> tirx.Expr:
        place: list[tirx.Expr] = [0] * len(axes)
        for position, axis in enumerate(axes):
            place[axis] = 0 if shape[position] == 1 else index[position]
        return tensor(*place)

    def pack(*i: tirx.Var) -> tirx.Expr:
        *b, j, kk, lane = i
        column = j * lanes + lane
        if columns == blocks * lanes:
            return read(right, axes_r, shape_r, [*b, kk, column])
        return read(right, axes_r, shape_r, [*b, kk, tirx.min(column, columns - 1)])

    packed = te.compute((*batch, blocks, k, lanes), pack, name="packed")
    axis = te.reduce_axis((0, k), "k")

    def body(*i: tirx.Var) -> tirx.Expr:
        *b, m, j, lane = i
        row = m if tiled == rows else tirx.min(m, rows - 1)
        return te.sum(read(left, axes_l, shape_l, [*b, row, axis]) * packed(*b, j, axis, lane), axis=axis)

    product = te.compute((*batch, tiled, blocks, lanes), body, name="batch_matmul", attrs={OPERATOR: "matmul"})
    plain_shape = [*batch, rows, columns]
    order = list(out_axes or range(rank))
    inverse = [order.index(a) for a in range(rank)]

    def unpack(*i: tirx.Var) -> tirx.Expr:
        *b, m, column = (i[inverse[a]] for a in range(rank))
        return product(*b, m, column // lanes, column % lanes)

    return te.compute([plain_shape[a] for a in order], unpack, name="matmul_out")
