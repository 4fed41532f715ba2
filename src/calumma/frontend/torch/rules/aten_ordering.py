"""Sorted elements, ranks among them, running extremes, and where values belong in sorted rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from calumma.extents import selection
from calumma.extents.selection import top_k
from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, reshape, scalar
from calumma.graph.nodes import Node
from calumma.numerics import ordering
from calumma.semantics import indices
from calumma.semantics.reductions import reduced


@aten_rule("sort.default", "sort.stable")
def sort(
    node: TorchNode, self: Node, dim: int = -1, descending: bool = False, stable: bool | None = None
) -> tuple[Node, Node]:
    """Sorted, in a stable order whether it is asked for or not."""
    if not self.shape:
        return self, scalar(0, "int64")
    return top_k(self, self.shape[dim], dim % len(self.shape), largest=descending)


@aten_rule("topk.default")
def topk(
    node: TorchNode, self: Node, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Node, Node]:
    """The k best, sorted whether that is asked for or not."""
    if not self.shape:
        return self, scalar(0, "int64")
    return top_k(self, k, dim % len(self.shape), largest=largest)


def _along(node: TorchNode, x: Node, dim: int, function: Callable[[Node, int], tuple[Node, Node]]) -> Any:
    """A function of an axis that keeps it, in the shape that torch says."""
    if not x.shape:
        return x, scalar(0, "int64")
    values, places = function(x, dim % len(x.shape))
    return reshape(values, node.shape), reshape(places, node.shape)


@aten_rule("kthvalue.default")
def kth_value(node: TorchNode, self: Node, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return _along(node, self, dim, lambda x, axis: ordering.kth_smallest(x, k, axis))


@aten_rule("median.dim", "nanmedian.dim")
def median(node: TorchNode, self: Node, dim: int, keepdim: bool = False) -> Any:
    skip = node.op == "nanmedian"
    return _along(node, self, dim, lambda x, axis: ordering.median(x, axis, skip_nan=skip))


@aten_rule("median.default", "nanmedian.default")
def median_of_all(node: TorchNode, self: Node) -> Node:
    if 0 in self.shape:
        return scalar(math.nan, node.dtype)
    flat = reshape(self, (math.prod(self.shape),))
    return reshape(ordering.median(flat, 0, skip_nan=node.op == "nanmedian")[0], ())


@aten_rule("mode.default")
def mode(node: TorchNode, self: Node, dim: int = -1, keepdim: bool = False) -> Any:
    return _along(node, self, dim, ordering.mode)


@aten_rule("cummax.default", "cummin.default")
def running_extreme(node: TorchNode, self: Node, dim: int) -> Any:
    if self.dtype == "bool":
        values, places = running_extreme(node, cast(self, "uint8"), dim)
        return cast(values, "bool"), places
    return _along(node, self, dim, lambda x, axis: ordering.running_extreme(x, axis, largest=node.op == "cummax"))


@aten_rule("logcumsumexp.default")
def running_log_sum_exp(node: TorchNode, self: Node, dim: int) -> Node:
    return ordering.running_log_sum_exp(self, dim % len(self.shape)) if self.shape else self


@aten_rule("histc.default")
def histogram(node: TorchNode, self: Node, bins: int = 100, min: float = 0, max: float = 0) -> Node:
    """Counts in equal parts of a range; without one, of that of the elements."""
    if 0 in self.shape or not self.dtype.startswith("float"):
        raise node.refused(f"a histogram of {self.dtype}{list(self.shape)} is not supported")
    if min != max:
        return ordering.histogram(self, bins, scalar(min, self.dtype), scalar(max, self.dtype))
    low, high = (reshape(reduced(kind, self, None, False), ()) for kind in ("min", "max"))
    return ordering.histogram(self, bins, low, high)


@aten_rule("searchsorted.Tensor", "searchsorted.Scalar", "bucketize.Tensor", "bucketize.Scalar")
def searched(
    node: TorchNode,
    self: Any,
    sorted_sequence: Node | None = None,
    boundaries: Node | None = None,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Node | None = None,
) -> Node:
    """Places among sorted elements; `sorter` says in which order a sequence is sorted."""
    sequence = sorted_sequence if sorted_sequence is not None else boundaries
    if sequence is None:
        raise node.refused("there is nothing to look into")
    values = self if isinstance(self, Node) else scalar(self, sequence.dtype)
    dtype = "float64" if any(x.dtype.startswith("float") for x in (sequence, values)) else "int64"
    if sequence.dtype == values.dtype:
        dtype = values.dtype
    if sorter is not None:
        sequence = indices.gathered_elements(sequence, sorter, len(sequence.shape) - 1)
    rows = math.prod(sequence.shape[:-1])
    table = reshape(cast(sequence, dtype), (rows, sequence.shape[-1]))
    wanted = reshape(cast(values, dtype), (rows, math.prod(values.shape) // max(rows, 1)))
    found = indices.searched(table, wanted, right=right or side == "right")
    return cast(reshape(found, node.shape), node.dtype)


@aten_rule("aminmax.default")
def extremes(node: TorchNode, self: Node, dim: int | None = None, keepdim: bool = False) -> tuple[Node, Node]:
    if not self.shape:
        return self, self
    axes = None if dim is None else [dim % len(self.shape)]
    low, high = (reduced(kind, self, axes, keepdim) for kind in ("min", "max"))
    return low, high


@aten_rule("nonzero_static.default")
def first_nonzero(node: TorchNode, self: Node, size: int, fill_value: int = -1) -> Node:
    return selection.first_nonzero(self, size, fill_value)
