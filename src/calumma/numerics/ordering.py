"""Ranks and running extremes of rows: medians, modes, k-th values, histograms. NaN is larger than any number.

Functions of graph nodes, for every importer. Axes count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.core.errors import ModelError
from calumma.expressions import statements
from calumma.extents.selection import top_k
from calumma.graph.build import cast, expression, operator, reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.semantics.arithmetic import is_float, is_nan
from calumma.semantics.indices import gathered_elements
from calumma.semantics.reductions import reduced


def kth_smallest(x: Node, k: int, axis: int) -> tuple[Node, Node]:
    """The k-th smallest element along an axis, k from 1, and its index; the axis stays with extent 1.

    Raises:
        ModelError: there are not so many elements.
    """
    if not 1 <= k <= x.shape[axis]:
        raise ModelError(f"k is {k}, and axis {axis} has {x.shape[axis]} elements; give at most so many")
    values, indices = top_k(x, k, axis, largest=False)
    place = constant(np.full(_one(x, axis), k - 1, np.int64))
    return gathered_elements(values, place, axis), gathered_elements(indices, place, axis)


def median(x: Node, axis: int, *, skip_nan: bool) -> tuple[Node, Node]:
    """The lower median along an axis and its index; the axis stays with extent 1.

    Args:
        skip_nan: leave NaN out; otherwise the first NaN is the median where there is one.
    """
    size = x.shape[axis]
    values, indices = top_k(x, size, axis, largest=False)
    if not is_float(x):
        place = constant(np.full(_one(x, axis), (size - 1) // 2, np.int64))
    else:
        numbers = operator(relax.op.subtract, scalar(size, "int64"), _nan_count(x, axis))

        def middle(count: tirx.Expr) -> tirx.Expr:
            within = tirx.max(tirx.floordiv(count - 1, 2), statements.constant(0))
            if skip_nan:
                return within
            return tirx.Select(count < size, count, statements.constant((size - 1) // 2))

        place = expression(
            lambda t: te.compute(t.shape, lambda *i: middle(t(*i)), name="middle"), numbers, name="middle"
        )
    return gathered_elements(values, place, axis), gathered_elements(indices, place, axis)


def mode(x: Node, axis: int) -> tuple[Node, Node]:
    """The smallest of the most frequent elements along an axis, and the index of its last occurrence.

    The axis stays with extent 1.
    """
    values, indices = top_k(x, x.shape[axis], axis, largest=False)

    def run(held: tirx.Expr, new: tirx.Expr, old: tirx.Expr) -> tirx.Expr:
        return tirx.Select(new == old, held + 1, statements.constant(1))

    lengths = _scan(values, axis, "int64", lambda first: statements.constant(1), run, "runs")
    place = operator(relax.op.argmax, lengths, axis, True)
    return gathered_elements(values, place, axis), gathered_elements(indices, place, axis)


def running_extreme(x: Node, axis: int, *, largest: bool) -> tuple[Node, Node]:
    """The extreme of all elements up to each along an axis, and its index, of equal ones the last; NaN stays."""
    order = [*(other for other in range(len(x.shape)) if other != axis), axis]
    moved = transpose(x, order)
    n, rows = x.shape[axis], math.prod(moved.shape[:-1])
    if 0 in (n, rows):
        return x, constant(np.zeros(x.shape, np.int64))

    def body(data: Any, values: Any, places: Any) -> None:
        with T.parallel(0, rows) as row:
            values[row, 0], places[row, 0] = data[row, 0], statements.constant(0)
            with T.serial(1, n) as i:
                new, old = T.Bind(data[row, i]), T.Bind(values[row, i - 1])
                wins = new >= old if largest else new <= old
                if is_float(x):
                    wins = tirx.any(tirx.isnan(new), tirx.all(tirx.Not(tirx.isnan(old)), wins))
                wins = T.Bind(wins)
                values[row, i] = statements.either(wins, new, old)
                places[row, i] = statements.either(wins, i.astype("int64"), places[row, i - 1])

    def function(data: te.Tensor) -> list[te.Tensor]:
        outputs = [((rows, n), x.dtype), ((rows, n), "int64")]
        return statements.kernel("running_extreme", body, [data], outputs)

    results = expression(function, reshape(moved, (rows, n)), name="running_extreme")
    back = [order.index(other) for other in range(len(order))]
    values, places = (transpose(reshape(result, moved.shape), back) for result in results)
    return values, places


def running_log_sum_exp(x: Node, axis: int) -> Node:
    """The logarithm of the sum of exponentials of all elements up to each along an axis."""

    def added(held: tirx.Expr, new: tirx.Expr, old: tirx.Expr) -> tirx.Expr:
        high, low = tirx.max(held, new), tirx.min(held, new)
        infinite = tirx.all(tirx.EQ(high, low), tirx.EQ(tirx.abs(high), tirx.const(math.inf, x.dtype)))
        exp, log1p = ("expf", "log1pf") if x.dtype == "float32" else ("exp", "log1p")
        power = tirx.call_pure_extern(x.dtype, exp, low - high)
        total = high + tirx.call_pure_extern(x.dtype, log1p, power)
        total = tirx.Select(infinite, high, total)
        return tirx.Select(tirx.any(tirx.isnan(held), tirx.isnan(new)), held + new, total)

    return _scan(x, axis, x.dtype, lambda first: first, added, "running_log_sum_exp")


def histogram(x: Node, bins: int, low: Node, high: Node) -> Node:
    """How many elements lie in each of some equal parts of a range; the last part has its end, outside counts not.

    Args:
        low, high: scalars of x's type; equal ones mean a range of 1 to each side.
    """
    size = math.prod(x.shape)

    def function(data: te.Tensor, low: te.Tensor, high: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, size), "k")

        def element(b: tirx.Expr) -> tirx.Expr:
            alike = tirx.EQ(low(), high())
            start = tirx.Select(alike, low() - 1, low())
            end = tirx.Select(alike, high() + 1, high())
            value = data(k)
            inside = tirx.all(value >= start, value <= end)
            share = tirx.Select(inside, (value - start) * bins / (end - start), tirx.const(0, x.dtype))
            place = tirx.min(share.astype("int32"), bins - 1)
            counts = tirx.all(inside, place == b)
            return te.sum(tirx.Select(counts, tirx.const(1, x.dtype), tirx.const(0, x.dtype)), axis=k)

        return te.compute((bins,), element, name="histogram")

    return expression(function, reshape(x, (size,)), low, high, name="histogram")


def _scan(
    x: Node,
    axis: int,
    dtype: str,
    begin: Callable[[tirx.Expr], tirx.Expr],
    step: Callable[[tirx.Expr, tirx.Expr, tirx.Expr], tirx.Expr],
    name: str,
) -> Node:
    """What a function makes of each element along an axis, the one before it, and the result there.

    Args:
        dtype: of the result.
        begin: the first element to its result.
        step: the last result, the element, the element before to the next result.
    """
    n, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    rows = math.prod(x.shape[:axis]) * inner
    if 0 in x.shape:
        return constant(np.zeros(x.shape, dtype), x.name)

    def body(data: Any, out: Any) -> None:
        with T.parallel(0, rows) as row:
            first = T.Bind(row // inner * (n * inner) + row % inner)
            out[first] = begin(data[first])
            with T.serial(1, n) as i:
                place = T.Bind(first + i * inner)
                out[place] = step(T.Bind(out[place - inner]), T.Bind(data[place]), T.Bind(data[place - inner]))

    def function(data: te.Tensor) -> te.Tensor:
        return statements.kernel(name, body, [data], [((rows * n,), dtype)])[0]

    return reshape(expression(function, reshape(x, (rows * n,)), name=name), x.shape)


def _nan_count(x: Node, axis: int) -> Node:
    return reduced("sum", cast(is_nan(x), "int64"), [axis], True)


def _one(x: Node, axis: int) -> tuple[int, ...]:
    return tuple(1 if other == axis else size for other, size in enumerate(x.shape))
