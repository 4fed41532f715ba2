"""Attention of queries to keys and values, by heads.

    q (B, H, S, D)    k (B, K, T, D)    v (B, K, T, E)    bias broadcasts to (B, H, S, T)    result (B, H, S, E)

With fewer heads of keys than of queries, each serves H / K of these in turn: their queries lie side by side, so that
no key is copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions import math as functions
from calumma.expressions import statements
from calumma.graph.build import expression, operator, reshape, scalar, transpose
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.semantics.movement import concatenated


@dataclass(frozen=True)
class Steps:
    """What an attention computes on its way, each (B, H, S, T)."""

    product: Node
    capped: Node
    biased: Node
    shares: Node


def attention(
    q: Node, k: Node, v: Node, bias: Node | None, *, scale: float, softcap: float = 0.0
) -> tuple[Node, Steps]:
    """softmax(q k^T * scale + bias) v.

    Args:
        bias: what is added before the softmax; a row of -inf alone gives a result of zeros. None for none.
        softcap: the largest magnitude of a product, reached by tanh; 0 for no limit.
    """
    batch, heads, length, size = q.shape
    kept, total = k.shape[1:3]
    rows = (batch, kept, heads // kept * length, size)
    scaled = operator(relax.op.multiply, q, scalar(scale, q.dtype))
    product = operator(relax.op.matmul, reshape(scaled, rows), transpose(k, (0, 1, 3, 2)))
    product = capped = reshape(product, (batch, heads, length, total))
    if softcap > 0:
        ratio = operator(relax.op.multiply, product, scalar(1 / softcap, q.dtype))
        capped = operator(relax.op.multiply, operator(relax.op.tanh, ratio), scalar(softcap, q.dtype))
    biased = capped if bias is None else operator(relax.op.add, capped, bias)
    shares = operator(relax.op.nn.softmax, biased, axis=-1)
    if bias is not None:
        shares = _without_hidden_rows(shares, bias)
    result = operator(relax.op.matmul, reshape(shares, (*rows[:3], total)), v)
    result = reshape(result, (batch, heads, length, v.shape[3]))
    return result, Steps(product, capped, biased, shares)


def _without_hidden_rows(shares: Node, bias: Node) -> Node:
    """Zeros where a row of the bias hides everything."""
    if bias.op == CONSTANT and not np.isneginf(bias.value).all(axis=-1).any():
        return shares
    total = bias.shape[-1]

    def visible(bias: te.Tensor) -> te.Tensor:
        t = te.reduce_axis((0, total), "t")

        def seen(*i: tirx.Var) -> tirx.Expr:
            is_hidden = bias(*i[:-1], t) == tirx.const(-math.inf, bias.dtype)
            return te.max(tirx.Select(is_hidden, tirx.const(0, "int32"), tirx.const(1, "int32")), axis=t)

        return te.compute((*bias.shape[:-1], 1), seen, name="visible_rows")

    seen = operator(relax.op.not_equal, expression(visible, bias, name="visible_rows"), scalar(0, "int32"))
    return operator(relax.op.where, seen, shares, scalar(0, shares.dtype))


def hidden_unless(mask: Node, dtype: str) -> Node:
    """The bias of a mask: 0 where it holds, -inf elsewhere."""
    if mask.op == CONSTANT:
        return constant(np.where(mask.value, 0, -np.inf).astype(dtype), mask.name)
    return operator(relax.op.where, mask, scalar(0, dtype), scalar(-math.inf, dtype))


def widened(bias: Node, total: int) -> Node:
    """A bias whose last axis is as long as the keys: what it does not reach is hidden."""
    missing = total - bias.shape[-1]
    if missing <= 0:
        return bias
    return concatenated(
        [bias, constant(np.full((*bias.shape[:-1], missing), -np.inf, bias.dtype))], len(bias.shape) - 1
    )


def window_bias(length: int, total: int, offset: int, before: int | None, after: int | None, dtype: str) -> Node:
    """The bias (S, T) that lets a query at `offset` + i see `before` keys before its own place and `after` behind it.

    None is for all.
    """
    ahead = np.arange(total) - (np.arange(length)[:, None] + offset)
    allowed = np.ones(ahead.shape, bool)
    if before is not None:
        allowed &= ahead >= -before
    if after is not None:
        allowed &= ahead <= after
    return constant(np.where(allowed, 0, -np.inf).astype(dtype))


def filled_window_bias(
    filled: Node, length: int, total: int, before: int | None, after: int | None, dtype: str
) -> Node:
    """Likewise (B, 1, S, T), where the queries are the last of the keys that each batch has: `filled` (B,)."""

    def bias(filled: te.Tensor) -> te.Tensor:
        def body(b: tirx.Var, _: tirx.Var, i: tirx.Var, j: tirx.Var) -> tirx.Expr:
            count = filled(b).astype("int64")
            ahead = j.astype("int64") - (i.astype("int64") + count - length)
            allowed = [j.astype("int64") < count]
            if before is not None:
                allowed.append(ahead >= -before)
            if after is not None:
                allowed.append(ahead <= after)
            zero, hidden = tirx.const(0, dtype), tirx.const(-math.inf, dtype)
            return tirx.Select(tirx.all(*allowed), zero, hidden)

        return te.compute((filled.shape[0], 1, length, total), body, name="window_bias")

    return expression(bias, filled, name="window_bias")


def to_heads(x: Node, heads: int) -> Node:
    """(B, S, heads * D) as (B, heads, S, D)."""
    batch, length, width = x.shape
    return transpose(reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def from_heads(x: Node) -> Node:
    """(B, H, S, D) as (B, S, H * D)."""
    batch, heads, length, size = x.shape
    return reshape(transpose(x, (0, 2, 1, 3)), (batch, length, heads * size))


def rotated(x: Node, cos: Node, sin: Node, *, interleaved: bool) -> Node:
    """Pairs of elements turned by an angle of each token (Su et al., 2021, arXiv 2104.09864).

    Args:
        x: (B, H, S, D).
        cos: of the angles, (B, S, R) for the first 2 R elements.
        sin: likewise.
        interleaved: whether pairs are neighbours; else one is R elements behind the other.
    """
    half = cos.shape[2]

    def turned(x: te.Tensor, cos: te.Tensor, sin: te.Tensor) -> te.Tensor:
        def body(b: tirx.Var, h: tirx.Var, s: tirx.Var, d: tirx.Var) -> tirx.Expr:
            if interleaved:
                pair, is_first, other = d // 2, d % 2 == 0, tirx.Select(d % 2 == 0, d + 1, d - 1)
            else:
                pair, is_first, other = d % half, d < half, tirx.Select(d < half, d + half, d - half)
            pair, other = tirx.min(pair, half - 1), tirx.max(tirx.min(other, x.shape[3] - 1), 0)
            part = x(b, h, s, other) * sin(b, s, pair)
            value = x(b, h, s, d) * cos(b, s, pair) + tirx.Select(is_first, -part, part)
            return tirx.Select(d < 2 * half, value, x(b, h, s, d))

        return te.compute(x.shape, body, name="rotary")

    return expression(turned, x, cos, sin, name="rotary")


def linear_attention(
    q: Node, k: Node, v: Node, state: Node, decay: Node | None, beta: Node | None, scale: float
) -> tuple[Node, Node]:
    """The recurrence S = exp(decay) S + k (beta (v - S^T k) or v)^T, o = scale S^T q, from token to token.

    Args:
        q: (B, H, T, D). `k` and `v` have K heads.
        state: S before the first token, (B, K, D, E).
        decay: (B, K, T, D); None for 1 in place of its exponential.
        beta: (B, K, T); None for adding v as it is.

    Returns:
        The outputs (B, H, T, E), and S behind the last token.
    """
    batch, heads, tokens, size = q.shape
    kept, width = v.shape[1], v.shape[3]
    optional = [node for node in (decay, beta) if node is not None]

    def body(q: Any, k: Any, v: Any, first: Any, *rest: Any) -> None:
        *given, out, s = rest
        with T.parallel(0, batch * kept) as row:
            b, h = row // kept, row % kept
            with T.grid(size, width) as (d, e):
                s[b, h, d, e] = first[b, h, d, e]
            with T.serial(0, tokens) as t:
                if decay is not None:
                    with T.grid(size, width) as (d, e):
                        s[b, h, d, e] = s[b, h, d, e] * functions.exp(given[0][b, h, t, d])
                with T.serial(0, width) as e:
                    added = statements.counter("float32")
                    added[0] = v[b, h, t, e]
                    if beta is not None:
                        with T.serial(0, size) as d:
                            added[0] = added[0] - s[b, h, d, e] * k[b, h, t, d]
                        added[0] = added[0] * given[-1][b, h, t]
                    with T.serial(0, size) as d:
                        s[b, h, d, e] = s[b, h, d, e] + k[b, h, t, d] * added[0]
                with T.grid(heads // kept, width) as (g, e):
                    total = statements.counter("float32")
                    total[0] = statements.constant(0, "float32")
                    with T.serial(0, size) as d:
                        total[0] = total[0] + s[b, h, d, e] * q[b, h * (heads // kept) + g, t, d]
                    out[b, h * (heads // kept) + g, t, e] = total[0] * statements.constant(scale, "float32")

    def function(*tensors: te.Tensor) -> list[te.Tensor]:
        shapes = (batch, heads, tokens, width), state.shape
        return statements.kernel("linear_attention", body, tensors, [(shape, "float32") for shape in shapes])

    outputs, last = expression(function, q, k, v, state, *optional, name="linear_attention")
    return outputs, last
