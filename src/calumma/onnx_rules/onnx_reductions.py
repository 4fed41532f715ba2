"""Reductions, indices of extrema, running sums and products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

from tvm import tirx

from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics import reductions

_REDUCTIONS: dict[str, Callable[..., Node]] = {
    "ReduceL1": reductions.sum_of_magnitudes,
    "ReduceL2": reductions.euclidean,
    "ReduceLogSum": reductions.log_sum,
    "ReduceLogSumExp": reductions.log_sum_exp,
    "ReduceMax": partial(reductions.reduced, "max"),
    "ReduceMean": partial(reductions.reduced, "mean"),
    "ReduceMin": partial(reductions.reduced, "min"),
    "ReduceProd": partial(reductions.reduced, "prod"),
    "ReduceSum": partial(reductions.reduced, "sum"),
    "ReduceSumSquare": reductions.sum_of_squares,
}


@onnx_rule(*_REDUCTIONS)
def reduce(node: OnnxNode) -> Node:
    """Axes are an attribute, later (13 for the sum, 18 for the others) an input."""
    x = node.input(0)
    rank = len(x.shape)
    function = _REDUCTIONS[node.op]
    keepdims = node.flag("keepdims", 1)
    noop = node.flag("noop_with_empty_axes", 0)
    if not node.is_known(1):
        return _along_run_time_axes(node, x, keepdims)
    given = node.integers(1, "axes") if node.has_input(1) else node.attribute("axes", None)
    if not given:
        return function(x, () if noop else None, keepdims)
    return function(x, tuple(sorted({node.normalised_axis(axis, rank, "axes") for axis in given})), keepdims)


def _along_run_time_axes(node: OnnxNode, x: Node, keepdims: bool) -> Node:
    """Axes of which only the number is known: those that give the result the shape that the model declares."""
    rank, axes = len(x.shape), node.input(1)
    shape = node.promised_shape("axes")
    fitting = [
        chosen
        for chosen in itertools.combinations(range(rank), math.prod(axes.shape))
        if reductions.reduced_shape(x, chosen, keepdims) == shape
    ]
    if not fitting or (len(fitting) > 1 and math.prod(axes.shape) > 1):
        raise node.refused("axes is computed at run time, and several would do", "make axes a constant of the model")
    results = [_REDUCTIONS[node.op](x, chosen, keepdims) for chosen in fitting]
    return reductions.chosen(results, lambda axis, index: _is_axis(axis, fitting[index][0], rank), axes)


def _is_axis(value: tirx.Expr, axis: int, rank: int) -> tirx.Expr:
    """Whether a run-time axis, which may count from the end, is this one."""
    return tirx.any(*(tirx.EQ(value, tirx.const(number, str(value.ty))) for number in (axis, axis - rank)))


@onnx_rule("ArgMax", "ArgMin")
def index_of_extremum(node: OnnxNode) -> Node:
    x = node.input(0)
    axis = node.axis(len(x.shape), default=0)
    keepdims = node.flag("keepdims", 1)
    last = node.flag("select_last_index", 0)
    return reductions.index_of_extremum(x, axis, keepdims, largest=node.op == "ArgMax", last=last)


@onnx_rule("CumSum", "CumProd")
def cumulative(node: OnnxNode) -> Node:
    """Along an axis that may be known at run time only."""
    x = node.input(0)
    rank = len(x.shape)
    exclusive, reverse = (node.flag(name, 0) for name in ("exclusive", "reverse"))
    kind = "sum" if node.op == "CumSum" else "prod"
    function = partial(reductions.cumulative, kind, x, exclusive=exclusive, reverse=reverse)
    if node.is_known(1):
        (axis,) = node.integers(1, "axis") or (0,)
        return function(axis=node.normalised_axis(axis, rank))
    results = [function(axis=axis) for axis in range(rank)]
    return reductions.chosen(results, lambda axis, index: _is_axis(axis, index, rank), node.input(1))
