"""Casts between element types."""

from __future__ import annotations

from onnx import TensorProto

from calumma.graph.nodes import Node
from calumma.onnx_import.element_types import is_supported, type_name
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics.element_casts import converted, reinterpreted


def cast_to(node: OnnxNode, x: Node, target: int) -> Node:
    """A node of an operator's input in another element type, by the operator's attributes."""
    saturate = node.flag("saturate", 1)
    round_mode = node.attribute("round_mode", "up")
    if not is_supported(target):
        raise node.refused(f"a cast to {type_name(target)} is not supported")
    if node.input_type(0) == target:
        return x
    return converted(x, type_name(target) if target not in _NAMES else _NAMES[target], saturate, str(round_mode))


_NAMES = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}


@onnx_rule("Cast")
def cast(node: OnnxNode) -> Node:
    target = node.attribute("to")
    if isinstance(target, str):  # in version 1, a name
        target = TensorProto.DataType.Value(target)
    return cast_to(node, node.input(0), int(target))


@onnx_rule("CastLike")
def cast_like(node: OnnxNode) -> Node:
    node.input(1)
    return cast_to(node, node.input(0), node.input_type(1))


@onnx_rule("BitCast")
def bit_cast(node: OnnxNode) -> Node:
    source, target = (_NAMES.get(kind, type_name(kind)) for kind in (node.input_type(0), int(node.attribute("to"))))
    return reinterpreted(node.input(0), source, target)
