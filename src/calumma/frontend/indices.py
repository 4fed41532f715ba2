"""Indices that a model computes with: TVM reads and writes foreign memory where one lies outside of its axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax


def within(index: relax.Expr, size: int | Sequence[int]) -> relax.Expr:
    """Indices counted from the start, negative ones from the end, clamped to the axis.

    Args:
        index: integers, in a value whose type is known.
        size: of the axis; or one for each column of `index`.
    """
    dtype = str(index.ty.dtype.dtype)
    zero, sizes, most = (relax.const(np.asarray(value, dtype), dtype) for value in (0, size, np.asarray(size) - 1))
    from_start = relax.op.where(relax.op.less(index, zero), relax.op.add(index, sizes), index)
    return relax.op.minimum(relax.op.maximum(from_start, zero), most)
