"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence

from calumma.frontend import pooling
from calumma.frontend.onnx.node import OnnxNode
from calumma.frontend.onnx.registry import onnx_rule
from calumma.frontend.onnx.sliding_windows import read_windows
from calumma.graph.nodes import Node


@onnx_rule("MaxPool")
def max_pool(node: OnnxNode) -> Sequence[Node]:
    x = node.input(0)
    windows = read_windows(node, x.shape[2:])
    column_major = bool(node.attribute("storage_order", 0))
    pooled = pooling.max_pool(x, windows, bool(node.attribute("ceil_mode", 0)))
    if not node.wants(1):
        return [pooled]
    return [pooled, pooling.max_pool_indices(x, pooled, windows, column_major=column_major)]


@onnx_rule("AveragePool")
def average_pool(node: OnnxNode) -> Node:
    x = node.input(0)
    ceil_mode, include = (bool(node.attribute(name, 0)) for name in ("ceil_mode", "count_include_pad"))
    return pooling.average_pool(x, read_windows(node, x.shape[2:]), ceil_mode, include)


@onnx_rule("LpPool")
def lp_pool(node: OnnxNode) -> Node:
    x, p = node.input(0), float(node.attribute("p", 2))
    return pooling.norm_pool(x, read_windows(node, x.shape[2:]), p, bool(node.attribute("ceil_mode", 0)))


@onnx_rule("GlobalAveragePool")
def global_average_pool(node: OnnxNode) -> Node:
    return pooling.global_mean(node.input(0))


@onnx_rule("GlobalMaxPool")
def global_max_pool(node: OnnxNode) -> Node:
    return pooling.global_max(node.input(0))


@onnx_rule("GlobalLpPool")
def global_lp_pool(node: OnnxNode) -> Node:
    return pooling.global_norm(node.input(0), float(node.attribute("p", 2)))
