"""Constants, and what is known of a tensor without computing it."""

from __future__ import annotations

import numpy as np

from calumma.frontend.onnx.node import OnnxNode
from calumma.frontend.onnx.registry import onnx_rule
from calumma.graph.nodes import Node, constant

_NUMBERS = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}


@onnx_rule("Constant")
def constant_node(node: OnnxNode) -> Node:
    """The value of its one attribute; sparse and text ones are refused."""
    for name, dtype in _NUMBERS.items():
        if node.has_attribute(name):
            return constant(np.asarray(node.attribute(name), dtype), node.name)
    value = node.attribute("value", None)
    if value is None:
        raise node.refused("it is neither a tensor nor a number")
    return constant(value.astype(node.output_dtype()), node.name)


@onnx_rule("Identity")
def identity(node: OnnxNode) -> Node:
    return node.input(0)


@onnx_rule("Shape")
def shape(node: OnnxNode) -> Node:
    sizes = node.input(0).shape
    start, end = node.attribute("start", 0), node.attribute("end", None)
    return constant(np.array(sizes[start:end], np.int64), node.name)


@onnx_rule("Size")
def size(node: OnnxNode) -> Node:
    return constant(np.array(np.prod(node.input(0).shape, dtype=np.int64)), node.name)
