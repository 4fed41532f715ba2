"""Transposes around products of two activations."""

from __future__ import annotations

from types import SimpleNamespace

from calumma.graph.nodes import CONSTANT, MATMUL, Graph, Node
from calumma.lowering.rewrites.reading import axes_of


def absorb_transposes(graph: Graph) -> None:
    """Products of two activations read transposed operands and write a transposed result in place, without copies."""
    users = graph.users()
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "matmul" or node.dtype != "float32":  # the rule of `matmul` leaves other types to TVM
            continue
        if any(len(n.shape) != len(node.shape) or n.op == CONSTANT for n in node.args):
            continue
        operands, axes = [], []
        for side in node.args:
            transposed = side.op == "permute_dims" and side.attrs.axes is not None
            operands.append(side.args[0] if transposed else side)
            axes.append(axes_of(side.attrs.axes) if transposed else None)
        result, out_axes = node, None
        readers = users[node]
        if len(readers) == 1 and readers[0].op == "permute_dims" and readers[0].attrs.axes is not None:
            result, out_axes = readers[0], axes_of(readers[0].attrs.axes)
        if axes == [None, None] and out_axes is None:
            continue
        attrs = SimpleNamespace(left_axes=axes[0], right_axes=axes[1], out_axes=out_axes)
        mapping[result] = Node(
            MATMUL, args=tuple(operands), attrs=attrs, shape=result.shape, dtype=node.dtype, name=node.name
        )
    graph.replace(mapping)
