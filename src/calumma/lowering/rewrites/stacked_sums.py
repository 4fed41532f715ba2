"""Sums of several tensors."""

from __future__ import annotations

from calumma.graph.nodes import Graph, Node
from calumma.lowering.rewrites.reading import axes_of, binary_like


def replace_stacked_sums(graph: Graph) -> None:
    """Importers write ONNX Sum as broadcast + stack + sum; a chain of additions fuses into its producer instead."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "sum" or node.args[0].op != "stack" or axes_of(node.attrs.axis) != (0,) or node.attrs.keepdims:
            continue
        stacked = node.args[0]
        if int(stacked.attrs.axis or 0) != 0:
            continue
        total, *others = stacked.args[0]
        for other in others:
            total = binary_like("add", total, other, node)
        mapping[node] = total
    graph.replace(mapping)
