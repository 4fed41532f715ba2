"""Scales and shifts of channels behind a convolution, as BatchNorm leaves them."""

from __future__ import annotations

from typing import Any

import numpy as np

from calumma.graph.nodes import CONSTANT, Graph, Node, constant
from calumma.lowering.rewrites.reading import binary_like


def fold_scales(graph: Graph) -> None:
    """conv(x, W) * s, and (conv(x, W) + b) * s, with constant per-channel s and b, become conv(x, W s) (+ b s)."""
    users = graph.users()
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        node.replace_inputs(mapping)
        if node.op != "multiply" or not _per_channel(node.args[1], node.shape):
            continue
        source, scale = node.args
        scale_value = scale.value.reshape(-1)
        bias: Node | None = None
        if source.op == "add" and len(users.get(source, ())) == 1 and _per_channel(source.args[1], source.shape):
            source, bias = source.args
        if source.op != "nn.conv2d" or len(users.get(source, ())) != 1 or source.args[1].op != CONSTANT:
            continue
        weight = source.args[1]
        scaled = weight.value * np.broadcast_to(scale_value, (weight.shape[0],))[:, None, None, None]
        conv = Node(
            source.op,
            args=(source.args[0], constant(scaled.astype(weight.dtype), weight.name)),
            attrs=source.attrs,
            shape=source.shape,
            dtype=source.dtype,
            name=source.name,
        )
        users[conv] = [node]
        if bias is None:
            mapping[node] = conv
        else:
            shifted = constant((bias.value * scale.value).astype(bias.dtype), bias.name)
            mapping[node] = binary_like("add", conv, shifted, node)
            users[conv] = [mapping[node]]
        users[mapping[node]] = users.get(node, [])
    graph.replace(mapping)


def join_shifts(graph: Graph) -> None:
    """(x + a) + b with constants a and b becomes x + (a + b): a bias and the shift of a folded BatchNorm."""
    users = graph.users()
    for node in graph.nodes():
        if node.op != "add" or node.args[1].op != CONSTANT:
            continue
        inner, outer_shift = node.args
        if inner.op != "add" or inner.args[1].op != CONSTANT or inner.shape != node.shape or len(users[inner]) != 1:
            continue
        shift = inner.args[1].value + outer_shift.value
        node.args = (inner.args[0], constant(shift, outer_shift.name))


def _per_channel(node: Any, shape: tuple[int, ...]) -> bool:
    """Whether a constant varies along axis 1 of a 4-D tensor at most."""
    if not isinstance(node, Node) or node.op != CONSTANT or len(shape) != 4:
        return False
    padded = (1,) * (4 - node.value.ndim) + node.value.shape
    return len(padded) == 4 and padded[0] == padded[2] == padded[3] == 1 and padded[1] in (1, shape[1])
