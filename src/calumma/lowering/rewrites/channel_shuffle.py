"""Channel shuffles, which are written as reshape, transpose, reshape."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from calumma.graph.nodes import CHANNEL_SHUFFLE, Graph, Node
from calumma.lowering.rewrites.reading import axes_of


def recover_channel_shuffle(graph: Graph) -> None:
    """reshape (N,g,C/g,H,W), swap axes 1 and 2, reshape back: output channel c reads input channel attrs.source[c]."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "reshape" or len(node.shape) != 4 or node.dtype != "float32" or node.args[0].op != "permute_dims":
            continue
        swap = node.args[0]
        if axes_of(swap.attrs.axes) != (0, 2, 1, 3, 4) or swap.args[0].op != "reshape":
            continue
        data = swap.args[0].args[0]
        groups = swap.args[0].shape[1]
        if data.shape != node.shape or (data.shape[0], *data.shape[2:]) != (swap.shape[0], *swap.shape[3:]):
            continue
        source = np.arange(node.shape[1]).reshape(groups, -1).T.reshape(-1)
        mapping[node] = Node(
            CHANNEL_SHUFFLE,
            args=(data,),
            attrs=SimpleNamespace(source=source),
            shape=node.shape,
            dtype=node.dtype,
            name=node.name,
        )
    graph.replace(mapping)
