"""Reductions, indices of extrema, running sums and products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from calumma.frontend import reductions
from calumma.frontend.onnx.node import OnnxNode
from calumma.frontend.onnx.registry import onnx_rule
from calumma.graph.nodes import Node

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
    given = node.integers(1, "axes") if node.has_input(1) else node.attribute("axes", None)
    keepdims = node.flag("keepdims", 1)
    noop = node.flag("noop_with_empty_axes", 0)
    axes = None if not given else tuple(node.normalised_axis(axis, len(x.shape), "axes") for axis in given)
    if axes is None and noop:
        axes = ()
    return _REDUCTIONS[node.op](x, None if axes is None else tuple(sorted(set(axes))), keepdims)


@onnx_rule("ArgMax", "ArgMin")
def index_of_extremum(node: OnnxNode) -> Node:
    x = node.input(0)
    axis = node.axis(len(x.shape), default=0)
    keepdims = node.flag("keepdims", 1)
    if node.attribute("select_last_index", 0):
        raise node.refused("select_last_index is not supported", "export it without")
    return reductions.index_of_extremum(x, axis, keepdims, largest=node.op == "ArgMax")


@onnx_rule("CumSum", "CumProd")
def cumulative(node: OnnxNode) -> Node:
    x = node.input(0)
    (axis,) = node.integers(1, "axis") or (0,)
    return reductions.cumulative(
        "sum" if node.op == "CumSum" else "prod",
        x,
        node.normalised_axis(axis, len(x.shape)),
        exclusive=node.flag("exclusive", 0),
        reverse=node.flag("reverse", 0),
    )
