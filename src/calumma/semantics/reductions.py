"""Reductions of nodes over axes, indices of extrema and running sums and products, as NumPy has them.

Of integers, sums and products wrap around and a mean is truncated. Of no elements a sum is 0, a product 1, and an
extremum the one that leaves any other as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions import statements
from calumma.graph.build import cast, expression, mapped, operator, reshape, scalar
from calumma.graph.nodes import Node, constant
from calumma.semantics.arithmetic import divided, is_float

Axes = Sequence[int] | None
"""Axes from 0; None for all."""

_OF_NOTHING: dict[str, Callable[[str], float]] = {
    "sum": lambda dtype: 0,
    "prod": lambda dtype: 1,
    "mean": lambda dtype: math.nan if dtype.startswith("float") else 0,
    "max": lambda dtype: -math.inf if dtype.startswith("float") else _lowest(dtype),
    "min": lambda dtype: math.inf if dtype.startswith("float") else _highest(dtype),
}


def reduced(kind: str, node: Node, axes: Axes, keepdims: bool) -> Node:
    """A reduction of a node's elements.

    Args:
        kind: "sum", "prod", "mean", "max" or "min". Extrema are NaN where an element is; of bool they are bool.
        axes: what is reduced; none at all leaves the elements as they are.
        keepdims: whether the reduced axes stay, with extent 1.
    """
    rank = len(node.shape)
    over = tuple(range(rank)) if axes is None else tuple(axes)
    if not over:
        return node
    if 0 in node.shape:
        shape = _shape(node.shape, over, keepdims)
        return constant(np.full(shape, _OF_NOTHING[kind](node.dtype), node.dtype), node.name)
    if node.dtype == "bool":
        return cast(reduced(kind, cast(node, "uint8"), axes, keepdims), "bool")
    if kind == "mean" and not is_float(node):
        count = math.prod(node.shape[axis] for axis in over)
        return divided(reduced("sum", node, axes, keepdims), scalar(count, node.dtype))
    function = getattr(relax.op, kind)
    return operator(function, node, axis=None if axes is None else [int(axis) for axis in axes], keepdims=keepdims)


def sum_of_magnitudes(node: Node, axes: Axes, keepdims: bool) -> Node:
    """The L1 norm."""
    return reduced("sum", operator(relax.op.abs, node), axes, keepdims)


def sum_of_squares(node: Node, axes: Axes, keepdims: bool) -> Node:
    return reduced("sum", operator(relax.op.multiply, node, node), axes, keepdims)


def euclidean(node: Node, axes: Axes, keepdims: bool) -> Node:
    """The L2 norm; of integers, truncated."""
    squares = sum_of_squares(node if is_float(node) else cast(node, "float64"), axes, keepdims)
    return cast(operator(relax.op.sqrt, squares), node.dtype)


def log_sum(node: Node, axes: Axes, keepdims: bool) -> Node:
    """The logarithm of the sum; of integers, truncated."""
    total = reduced("sum", node, axes, keepdims)
    return cast(operator(relax.op.log, total if is_float(node) else cast(total, "float64")), node.dtype)


def log_sum_exp(node: Node, axes: Axes, keepdims: bool) -> Node:
    """The logarithm of the sum of exponentials, which do not overflow."""
    if not is_float(node):
        return cast(log_sum_exp(cast(node, "float64"), axes, keepdims), node.dtype)
    if 0 in node.shape:
        return constant(reduced("sum", node, axes, keepdims).value - math.inf, node.name)

    def finite(x: tirx.Expr) -> tirx.Expr:
        infinite = tirx.EQ(tirx.abs(x), tirx.const(math.inf, str(x.ty)))
        return tirx.Select(infinite, tirx.const(0, str(x.ty)), x)

    highest = mapped(finite, reduced("max", node, axes, keepdims=True), "finite")
    powers = operator(relax.op.exp, operator(relax.op.subtract, node, highest))
    logarithm = operator(relax.op.log, reduced("sum", powers, axes, keepdims=True))
    result = operator(relax.op.add, logarithm, highest)
    return reshape(result, reduced_shape(node, axes, keepdims))


def reduced_shape(node: Node, axes: Axes, keepdims: bool) -> tuple[int, ...]:
    """The shape of a reduction of a node."""
    return _shape(node.shape, range(len(node.shape)) if axes is None else axes, keepdims)


def _shape(shape: Sequence[int], axes: Sequence[int], keepdims: bool) -> tuple[int, ...]:
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return tuple(size for axis, size in enumerate(kept) if keepdims or axis not in axes)


def _lowest(dtype: str) -> float:
    return 0 if dtype == "bool" else np.iinfo(dtype).min


def _highest(dtype: str) -> float:
    return 1 if dtype == "bool" else np.iinfo(dtype).max


def index_of_extremum(node: Node, axis: int, keepdims: bool, largest: bool, last: bool = False) -> Node:
    """int64 indices of the first extremum along an axis, or of the last; NaN counts as one."""
    function = relax.op.argmax if largest else relax.op.argmin
    if not last:
        return operator(function, node, axis=axis, keepdims=keepdims)
    end = node.shape[axis] - 1

    def backwards(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: x(*i[:axis], end - i[axis], *i[axis + 1 :]), name="backwards")

    found = operator(function, expression(backwards, node, name="backwards"), axis=axis, keepdims=keepdims)
    return operator(relax.op.subtract, scalar(end, "int64"), found)


def chosen(candidates: Sequence[Node], is_chosen: Callable[[tirx.Expr, int], tirx.Expr], key: Node) -> Node:
    """That of several nodes of one shape which the value of an integer node chooses; the last one if none.

    Args:
        is_chosen: (the value, a candidate's number) -> whether it is this one.
        key: a node of one element.
    """
    if len(candidates) == 1:
        return candidates[0]
    number = reshape(key, ())

    def body(value: te.Tensor, *tensors: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            result = tensors[-1](*i)
            for index, tensor in enumerate(tensors[:-1]):
                result = tirx.Select(is_chosen(value(), index), tensor(*i), result)
            return result

        return te.compute(tensors[0].shape, element, name="chosen")

    return expression(body, number, *candidates, name="chosen")


def cumulative(
    kind: str, node: Node, axis: int, exclusive: bool = False, reverse: bool = False, dtype: str | None = None
) -> Node:
    """Running sums or products along an axis.

    Args:
        kind: "sum" or "prod".
        exclusive: whether an element counts from the next one on.
        reverse: whether they run from the last element to the first.
        dtype: of the result, and of what is added; the node's own if None.
    """
    dtype = dtype or node.dtype
    node = cast(node, dtype)
    if 0 in node.shape:
        return constant(np.zeros(node.shape, dtype), node.name)
    identity = tirx.const(0 if kind == "sum" else 1, dtype)
    length = node.shape[axis]
    inner = math.prod(node.shape[axis + 1 :])
    rows = math.prod(node.shape[:axis]) * inner

    def body(source: Any, result: Any) -> None:
        with T.parallel(0, rows) as row:
            first = row // inner * (length * inner) + row % inner

            def place(step: Any) -> Any:
                return first + ((length - 1) - step if reverse else step) * inner

            result[place(0)] = identity if exclusive else source[place(0)]
            with T.serial(1, length) as step:
                element = source[place(step - 1 if exclusive else step)]
                held = result[place(step - 1)]
                result[place(step)] = held + element if kind == "sum" else held * element

    def running(x: te.Tensor) -> te.Tensor:
        return statements.kernel(f"cumulative_{kind}", body, [x], [((rows * length,), dtype)])[0]

    flat = expression(running, reshape(node, (rows * length,)), name=f"cumulative_{kind}")
    return reshape(flat, node.shape)
