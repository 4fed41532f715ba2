"""Moves of elements between tensors, as tensor expressions: interleaved planes, and tensors side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx, topi

from calumma.expressions import casts

_MOST_IN_TURN = 16
"""Parts of a concatenation among which an element is looked for one after the other."""


def interleave(
    x: te.Tensor, phase: int, strides: tuple[int, int], starts: tuple[int, int], shape: tuple[int, ...], *, plain: bool
) -> te.Tensor:
    """Planes of a blocked (n, blocks, h, w, lanes) woven into `shape` (n, c, H, W): see `graph.nodes.INTERLEAVE`.

    Args:
        x: its slots in order.
        phase: slots of one group of planes; whole blocks, unless the result is plain.
        strides, starts: of rows and columns.
        shape: of the result.
        plain: whether the result is (n, c, H, W) instead of (n, phase / lanes, H, W, lanes).
    """
    lanes = int(x.shape[4])
    (sy, sx), (oy, ox) = strides, starts

    def element(n, slot, h, w, lane):
        h, w = h + oy, w + ox
        slot = (h % sy * sx + w % sx) * phase + slot
        return x(n, slot // lanes, h // sy, w // sx, slot % lanes if plain else lane)

    if plain:
        return te.compute(shape, lambda n, c, h, w: element(n, c, h, w, 0), name="interleave")
    return te.compute(
        (shape[0], phase // lanes, *shape[2:], lanes),
        lambda n, block, h, w, lane: element(n, block * lanes, h, w, lane),
        name="interleave",
    )


def concat(parts: Sequence[te.Tensor], axis: int) -> te.Tensor:
    """Concatenate along `axis`; bfloat16 as its bits, between which TVM selects without computing in float32."""
    if not all(casts.is_narrow(part) for part in parts):
        return _side_by_side(parts, axis)
    dtype = str(parts[0].dtype)
    joined = _side_by_side([_words(part) for part in parts], axis)
    return te.compute(joined.shape, lambda *i: casts.from_stored(joined(*i), dtype), name="concat")


def _side_by_side(parts: Sequence[te.Tensor], axis: int) -> te.Tensor:
    """The parts in a row; of many the one that holds an element is found by halving, not one after the other."""
    if len(parts) <= _MOST_IN_TURN:
        return topi.concatenate(tuple(parts), axis=axis)
    starts = np.cumsum([0, *(int(part.shape[axis]) for part in parts)]).tolist()
    shape = [*parts[0].shape]
    shape[axis] = starts[-1]

    def element(index: Sequence[tirx.Expr], first: int, end: int) -> tirx.Expr:
        if end - first == 1:
            return parts[first](*index[:axis], index[axis] - starts[first], *index[axis + 1 :])
        middle = (first + end) // 2
        return tirx.if_then_else(
            index[axis] < starts[middle], element(index, first, middle), element(index, middle, end)
        )

    return te.compute(shape, lambda *index: element(index, 0, len(parts)), name="T_concat")


def _words(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda *i: casts.as_stored(x(*i)), name="words")
