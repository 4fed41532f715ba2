"""Elements written where tensors of indices or masks say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax, te, tirx

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, expression, operator, reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.semantics import indices as picking
from calumma.semantics import movement

_REDUCTIONS = {
    "": "none",
    "sum": "add",
    "add": "add",
    "prod": "mul",
    "multiply": "mul",
    "amax": "max",
    "amin": "min",
    "mean": "add",
}
"""torch's names -> those of `indices.REDUCTIONS`; of a mean, of its sum."""


@aten_rule("scatter.src", "scatter.value", "scatter_add.default", "scatter_reduce.two", "scatter.reduce")
@aten_rule("scatter.value_reduce")
def scatter(
    node: TorchNode,
    self: Node,
    dim: int,
    index: Node,
    src: Node | None = None,
    value: float = 0,
    reduce: str = "",
    include_self: bool = True,
) -> Node:
    base, places = (reshape(part, part.shape or (1,)) for part in (self, index))
    if 0 in places.shape:
        return self
    source = (
        constant(np.full(places.shape, value).astype(self.dtype)) if src is None else reshape(src, src.shape or (1,))
    )
    source = movement.sliced(source, {axis: slice(0, size) for axis, size in enumerate(places.shape)})
    how = "sum" if node.op == "scatter_add" else reduce
    result = _scattered(node, base, places, source, dim % len(base.shape), how, include_self)
    return reshape(result, self.shape)


@aten_rule("index_reduce.default")
def index_reduce(
    node: TorchNode, self: Node, dim: int, index: Node, source: Node, reduce: str, include_self: bool = True
) -> Node:
    """Slices combined with those of an axis that indices name."""
    base, new = (reshape(part, part.shape or (1,)) for part in (self, source))
    if 0 in new.shape:
        return self
    axis = dim % len(base.shape)
    column = reshape(index, [math.prod(index.shape) if a == axis else 1 for a in range(len(base.shape))])
    places = movement.broadcast(column, new.shape)
    return reshape(_scattered(node, base, places, new, axis, reduce, include_self), self.shape)


def _scattered(
    node: TorchNode, x: Node, places: Node, source: Node, axis: int, reduce: str, include_self: bool
) -> Node:
    """A scatter that combines, in which the elements that were there count or do not."""
    if reduce not in _REDUCTIONS:
        raise node.refused(f"reduce {reduce!r} is not supported")
    how = _REDUCTIONS[reduce]
    if reduce == "mean" and not x.dtype.startswith("float"):
        raise node.refused(f"a mean of {x.dtype} is not supported")
    ones = constant(np.ones(places.shape, x.dtype))
    counts = constant(np.zeros(x.shape, x.dtype))
    if reduce == "mean" or not include_self:
        counts = picking.scattered_elements(counts, places, ones, axis, "add")
    start = x
    if not include_self:
        identity = scalar(_identity(how, x.dtype), x.dtype)
        start = operator(relax.op.where, operator(relax.op.greater, counts, scalar(0, x.dtype)), identity, x)
    result = picking.scattered_elements(start, places, source, axis, how)
    if reduce != "mean":
        return result
    shares = operator(relax.op.add, counts, scalar(1, x.dtype)) if include_self else counts
    return operator(relax.op.divide, result, operator(relax.op.maximum, shares, scalar(1, x.dtype)))


def _identity(how: str, dtype: str) -> float:
    if how in ("max", "min"):
        if dtype.startswith("float"):
            return -math.inf if how == "max" else math.inf
        limits = np.iinfo(dtype)
        return float(limits.min if how == "max" else limits.max)
    return 1 if how == "mul" else 0


@aten_rule("put.default")
def put(node: TorchNode, self: Node, index: Node, source: Node, accumulate: bool = False) -> Node:
    """Elements written at places counted in order."""
    count, size = math.prod(index.shape), math.prod(self.shape)
    if count == 0:
        return self
    flat = reshape(self, (size,)), reshape(index, (count,)), reshape(source, (count,))
    return reshape(picking.scattered_elements(*flat, 0, "add" if accumulate else "none"), self.shape)


@aten_rule("masked_scatter.default")
def masked_scatter(node: TorchNode, self: Node, mask: Node, source: Node) -> Node:
    spread = movement.broadcast(mask, node.shape)
    return picking.masked_scattered(movement.broadcast(self, node.shape), spread, source)


@aten_rule("diagonal_scatter.default")
def diagonal_scatter(node: TorchNode, self: Node, src: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    rank = len(self.shape)
    first, second = dim1 % rank, dim2 % rank
    if 0 in src.shape:
        return self
    order = [*(axis for axis in range(rank) if axis not in (first, second)), first, second]
    row, column = max(-offset, 0), max(offset, 0)
    x = transpose(self, order)

    def function(t: te.Tensor, new: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            there = tirx.all(i[-2] - row == i[-1] - column, i[-2] >= row, i[-1] >= column)
            place = tirx.max(tirx.min(i[-2] - row, src.shape[-1] - 1), 0)
            return tirx.if_then_else(there, new(*i[:-2], place), t(*i))

        return te.compute(x.shape, element, name="write_diagonal")

    result = expression(function, x, cast(src, x.dtype), name="write_diagonal")
    return transpose(result, [order.index(axis) for axis in range(rank)])


@aten_rule("as_strided_scatter.default")
def as_strided_scatter(
    node: TorchNode,
    self: Node,
    src: Node,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Node:
    """A contiguous tensor with elements at regular places replaced."""
    places = np.full(tuple(size), storage_offset or 0, np.int64)
    for axis, step in enumerate(stride):
        places = places + (np.arange(size[axis]) * step).reshape([-1 if a == axis else 1 for a in range(len(size))])
    if not places.size:
        return self
    flat = reshape(self, (math.prod(self.shape),))
    source = reshape(cast(src, self.dtype), (places.size,))
    return reshape(picking.scattered_elements(flat, constant(places.reshape(-1)), source, 0, "none"), self.shape)
