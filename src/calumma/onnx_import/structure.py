"""What a graph has to be: versions that are known, every name given once and before it is read, valid nodes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import checker
from onnx.checker import ValidationError

from calumma.core.errors import ModelError
from calumma.onnx_import.error_text import first_line
from calumma.onnx_import.graph_fields import ONNX_DOMAINS, captured, opset_of, subgraphs

OPSETS = range(1, onnx.defs.onnx_opset_version() + 1)
"""Opsets of the default domain that can be imported."""


def check_opset(proto: onnx.ModelProto) -> None:
    """Refuse versions of the ONNX domain that are not known; a model of other domains alone gets the newest."""
    opset = opset_of(proto)
    nodes = [node for inner in (proto.graph, *proto.functions) for node in inner.node]
    if not opset and proto.opset_import and all(n.domain not in ONNX_DOMAINS and not captured(n) for n in nodes):
        proto.opset_import.append(onnx.helper.make_opsetid("", OPSETS[-1]))
        return
    if opset not in OPSETS:
        raise ModelError(
            f"{f'opset {opset}' if opset else 'no opset of the ONNX domain'}, expected {OPSETS[0]} to {OPSETS[-1]}; "
            "export it with opset 17 or convert it with onnx.version_converter"
        )
    for named in (*proto.opset_import, *proto.graph.node):
        if named.domain == ONNX_DOMAINS[1]:
            named.domain = ""


def check_graph(proto: onnx.ModelProto) -> None:
    """Refuse what is no graph (names given twice, never or too late) and nodes that break their operator's schema.

    Rules believe all this: they would compute something else where it does not hold.
    """
    graph = proto.graph
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(f"IR version {proto.ir_version}, known are those up to {onnx.IR_VERSION}; update onnx")
    if not all(isinstance(text, str) for text in _texts(proto)):  # what is not UTF-8 comes as bytes
        raise ModelError("a name is not text in UTF-8: damaged; export or download the model again")
    context = checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in proto.opset_import}
    given = {""}

    def give(name: str, what: str) -> None:
        if name and name in given:
            raise ModelError(f"{what}: the name {name!r} is given twice; export the model again")
        given.add(name)

    for value in graph.input:
        give(value.name, "input")
    for tensor in graph.initializer:
        give(tensor.name, "weight")
    for inner in subgraphs(graph):
        for node in inner.node:
            _check_parts(node, f"node {node.name or next(iter(node.output), '')}: operator {node.op_type}")
    for node in graph.node:
        what = f"node {node.name or next(iter(node.output), '')}: operator {node.op_type}"
        if not any(node.output):
            raise ModelError(f"{what} gives no result; export the model again")
        if node.domain not in context.opset_imports:
            raise ModelError(f"{what} is of domain {node.domain!r}, of which the model names no opset; export it again")
        absent = next((name for name in node.input if name not in given), None)
        if absent is not None:
            raise ModelError(f"{what} reads {absent!r}, which nothing before it gives; export the model again")
        if not node.domain and onnx.defs.has(node.op_type, opset_of(proto), "") and not captured(node):
            schema = onnx.defs.get_schema(node.op_type, opset_of(proto), "")
            try:
                if not schema.deprecated:  # rules cover those as well: ONNX Runtime still runs GroupNormalization-18
                    checker.check_node(node, context)
            except ValidationError as error:
                raise ModelError(f"{what} is not valid ({first_line(error)}); export the model again") from error
            _check_variadic(node, what, schema)
            _check_parts(node, what)
        for name in node.output:
            give(name, what)
    for value in graph.output:
        if not value.name or value.name not in given:
            raise ModelError(f"output {value.name!r}: nothing gives it; export the model again")


def _check_variadic(node: onnx.NodeProto, what: str, schema: onnx.defs.OpSchema) -> None:
    """Refuse an input left out of a list of inputs, which ONNX's own check lets pass."""
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    listed = schema.inputs and schema.inputs[-1].option == variadic
    if listed and "" in node.input[len(schema.inputs) - 1 :]:
        raise ModelError(f"{what} has an input without a name; export the model again")


def _check_parts(node: onnx.NodeProto, what: str) -> None:
    """Refuse a Split into more or fewer parts than outputs: ONNX's type inference ends the process."""
    parts = next((attribute.i for attribute in node.attribute if attribute.name == "num_outputs"), len(node.output))
    if node.op_type == "Split" and parts != len(node.output):
        raise ModelError(f"{what} has {len(node.output)} outputs for {parts} parts; export the model again")


def _texts(proto: onnx.ModelProto) -> Iterator[str]:
    """Everything in a model that names something."""
    graph = proto.graph
    yield from (entry.domain for entry in proto.opset_import)
    yield from (named.name for named in (*graph.input, *graph.output, *graph.initializer))
    yield from (dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim)
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
