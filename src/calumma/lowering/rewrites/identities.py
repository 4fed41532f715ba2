"""Operators that give their input back."""

from __future__ import annotations

from calumma.graph.nodes import TUPLE_ITEM, Graph, Node


def remove_identities(graph: Graph) -> None:
    """Drop operators that give their input back, and join reshapes of reshapes."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        node.replace_inputs(mapping)
        if node.op == TUPLE_ITEM and node.args[0].op == "nn.dropout" and node.attrs.index == 0:
            mapping[node] = node.args[0].args[0]
            continue
        if node.op in ("reshape", "squeeze", "expand_dims", "flatten", "broadcast_to", "astype"):
            source = node.args[0]
            if isinstance(source, Node) and source.shape == node.shape and source.dtype == node.dtype:
                mapping[node] = source
                continue
        if node.op in ("squeeze", "expand_dims", "flatten"):
            node.op, node.args, node.attrs, node.call = "reshape", (node.args[0],), None, None
        if node.op == "reshape":
            while node.args[0].op == "reshape":
                node.args = (node.args[0].args[0],)
            if node.args[0].shape == node.shape:
                mapping[node] = node.args[0]
    graph.replace(mapping)
