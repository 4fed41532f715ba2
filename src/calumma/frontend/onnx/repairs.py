"""Rewrites of a model before it is converted: one form for constants, newer operators, unneeded nodes dropped."""

from __future__ import annotations

import onnx
from onnx import AttributeProto, helper, inliner, version_converter

from calumma.frontend.onnx.error_text import onnx_step
from calumma.frontend.onnx.graph_fields import assign, captured, opset_of

_RENEWED = frozenset({"Resize", "Slice", "TopK", "Upsample"})
"""Operators whose attributes became inputs by opset 11; the converter knows only the later form."""


def lift_constants(proto: onnx.ModelProto) -> None:
    """Give constants one form: initialisers that are not inputs as well (IR before 4), instead of Constant nodes."""
    graph = proto.graph
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].type == AttributeProto.TENSOR:
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    assign(graph.node, nodes)
    constants = {tensor.name for tensor in graph.initializer}
    assign(graph.input, [value for value in graph.input if value.name not in constants])
    proto.ir_version = max(proto.ir_version, 4)


def leave_out_empty_inputs(graph: onnx.GraphProto) -> None:
    """An empty tensor is how exporters leave an input of Resize out."""
    empty = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    for node in graph.node:
        if node.op_type == "Resize":
            node.input[:] = ["" if name in empty else name for name in node.input]


def modernise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the model's own functions, and bring it to opset 11 where the converter does not know an older form."""
    with onnx_step("cannot be converted to opset 11"):
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        if opset_of(proto) < 11 and not _RENEWED.isdisjoint(node.op_type for node in proto.graph.node):
            proto = version_converter.convert_version(proto, 11)
            for node in proto.graph.node:
                if node.op_type == "Resize":
                    _keep_old_coordinates(node)
    return proto


def _keep_old_coordinates(node: onnx.NodeProto) -> None:
    """Write out the coordinates of Resize before opset 11: the version converter leaves them to the new defaults."""
    given = {attribute.name for attribute in node.attribute}
    for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
        if name not in given:
            node.attribute.append(helper.make_attribute(name, value))


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
