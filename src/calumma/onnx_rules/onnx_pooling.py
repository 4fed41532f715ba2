"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence

from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.onnx_import.sliding_windows import read_windows
from calumma.operators.pooling.expression import AxisWindow
from calumma.semantics import pooling


@onnx_rule("MaxPool")
def max_pool(node: OnnxNode) -> Sequence[Node]:
    x = node.input(0)
    windows = _windows(node, x)
    column_major = node.flag("storage_order", 0)
    pooled = pooling.max_pool(x, windows, node.flag("ceil_mode", 0))
    if not node.wants(1):
        return [pooled]
    return [pooled, pooling.max_pool_indices(x, pooled, windows, column_major=column_major)]


@onnx_rule("AveragePool")
def average_pool(node: OnnxNode) -> Node:
    x = node.input(0)
    ceil_mode, include = (node.flag(name, 0) for name in ("ceil_mode", "count_include_pad"))
    return pooling.average_pool(x, _windows(node, x), ceil_mode, include)


@onnx_rule("LpPool")
def lp_pool(node: OnnxNode) -> Node:
    x, p = node.input(0), float(node.attribute("p", 2))
    return pooling.norm_pool(x, _windows(node, x), p, node.flag("ceil_mode", 0))


def _windows(node: OnnxNode, x: Node) -> tuple[AxisWindow, ...]:
    """The windows, none of which lies in the padding alone: of that there is nothing to say."""
    windows = tuple(read_windows(node, x.shape[2:]))
    if any(max(w.before, w.after) > (w.kernel - 1) * w.dilation for w in windows):
        raise node.refused("its padding is as large as its window", "export it with less padding")
    return windows


@onnx_rule("GlobalAveragePool")
def global_average_pool(node: OnnxNode) -> Node:
    return pooling.global_mean(node.input(0))


@onnx_rule("GlobalMaxPool")
def global_max_pool(node: OnnxNode) -> Node:
    return pooling.global_max(node.input(0))


@onnx_rule("GlobalLpPool")
def global_lp_pool(node: OnnxNode) -> Node:
    return pooling.global_norm(node.input(0), float(node.attribute("p", 2)))
