"""Rewrites of a model before it is imported: functions inlined, unneeded nodes dropped, sizes written out."""

from __future__ import annotations

import onnx
from onnx import helper, inliner

from calumma.onnx_import.element_types import declared_types
from calumma.onnx_import.error_text import onnx_step
from calumma.onnx_import.graph_fields import assign, captured


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


def write_out_sizes(proto: onnx.ModelProto) -> None:
    """Write the attribute output_shape into transposed convolutions for which ONNX infers another size.

    With `SAME` padding and `output_padding`, the text of the standard and ONNX Runtime give the input's size times the
    stride; ONNX's own inference adds the latter to it, and hands that on to all nodes behind.
    """
    while (node := next(filter(_is_inferred_wrongly, proto.graph.node), None)) is not None:
        graph = onnx.shape_inference.infer_shapes(proto).graph
        shapes = {name: shape for name, (_, shape) in declared_types(graph).items()}
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        x, weight = (shapes.get(name) for name in node.input[:2])
        sizes = _sizes_of_same_padding(node, x[2:], weight[2:]) if x and weight else None
        if sizes is None:
            return  # its rule says what is wrong with it
        node.attribute.append(helper.make_attribute("output_shape", sizes))


def _is_inferred_wrongly(node: onnx.NodeProto) -> bool:
    given = {attribute.name: attribute for attribute in node.attribute}
    return (
        node.op_type == "ConvTranspose"
        and not node.domain
        and len(node.input) > 1
        and "output_shape" not in given
        and "output_padding" in given
        and "auto_pad" in given
        and given["auto_pad"].s.startswith(b"SAME")
    )


def _sizes_of_same_padding(node: onnx.NodeProto, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> list[int] | None:
    """The sizes of the result; None where the attributes do not fit."""
    given = {attribute.name: tuple(attribute.ints) for attribute in node.attribute}
    ones = (1,) * len(sizes)
    strides, dilations = given.get("strides", ones), given.get("dilations", ones)
    extra = given["output_padding"]
    if {len(values) for values in (kernel, strides, dilations, extra)} != {len(sizes)}:
        return None
    found = [
        min((size - 1) * stride + more + (window - 1) * dilation + 1, size * stride)
        for size, stride, more, window, dilation in zip(sizes, strides, extra, kernel, dilations, strict=True)
    ]
    return found if found and min(found) > 0 and max(found) < 1 << 31 else None
