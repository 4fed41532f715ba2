"""Fields of ONNX's messages: the opset, domains, names taken from outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import AttributeProto

ONNX_DOMAINS = ("", "ai.onnx")


def opset_of(proto: onnx.ModelProto) -> int:
    """The opset of the ONNX domain, 0 where the model names none."""
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in ONNX_DOMAINS), 0)


def assign(field: Any, values: list[Any]) -> None:
    """Set a repeated field of a message to some of its own values."""
    if len(values) < len(field):
        del field[:]
        field.extend(values)


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a graph, and those inside of them."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield attribute.g
                yield from subgraphs(attribute.g)


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the branches of a control flow node may take from outside."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names.update(inner.input, captured(inner))
            names.update(value.name for value in attribute.g.output)
    return names
