"""Layer normalisation, which is written as nine operators before opset 17."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from calumma.graph.nodes import CONSTANT, Graph, Node, constant
from calumma.lowering.rewrites.reading import axes_of


def recover_layer_norm(graph: Graph) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * gamma + beta over the last axis, as written before opset 17."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        match = _match_layer_norm(node)
        if match is None:
            continue
        data, gamma, beta, epsilon = match
        mapping[node] = Node(
            "nn.layer_norm",
            args=(data, constant(gamma), constant(beta)),
            attrs=SimpleNamespace(axes=(len(data.shape) - 1,), epsilon=epsilon, center=True, scale=True),
            shape=node.shape,
            dtype=node.dtype,
            name=node.name,
        )
    graph.replace(mapping)


def _match_layer_norm(node: Node) -> tuple[Node, np.ndarray, np.ndarray, float] | None:
    def last_mean(x: Node) -> bool:
        rank = len(x.args[0].shape) if x.op == "mean" else 0
        return (
            x.op == "mean" and bool(x.attrs.keepdims) and [a % rank for a in axes_of(x.attrs.axis) or ()] == [rank - 1]
        )

    def vector(x: Any, length: int) -> bool:
        return isinstance(x, Node) and x.op == CONSTANT and x.value.shape[-1:] == (length,) == (x.value.size,)

    if node.op != "add" or not isinstance(node.args[0], Node) or node.args[0].op != "multiply":
        return None
    scaled, beta = node.args
    ratio, gamma = scaled.args
    length = node.shape[-1] if node.shape else 0
    if ratio.op != "divide" or not vector(beta, length) or not vector(gamma, length):
        return None
    centred, root = ratio.args
    if centred.op != "subtract" or not last_mean(centred.args[1]) or centred.args[1].args[0] is not centred.args[0]:
        return None
    if root.op != "sqrt" or root.args[0].op != "add" or not last_mean(root.args[0].args[0]):
        return None
    variance, epsilon = root.args[0].args
    square = variance.args[0]
    squared = (square.op == "power" and square.args[0] is centred and _is_scalar(square.args[1], 2.0)) or (
        square.op == "multiply" and square.args[0] is centred and square.args[1] is centred
    )
    if not squared or epsilon.op != CONSTANT or epsilon.value.size != 1:
        return None
    return centred.args[0], gamma.value.reshape(-1), beta.value.reshape(-1), float(epsilon.value.reshape(()))


def _is_scalar(node: Any, value: float) -> bool:
    return (
        isinstance(node, Node)
        and node.op == CONSTANT
        and node.value.size == 1
        and float(node.value.reshape(())) == value
    )
