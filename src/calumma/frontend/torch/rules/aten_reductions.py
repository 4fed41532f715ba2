"""Sums, means, extrema and orders over axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, operator, reshape, scalar
from calumma.graph.nodes import Node
from calumma.semantics.reductions import reduced


def _reduced(function: Callable[..., Any], x: Node, dims: Sequence[int] | None, keepdim: bool) -> Node:
    if not x.shape:
        return x
    axes = [dim % len(x.shape) for dim in dims] if dims else None
    result: Node = operator(function, x, axes, keepdim)
    return result


@aten_rule("sum.dim_IntList", "sum.default", "mean.dim", "mean.default")
def sum_or_mean(
    node: TorchNode, self: Node, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None
) -> Node:
    return _reduced(relax.op.sum if node.op == "sum" else relax.op.mean, cast(self, node.dtype), dim, keepdim)


@aten_rule("prod.default", "prod.dim_int")
def prod(node: TorchNode, self: Node, dim: int | None = None, keepdim: bool = False, dtype: Any = None) -> Node:
    return _reduced(relax.op.prod, cast(self, node.dtype), None if dim is None else [dim], keepdim)


@aten_rule("amax.default", "amin.default")
def extreme(node: TorchNode, self: Node, dim: Sequence[int] = (), keepdim: bool = False) -> Node:
    if self.dtype == "bool":
        return cast(extreme(node, cast(self, "uint8"), dim, keepdim), "bool")
    return _reduced(relax.op.max if node.op == "amax" else relax.op.min, self, dim, keepdim)


@aten_rule("max.default", "min.default")
def extreme_of_all(node: TorchNode, self: Node) -> Node:
    return reduced(node.op, self, None, False)


@aten_rule("max.dim", "min.dim")
def extreme_and_index(node: TorchNode, self: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    if not self.shape:
        return self, scalar(0, "int64")
    largest = node.op == "max"
    numbers = cast(self, "uint8") if self.dtype == "bool" else self
    value = _reduced(relax.op.max if largest else relax.op.min, numbers, [dim], keepdim)
    index = operator(relax.op.argmax if largest else relax.op.argmin, numbers, dim % len(self.shape), keepdim)
    return cast(value, self.dtype), index


@aten_rule("argmax.default", "argmin.default")
def index_of_extreme(node: TorchNode, self: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    if not self.shape:
        return scalar(0, "int64")
    function = relax.op.argmax if node.op == "argmax" else relax.op.argmin
    numbers = cast(self, "uint8") if self.dtype == "bool" else self
    if dim is None:
        return reshape(operator(function, reshape(numbers, (math.prod(self.shape),)), 0, False), node.shape)
    index: Node = operator(function, numbers, dim % len(self.shape), keepdim)
    return index


@aten_rule("any.default", "any.dim", "any.dims")
def any_true(node: TorchNode, self: Node, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Node:
    found = self if self.dtype == "bool" else operator(relax.op.not_equal, self, scalar(0, self.dtype))
    dims = [dim] if isinstance(dim, int) else dim
    largest = _reduced(relax.op.max, cast(found, "uint8"), dims, keepdim)
    return cast(largest, node.dtype)


@aten_rule("var.correction", "var.dim")
def variance(
    node: TorchNode,
    self: Node,
    dim: Sequence[int] | None = None,
    correction: float | None = 1,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Node:
    """The sum of squared differences from the mean, over their count less a correction."""
    axes = [d % len(self.shape) for d in dim] if dim else list(range(len(self.shape)))
    count = math.prod(self.shape[axis] for axis in axes)
    is_flag = not node.overload.endswith(".correction")
    spare = float(unbiased) if is_flag else (1.0 if correction is None else float(correction))
    off = operator(relax.op.subtract, self, _reduced(relax.op.mean, self, axes, True))
    total = _reduced(relax.op.sum, operator(relax.op.multiply, off, off), axes, keepdim)
    return operator(relax.op.divide, total, scalar(max(count - spare, 0.0), node.dtype))


@aten_rule(*(f"{name}_mean.{form}" for name in ("var", "std") for form in ("correction", "dim", "default")))
def spread_and_mean(
    node: TorchNode,
    self: Node,
    dim: Sequence[int] | None = None,
    correction: float | None = 1,
    unbiased: bool = True,
    keepdim: bool = False,
) -> tuple[Node, Node]:
    """Variance or standard deviation, and the mean."""
    spread = variance(node, self, dim, correction, unbiased, keepdim)
    spread = operator(relax.op.sqrt, spread) if node.op == "std_mean" else spread
    return spread, _reduced(relax.op.mean, self, dim, keepdim)


@aten_rule("cumsum.default", "cumprod.default")
def cumulative(node: TorchNode, self: Node, dim: int, dtype: Any = None) -> Node:
    x = cast(self, node.dtype)
    function = relax.op.cumsum if node.op == "cumsum" else relax.op.cumprod
    return operator(function, x, axis=dim % len(self.shape)) if self.shape else x


@aten_rule("_softmax.default", "_log_softmax.default")
def softmax(node: TorchNode, self: Node, dim: int) -> Node:
    x, is_log = cast(self, node.dtype), node.op == "_log_softmax"
    if not x.shape:
        zero = operator(relax.op.subtract, x, x)
        return zero if is_log else operator(relax.op.exp, zero)
    function = relax.op.nn.log_softmax if is_log else relax.op.nn.softmax
    return operator(function, x, dim % len(x.shape))


@aten_rule("_safe_softmax.default")
def safe_softmax(node: TorchNode, self: Node, dim: int, dtype: Any = None) -> Node:
    """Softmax whose rows of -infinity alone are 0: attention to nothing. A product has none without a mask added."""
    result = softmax(node, self, dim)
    if self.op in ("matmul", "reshape", "multiply"):
        return result
    largest = operator(relax.op.max, self, [dim % len(self.shape)], True)
    empty = operator(relax.op.equal, largest, scalar(-math.inf, self.dtype))
    return operator(relax.op.where, empty, scalar(0, node.dtype), result)
