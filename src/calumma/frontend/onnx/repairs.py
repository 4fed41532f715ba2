"""Rewrites of a model before it is imported: functions inlined, unneeded nodes dropped."""

from __future__ import annotations

import onnx
from onnx import inliner

from calumma.frontend.onnx.error_text import onnx_step
from calumma.frontend.onnx.graph_fields import assign, captured


def leave_out_initialised_inputs(proto: onnx.ModelProto) -> None:
    """Give constants one form: initialisers that are not inputs as well (IR before 4)."""
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    assign(graph.input, [value for value in graph.input if value.name not in constants])
    proto.ir_version = max(proto.ir_version, 4)


def inline_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the model's own functions."""
    if not proto.functions:
        return proto
    with onnx_step("its functions cannot be inlined"):
        return inliner.inline_local_functions(proto)


def prune(proto: onnx.ModelProto) -> None:
    """Drop nodes that no output needs, and give every other one a name of its own."""
    graph = proto.graph
    needed = {value.name for value in graph.output}
    nodes = []
    names: set[str] = set()
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input, captured(node))
            if not node.name or node.name in names:
                node.name = f"{node.name or node.op_type}:{node.output[0]}"
            names.add(node.name)
            nodes.append(node)
    assign(graph.node, nodes[::-1])


def write_out_defaults(proto: onnx.ModelProto) -> None:
    """Give STFT its `onesided`: where it is left to its default of 1, ONNX infers the shape of both sides."""
    for node in proto.graph.node:
        if node.op_type == "STFT" and not node.domain and all(given.name != "onesided" for given in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("onesided", 1))
