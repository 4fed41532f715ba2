"""Distances between rows in a p-norm."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from calumma.graph.build import cast, operator, reshape, scalar
from calumma.graph.nodes import Node, constant
from calumma.semantics.movement import broadcast
from calumma.semantics.pooling import power, root
from calumma.semantics.reductions import reduced


def between(left: Node, right: Node, p: float) -> Node:
    """The distance of every row of one matrix from every row of another.

    Args:
        left: (.., n, d).
        right: (.., m, d); leading axes are broadcast.
        p: of the norm, 0 (how many elements differ) to infinity.

    Returns:
        (.., n, m).
    """
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    n, m, d = left.shape[-2], right.shape[-2], left.shape[-1]
    if 0 in (n, m, d, *batch):
        return constant(np.zeros((*batch, n, m), left.dtype), left.name)
    rows = reshape(broadcast(left, (*batch, n, d)), (*batch, n, 1, d))
    columns = reshape(broadcast(right, (*batch, m, d)), (*batch, 1, m, d))
    return norm(operator(relax.op.subtract, rows, columns), p)


def within(x: Node, p: float) -> Node:
    """The distance of every row of a matrix (n, d) from every later one, in order: (n (n - 1) / 2,)."""
    n = x.shape[0]
    first, second = np.triu_indices(n, 1)
    if not len(first) or 0 in x.shape:
        return constant(np.zeros(len(first), x.dtype), x.name)
    rows = [operator(relax.op.take, x, constant(places.astype(np.int64)), 0) for places in (first, second)]
    return norm(operator(relax.op.subtract, *rows), p)


def norm(x: Node, p: float) -> Node:
    """The p-norm over the last axis, which goes; NaN where an element is."""
    last = [len(x.shape) - 1]
    if p == 0:
        differ = cast(operator(relax.op.not_equal, x, scalar(0, x.dtype)), x.dtype)
        return reduced("sum", differ, last, False)
    if math.isinf(p):
        return reduced("max", operator(relax.op.abs, x), last, False)
    return root(reduced("sum", power(x, p), last, False), p)
