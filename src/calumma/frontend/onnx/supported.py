"""What is said of operators that cannot be imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import inliner

from calumma.core.errors import ModelError
from calumma.frontend.onnx.graph_fields import ONNX_DOMAINS, opset_of, subgraphs
from calumma.frontend.onnx.registry import known_operators

if TYPE_CHECKING:
    from calumma.frontend.onnx.node import OnnxNode

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
    return inliner.inline_selected_functions(proto, [("", name) for name in defined], inline_schema_functions=True)


def _has_definition(operator: str, opset: int) -> bool:
    if not onnx.defs.has(operator, opset, ""):
        return False
    schema = onnx.defs.get_schema(operator, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)
