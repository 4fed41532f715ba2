"""ONNX Runtime's own operators of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.graph.build import cast, operator, reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import CONTRIB, onnx_rule
from calumma.semantics.indices import gathered
from calumma.semantics.normalisation import layer_norm, moments, reciprocal_root, rms_norm
from calumma.semantics.products import matmul, scaled
from calumma.semantics.reductions import reduced


def _sum(*nodes: Node | None) -> Node:
    first, *others = (node for node in nodes if node is not None)
    for other in others:
        first = operator(relax.op.add, first, other)
    return first


@onnx_rule("SkipLayerNormalization", domain=CONTRIB)
def skip_layer_norm(node: OnnxNode) -> Sequence[Node | None]:
    """Layer normalisation of a sum, with its mean, its inverse deviation and the sum itself."""
    x = _sum(node.input(0), node.input(1), node.optional(4))
    epsilon = float(node.attribute("epsilon", 1e-12))
    result = layer_norm(x, node.input(2), node.optional(3), 1, epsilon)
    mean = deviation = None
    if node.wants(1) or node.wants(2):
        mean, variance = moments(x, [len(x.shape) - 1])
        deviation = reciprocal_root(variance, epsilon)
    return result, mean, deviation, x


@onnx_rule("SkipSimplifiedLayerNormalization", domain=CONTRIB)
def skip_rms_norm(node: OnnxNode) -> Sequence[Node | None]:
    """The same without a mean."""
    x = _sum(node.input(0), node.input(1), node.optional(3))
    return rms_norm(x, node.input(2), 1, float(node.attribute("epsilon", 1e-12))), None, None, x


@onnx_rule("EmbedLayerNormalization", domain=CONTRIB)
def embed_layer_norm(node: OnnxNode) -> Sequence[Node | None]:
    """The normalised sum of embeddings of words, positions and segments; and how many words every mask lets through."""
    ids, segments = node.input(0), node.optional(1)
    words, places, segment_words = node.input(2), node.input(3), node.optional(4)
    scale, shift, mask, positions = node.input(5), node.input(6), node.optional(7), node.optional(8)
    batch, length = ids.shape
    if positions is None:
        positions = constant(np.arange(length, dtype=np.int64)[None])
    parts = [gathered(words, ids, 0), gathered(places, positions, 0)]
    if segments is not None and segment_words is not None:
        parts.append(gathered(segment_words, segments, 0))
    total = _sum(*parts)
    if int(node.attribute("mask_index_type", 1 if mask is not None else 0)) > 1:
        raise node.refused("mask_index_type is not supported", "export it with mask_index_type 0 or 1")
    lengths = constant(np.zeros(batch, np.int32))
    if mask is not None:
        lengths = cast(reduced("sum", mask, (1,), keepdims=False), "int32")
    return layer_norm(total, scale, shift, 1, float(node.attribute("epsilon", 1e-12))), lengths, total


@onnx_rule("Attention", domain=CONTRIB)
def attention(node: OnnxNode) -> Node:
    """Self-attention of (batch, length, size), with the projection of queries, keys and values."""
    x, weight, bias = node.input(0), node.input(1), node.optional(2)
    batch, length, _ = x.shape
    heads = int(node.attribute("num_heads"))
    sizes = tuple(node.attribute("qkv_hidden_sizes", ())) or (weight.shape[1] // 3,) * 3
    if sum(sizes) != weight.shape[1] or sizes[0] != sizes[1] or any(size % heads for size in sizes):
        raise node.refused(f"hidden sizes {sizes} of weights {weight.shape} in {heads} heads", "export it again")
    projected = _sum(matmul(x, weight), bias)
    parts = operator(relax.op.split, projected, [sizes[0], sizes[0] + sizes[1]], axis=2)
    query, key, value = (
        transpose(reshape(part, (batch, length, heads, size // heads)), [0, 2, 1, 3])
        for part, size in zip(parts, sizes, strict=True)
    )
    factor = float(node.attribute("scale", 0.0)) or 1 / math.sqrt(sizes[0] // heads)
    scores = scaled(matmul(query, transpose(key, [0, 1, 3, 2])), factor)
    scores = _sum(scores, _mask_bias(node, batch, length), node.optional(5))
    if node.attribute("unidirectional", 0):
        later = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        scores = _sum(scores, constant(later))
    result = matmul(operator(relax.op.nn.softmax, scores, axis=3), value)
    return reshape(transpose(result, [0, 2, 1, 3]), (batch, length, sizes[2]))


def _mask_bias(node: OnnxNode, batch: int, length: int) -> Node | None:
    """What a mask of 0 and 1 adds to scores: nothing, or a large negative number where it is 0."""
    mask = node.optional(3)
    low = float(node.attribute("mask_filter_value", -10000.0))
    if mask is None:
        return None
    places = {(batch, length): (batch, 1, 1, length), (batch, length, length): (batch, 1, length, length)}
    if mask.shape not in places:
        raise node.refused(f"a mask of shape {mask.shape} is not supported", "give one of (batch, length)")
    hidden = operator(relax.op.subtract, scalar(1, "float32"), cast(mask, "float32"))
    return reshape(scaled(hidden, low), places[mask.shape])
