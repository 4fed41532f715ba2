"""Attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.graph.build import cast, operator, transpose
from calumma.graph.nodes import Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics.attention import (
    attention,
    filled_window_bias,
    from_heads,
    hidden_unless,
    linear_attention,
    rotated,
    to_heads,
    widened,
    window_bias,
)
from calumma.semantics.indices import gathered
from calumma.semantics.movement import broadcast, concatenated


@onnx_rule("Attention", since=23)
def scaled_attention(node: OnnxNode) -> Sequence[Node | None]:
    q, k, v = (node.input(index) for index in range(3))
    is_packed = len(q.shape) == 3
    heads = [node.attribute(name, None) for name in ("q_num_heads", "kv_num_heads")]
    if is_packed:
        if not all(heads):
            raise node.refused("q_num_heads or kv_num_heads is missing", "export the model again")
        q, k, v = (to_heads(x, int(n)) for x, n in zip((q, k, v), (heads[0], heads[1], heads[1]), strict=True))
    past = node.optional(4), node.optional(5)
    k, v = (x if old is None else concatenated([old, x], 2) for x, old in zip((k, v), past, strict=True))
    if q.shape[1] % k.shape[1] or k.shape[:3] != v.shape[:3]:
        raise node.refused(f"{q.shape[1]} heads of queries do not fit {k.shape[1]} of keys and {v.shape[1]} of values")
    node.ignore("softmax_precision")  # of 16 bits and of 32: both are computed in float32
    offset = 0 if past[0] is None else past[0].shape[2]
    bias = _bias(node, (q.shape[2], k.shape[2]), offset, q.dtype)
    scale = node.attribute("scale", None)
    result, steps = attention(
        q,
        k,
        v,
        bias,
        scale=1 / math.sqrt(q.shape[3]) if scale is None else float(scale),
        softcap=float(node.attribute("softcap")),
    )
    shown = (steps.product, steps.capped, steps.biased, steps.shares)
    mode = int(node.attribute("qk_matmul_output_mode"))
    if mode not in range(len(shown)):
        raise node.refused(f"qk_matmul_output_mode {mode} is not supported, known are 0 to 3")
    return [from_heads(result) if is_packed else result, k, v, shown[mode]]


def _bias(node: OnnxNode, sizes: tuple[int, int], offset: int, dtype: str) -> Node | None:
    """The sum of what masks, causality and windows hide."""
    length, total = sizes
    parts = []
    mask = node.optional(3)
    if mask is not None:
        parts.append(widened(hidden_unless(mask, dtype) if mask.dtype == "bool" else cast(mask, dtype), total))
    filled = node.optional(6)
    sides = [int(node.attribute(name, -1)) for name in ("left_window_size", "right_window_size")]
    before, after = (None if side < 0 else side for side in sides)
    if node.attribute("is_causal"):
        after = 0
    if filled is not None:
        parts.append(filled_window_bias(filled, length, total, before, after, dtype))
    elif before is not None or after is not None:
        parts.append(window_bias(length, total, offset, before, after, dtype))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else operator(relax.op.add, *parts)


@onnx_rule("RotaryEmbedding", since=23)
def rotary_embedding(node: OnnxNode) -> Node:
    """The caches hold a row per position where position_ids are given, else a row per token."""
    x, cos, sin, positions = node.input(0), node.input(1), node.input(2), node.optional(3)
    heads, width = int(node.attribute("num_heads", 0)), int(node.attribute("rotary_embedding_dim"))
    is_packed = len(x.shape) == 3
    if is_packed and (heads < 1 or x.shape[2] % heads):
        raise node.refused(f"{x.shape[2]} elements do not divide into {heads} heads", "export the model again")
    x = to_heads(x, heads) if is_packed else x
    if positions is not None:
        cos, sin = (gathered(cache, positions, 0) for cache in (cos, sin))
    if cos.shape != sin.shape or len(cos.shape) != 3 or 2 * cos.shape[2] != (width or x.shape[3]):
        raise node.refused(f"caches {list(cos.shape)} and {list(sin.shape)} do not fit {list(x.shape)}")
    result = rotated(x, cos, sin, interleaved=node.flag("interleaved"))
    return from_heads(result) if is_packed else result


@onnx_rule("LinearAttention", since=27)
def recurrent_attention(node: OnnxNode) -> Sequence[Node]:
    heads, kept = int(node.attribute("q_num_heads")), int(node.attribute("kv_num_heads"))
    rule = node.choice("update_rule", ("linear", "gated", "delta", "gated_delta"))
    node.ignore("chunk_size")
    q, k, v = (node.input(index) for index in range(3))
    if heads < 1 or kept < 1 or heads % kept or q.dtype != "float32":
        raise node.refused(f"{heads} heads of {q.dtype} queries do not fit {kept} of keys")
    q, k, v = to_heads(q, heads), to_heads(k, kept), to_heads(v, kept)
    batch, _, tokens, size = q.shape
    given, decay, beta = (node.optional(index) for index in (3, 4, 5))
    if (decay is not None) != ("gated" in rule) or (beta is not None) != ("delta" in rule):
        raise node.refused(f"decay and beta do not fit {rule}", "export the model again")
    state = constant(np.zeros((batch, kept, size, v.shape[3]), "float32")) if given is None else given
    if decay is not None:
        decay = to_heads(decay, kept)
        decay = decay if decay.shape[3] == size else broadcast(decay, (batch, kept, tokens, size))
    if beta is not None:
        beta = broadcast(transpose(beta, (0, 2, 1)), (batch, kept, tokens))
    scale = float(node.attribute("scale")) or 1 / math.sqrt(size)
    outputs, last = linear_attention(q, k, v, state, decay, beta, scale)
    return [from_heads(outputs), last]
