"""Which operators can be converted, and what to say of the others."""

from __future__ import annotations

import onnx
from onnx import inliner

from calumma.core.errors import ModelError
from calumma.frontend.onnx.graph_fields import ONNX_DOMAINS, opset_of
from calumma.frontend.onnx.repairs import prune

_CONTRIB_DOMAIN = "com.microsoft"
_CONTRIB_ONLY = frozenset({"Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "SkipLayerNormalization"})
"""Operators of ONNX Runtime's own domain that the converter knows, and that the ONNX domain does not have."""
_CONTRIB = _CONTRIB_ONLY | {"Gelu"}
_FLAWS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"If", "Loop", "Scan"}),
        "is control flow, which is not supported; export the model with the branch or the number of steps fixed",
    ),
    (
        frozenset({"AllClassNMS", "Compress", "NonMaxSuppression", "NonZero", "Unique"}),
        "gives a shape that depends on values, which is not supported; cut the model off before this node",
    ),
    (
        frozenset({"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulInteger16"})
        | {"QLinearConv", "QLinearMatMul", "QuantizeLinear"},
        "is quantised arithmetic, which is not supported; give the float32 model it was made from",
    ),
    (
        frozenset({"GRU", "LSTM", "RNN"}),
        "is recurrent, which is not supported; export the model with the steps unrolled into Gemm and activations",
    ),
)
"""Operators that cannot be compiled right, and what to tell the user."""


def expand_functions(proto: onnx.ModelProto, supported: frozenset[str]) -> onnx.ModelProto:
    """Replace operators that the converter does not know by the ONNX standard's own definition, where it has one."""
    refused = frozenset().union(*(operators for operators, _ in _FLAWS))
    names = {n.op_type for n in proto.graph.node if n.domain in ONNX_DOMAINS} - supported - refused
    opset = opset_of(proto)
    standard = {schema.name for schema in onnx.defs.get_all_schemas()} if names else set()
    defined = [name for name in sorted(names & standard) if _has_definition(name, opset)]
    if not defined:
        return proto
    expanded = inliner.inline_selected_functions(proto, [("", name) for name in defined], inline_schema_functions=True)
    prune(expanded)
    return expanded


def _has_definition(operator: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def check_operators(proto: onnx.ModelProto, supported: frozenset[str]) -> None:
    for node in proto.graph.node:
        for operators, flaw in _FLAWS:
            if node.op_type in operators:
                raise ModelError(f"node {node.name}: operator {node.op_type} {flaw}")
        if node.domain in ONNX_DOMAINS:
            known = node.op_type == "Constant" or node.op_type in supported - _CONTRIB_ONLY
        else:
            known = node.domain == _CONTRIB_DOMAIN and node.op_type in _CONTRIB
        if not known:
            domain = "" if node.domain in ONNX_DOMAINS else f" of domain {node.domain}"
            raise ModelError(
                f"node {node.name}: operator {node.op_type}{domain} is not supported; "
                "replace it by other ONNX operators before exporting, or cut the model off before this node"
            )
