"""Sums, means and extrema over axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax

from calumma.frontend.torch.node import TorchNode
from calumma.frontend.torch.registry import aten_rule
from calumma.graph.build import cast, operator, reshape, scalar
from calumma.graph.nodes import Node


def _reduced(function: Callable[..., Any], x: Node, dims: Sequence[int] | None, keepdim: bool) -> Node:
    if not x.shape:
        return x
    axes = [dim % len(x.shape) for dim in dims] if dims else None
    return operator(function, x, axes, keepdim)


@aten_rule("sum.dim_IntList", "mean.dim", "mean.default", "sum.default")
def sum_or_mean(node: TorchNode, self: Node, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None) -> Node:
    return _reduced(relax.op.sum if node.op == "sum" else relax.op.mean, cast(self, node.dtype), dim, keepdim)


@aten_rule("prod.default", "prod.dim_int")
def prod(node: TorchNode, self: Node, dim: int | None = None, keepdim: bool = False, dtype: Any = None) -> Node:
    return _reduced(relax.op.prod, cast(self, node.dtype), None if dim is None else [dim], keepdim)


@aten_rule("amax.default", "amin.default")
def extreme(node: TorchNode, self: Node, dim: Sequence[int] = (), keepdim: bool = False) -> Node:
    if self.dtype == "bool":
        return cast(extreme(node, cast(self, "uint8"), dim, keepdim), "bool")
    return _reduced(relax.op.max if node.op == "amax" else relax.op.min, self, dim, keepdim)


@aten_rule("max.dim", "min.dim")
def extreme_and_index(node: TorchNode, self: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    largest = node.op == "max"
    value = _reduced(relax.op.max if largest else relax.op.min, self, [dim], keepdim)
    if not self.shape:
        return value, scalar(0, "int64")
    return value, operator(relax.op.argmax if largest else relax.op.argmin, self, dim % len(self.shape), keepdim)


@aten_rule("argmax.default", "argmin.default")
def index_of_extreme(node: TorchNode, self: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    if not self.shape:
        return scalar(0, "int64")
    function = relax.op.argmax if node.op == "argmax" else relax.op.argmin
    if dim is None:
        flat = reshape(self, (-1,) if 0 in self.shape else (_count(self),))
        return reshape(operator(function, flat, 0, False), node.shape)
    return operator(function, self, dim % len(self.shape), keepdim)


def _count(node: Node) -> int:
    count = 1
    for size in node.shape:
        count *= size
    return count


@aten_rule("any.default", "any.dim", "any.dims")
def any_true(node: TorchNode, self: Node, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Node:
    dims = [dim] if isinstance(dim, int) else dim
    return cast(_reduced(relax.op.max, cast(cast(self, "bool"), "int8"), dims, keepdim), node.dtype)


@aten_rule("var.correction", "var.dim")
def variance(
    node: TorchNode,
    self: Node,
    dim: Sequence[int] | None = None,
    correction: float | None = 1,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Node:
    """The mean square of the differences from the mean, over count - correction."""
    axes = [d % len(self.shape) for d in dim] if dim else list(range(len(self.shape)))
    count = 1
    for axis in axes:
        count *= self.shape[axis]
    spare = (1.0 if correction is None else float(correction)) if node.overload == "var.correction" else float(unbiased)
    mean = _reduced(relax.op.mean, self, axes, True)
    off = operator(relax.op.subtract, self, mean)
    total = _reduced(relax.op.sum, operator(relax.op.multiply, off, off), axes, keepdim)
    return operator(relax.op.divide, total, scalar(max(count - spare, 0.0), node.dtype))


@aten_rule("cumsum.default", "cumprod.default")
def cumulative(node: TorchNode, self: Node, dim: int, dtype: Any = None) -> Node:
    if not self.shape:
        return cast(self, node.dtype)
    function = relax.op.cumsum if node.op == "cumsum" else relax.op.cumprod
    return operator(function, cast(self, node.dtype), axis=dim % len(self.shape))


@aten_rule("_softmax.default", "_log_softmax.default")
def softmax(node: TorchNode, self: Node, dim: int) -> Node:
    x = cast(self, node.dtype)
    if not x.shape:
        return operator(lambda v: relax.op.multiply(v, relax.const(0.0, v.ty.dtype.dtype)), x)
    return operator(relax.op.nn.softmax if node.op == "_softmax" else relax.op.nn.log_softmax, x, dim % len(x.shape))
