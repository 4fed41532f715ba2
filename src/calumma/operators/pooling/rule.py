"""How pooling is lowered, in whatever layout its input has."""

from __future__ import annotations

from calumma.expressions.integers import ints, pair, sides
from calumma.graph.context import OUT_ELEMENTWISE_FUSABLE, Declined, LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import Node
from calumma.operators.pooling import expression

_MOST_IN_ONE_SUM = 4096
"""Pixels that one float32 sum adds up: of 19,200 it was off by 1.7e-4, as the mean of means of rows by 1e-6."""


def lower_pool2d(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `nn.max_pool2d` and `nn.avg_pool2d`."""
    attrs = node.attrs
    if attrs.layout != "NCHW":
        return Declined(f"its layout is {attrs.layout}, not NCHW")
    if not lo.computes(node):
        return Declined(f"it computes in {node.dtype}")
    source = lo.stored(node.args[0])
    top, left, bottom, right = sides(attrs.padding)
    kernel, strides, dilation = pair(attrs.pool_size), pair(attrs.strides), pair(attrs.dilation)
    height = expression.AxisWindow(kernel[0], strides[0], before=top, after=bottom, dilation=dilation[0])
    width = expression.AxisWindow(kernel[1], strides[1], before=left, after=right, dilation=dilation[1])
    ceil_mode = bool(attrs.ceil_mode)
    if node.op == "nn.max_pool2d":
        function = lambda x: expression.max_pool2d(x, height, width, ceil_mode)  # noqa: E731
    else:
        include = bool(attrs.count_include_pad)
        function = lambda x: expression.avg_pool2d(x, height, width, ceil_mode, include)  # noqa: E731
    expr = lo.emit(function, source.expr, kind=OUT_ELEMENTWISE_FUSABLE, name="pool2d")
    return lo.moved(Value(expr, node.shape, source.slots), source)


def lower_global_mean(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `mean` over height and width, and of `nn.adaptive_avg_pool2d` to one pixel."""
    source_node = node.args[0]
    if not lo.computes(node):
        return Declined(f"it computes in {node.dtype}")
    rank = len(source_node.shape)
    if node.op == "mean":
        axes = None if node.attrs.axis is None else sorted(a % rank for a in ints(node.attrs.axis))
        if rank != 4 or axes != [2, 3]:
            return Declined(f"a mean over axes {axes} of {rank} is none of images")
    elif ints(node.attrs.output_size) != (1, 1):
        return Declined("its output is more than one pixel")
    source = lo.stored(source_node)
    pooled_shape = (*source_node.shape[:2], 1, 1)
    height, width = source_node.shape[2:]
    if height * width > _MOST_IN_ONE_SUM:
        rows = lo.emit(
            lambda x: expression.adaptive_avg_pool2d(x, height, 1),
            source.expr,
            kind=OUT_ELEMENTWISE_FUSABLE,
            name="mean_of_rows",
        )
        source = Value(rows, (*source_node.shape[:3], 1), source.slots)
    expr = lo.emit(expression.global_avg_pool2d, source.expr, kind=OUT_ELEMENTWISE_FUSABLE, name="global_avg_pool2d")
    value = Value(expr, pooled_shape, source.slots)
    return value if node.shape == pooled_shape else lo.reshaped(value, node.shape)
