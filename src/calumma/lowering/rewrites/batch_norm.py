"""BatchNorm at inference: a scale and a shift of every channel."""

from __future__ import annotations

import numpy as np

from calumma.graph.nodes import CONSTANT, TUPLE_ITEM, Graph, Node, constant
from calumma.lowering.rewrites.reading import binary_like


def decompose_batch_norm(graph: Graph) -> None:
    """BatchNorm at inference is x * scale + shift, with scale = gamma / sqrt(var + eps), per channel."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != TUPLE_ITEM or node.args[0].op != "nn.batch_norm" or node.attrs.index != 0:
            continue
        norm = node.args[0]
        data, *rest = norm.args
        if not all(p.op == CONSTANT for p in rest[:4]):
            continue
        gamma, beta, mean, var = (p.value.astype(np.float64) for p in rest[:4])
        scale = gamma / np.sqrt(var + float(norm.attrs.epsilon))
        if not norm.attrs.scale:
            scale = 1 / np.sqrt(var + float(norm.attrs.epsilon))
        shift = (beta if norm.attrs.center else 0) - mean * scale
        spread = [1] * len(node.shape)
        spread[int(norm.attrs.axis)] = -1
        scaled = binary_like("multiply", data, constant(scale.reshape(spread).astype(node.dtype)), node)
        mapping[node] = binary_like("add", scaled, constant(shift.reshape(spread).astype(node.dtype)), node)
    graph.replace(mapping)
