"""The rule of tensor expressions: emitted as they are, on plain values."""

from __future__ import annotations

from calumma.graph.context import LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import Node


def lower_expression(lo: LoweringContext, node: Node) -> Value:
    """The rule of `calumma.expression`."""
    attrs = node.attrs
    tensors = [lo.plain(source).expr for source in node.args]
    return Value(lo.emit(attrs.function, *tensors, kind=attrs.kind, name=attrs.name), node.shape)
