"""What is said of operators that cannot be imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import helper, inliner

from calumma.core.errors import ModelError
from calumma.onnx_import.graph_fields import ONNX_DOMAINS, opset_of, subgraphs
from calumma.onnx_import.onnx_registry import known_operators

if TYPE_CHECKING:
    from calumma.onnx_import.onnx_node import OnnxNode

_FLAWS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"})
        | {"SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"},
        "computes with sequences, which are not supported; export the model with tensors alone",
    ),
    (
        frozenset({"Optional", "OptionalGetElement", "OptionalHasElement"}),
        "computes with optional values, which are not supported; export the model with tensors alone",
    ),
    (
        frozenset({"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"})
        | {"ImageDecoder"},
        "computes with strings or files, which are not supported; do this step before the model runs",
    ),
    (
        frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"})
        | {"RandomUniformLike"},
        "draws random numbers, and a compiled model computes the same at every call; make the numbers an input",
    ),
)
"""Operators that cannot be compiled, and what to tell the user."""


def unsupported(node: OnnxNode) -> ModelError:
    """The error for an operator without a rule."""
    for operators, flaw in _FLAWS:
        if node.op in operators:
            return ModelError(f"node {node.name}: operator {node.op} {flaw}")
    domain = "" if node.proto.domain in ONNX_DOMAINS else f" of domain {node.proto.domain}"
    return ModelError(
        f"node {node.name}: operator {node.op}{domain} is not supported; "
        "replace it by other ONNX operators before exporting, or cut the model off before this node"
    )


def expand_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Replace operators without a rule by the ONNX standard's own definition, where it has one."""
    known = {name for domain, name in known_operators() if not domain}
    opset = opset_of(proto)
    graphs = (proto.graph, *subgraphs(proto.graph))
    names = {node.op_type for graph in graphs for node in graph.node if not node.domain} - known
    defined = [name for name in sorted(names) if _has_definition(name, opset)]
    if not defined:
        return proto
    for graph in graphs:
        _add_defaults(graph, defined, opset)
        _add_types(graph)
    proto = inliner.inline_selected_functions(proto, [("", name) for name in defined], inline_schema_functions=True)
    del proto.graph.value_info[:]
    return proto


def _add_defaults(graph: onnx.GraphProto, operators: Sequence[str], opset: int) -> None:
    """Write the defaults of left out attributes into nodes: definitions refer to them, and are given none else."""
    for node in graph.node:
        if not node.domain and node.op_type in operators:
            given = {attribute.name for attribute in node.attribute}
            attributes = onnx.defs.get_schema(node.op_type, opset, "").attributes
            defaults = [attribute.default_value for attribute in attributes.values() if attribute.default_value.name]
            node.attribute.extend(default for default in defaults if default.name not in given)


def _add_types(graph: onnx.GraphProto) -> None:
    """Declare the types that the inliner asks for and does not find: of weights, and of inputs that are left out."""
    known = {value.name for value in (*graph.input, *graph.value_info)}
    for tensor in graph.initializer:
        if tensor.name not in known:
            graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.value_info.append(helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, None))


def _has_definition(operator: str, opset: int) -> bool:
    if not onnx.defs.has(operator, opset, ""):
        return False
    schema = onnx.defs.get_schema(operator, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)
