"""Normalisations: by given statistics, or by those of rows, channels or neighbours.

x (N, C, *sizes)    scale, shift (C,)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from tvm import relax

from calumma.graph.build import operator, reshape, scalar
from calumma.graph.nodes import CONSTANT, LRN, Node, constant


def batch_norm(x: Node, scale: Node, shift: Node, mean: Node, variance: Node, epsilon: float) -> Node:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, of every channel: one scale and one shift."""
    parameters = (scale, shift, mean, variance)
    if all(p.op == CONSTANT for p in parameters):
        gamma, beta, center, spread = (p.value.astype(np.float64) for p in parameters)
        factor = gamma / np.sqrt(spread + epsilon)
        by, to = (constant(v.astype(x.dtype), x.name) for v in (factor, beta - center * factor))
    else:
        root = operator(relax.op.sqrt, operator(relax.op.add, variance, scalar(epsilon, variance.dtype)))
        by = operator(relax.op.divide, scale, root)
        to = operator(relax.op.subtract, shift, operator(relax.op.multiply, mean, by))
    return scaled(x, by, to)


def scaled(x: Node, scale: Node, shift: Node | None) -> Node:
    """x * scale + shift, of every channel."""
    result = operator(relax.op.multiply, x, per_channel(scale, x))
    return result if shift is None else operator(relax.op.add, result, per_channel(shift, x))


def per_channel(values: Node, x: Node) -> Node:
    """Values (C, ...) so that they broadcast against `x` from axis 1 on."""
    return reshape(values, (1, *values.shape, *([1] * (len(x.shape) - 1 - len(values.shape)))))


def moments(x: Node, axes: Sequence[int]) -> tuple[Node, Node]:
    """Mean and variance over some axes, which stay with extent 1."""
    mean = operator(relax.op.mean, x, axis=list(axes), keepdims=True)
    centred = operator(relax.op.subtract, x, mean)
    return mean, operator(relax.op.mean, operator(relax.op.multiply, centred, centred), axis=list(axes), keepdims=True)


def layer_norm(x: Node, scale: Node | None, shift: Node | None, axes: int, epsilon: float) -> Node:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift over the last `axes` axes.

    Args:
        scale: broadcasts to `x`; None for none.
        shift: likewise.
    """
    sizes = x.shape[len(x.shape) - axes :]
    inside = scale is not None and all(math.prod(v.shape[:-axes]) == 1 for v in (scale, shift) if v is not None)
    rows = reshape(x, (1, *x.shape)) if axes == len(x.shape) else x
    normalised = operator(
        relax.op.nn.layer_norm,
        rows,
        _spread(scale if inside else None, 1.0, sizes, x.dtype),
        _spread(shift if inside else None, 0.0, sizes, x.dtype),
        list(range(len(rows.shape) - axes, len(rows.shape))),
        epsilon,
        center=inside,
        scale=inside,
    )
    result = reshape(normalised, x.shape)
    if not inside:
        result = result if scale is None else operator(relax.op.multiply, result, scale)
        result = result if shift is None else operator(relax.op.add, result, shift)
    return result


def instance_norm(x: Node, scale: Node, shift: Node, epsilon: float) -> Node:
    """Every channel of every image by its own mean and variance; scale and shift (C,)."""
    return group_norm(x, scale, shift, x.shape[1], epsilon)


def group_norm(x: Node, scale: Node, shift: Node, groups: int, epsilon: float) -> Node:
    """Groups of channels of every image by their own mean and variance.

    Args:
        scale: of every channel, (C,).
        shift: likewise.
    """
    rows = reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    return scaled(reshape(layer_norm(rows, None, None, 1, epsilon), x.shape), scale, shift)


def rms_norm(x: Node, scale: Node | None, axes: int, epsilon: float) -> Node:
    """x / sqrt(mean of squares + epsilon) * scale over the last `axes` axes; `scale` broadcasts to `x`."""
    last = list(range(len(x.shape) - axes, len(x.shape)))
    square = operator(relax.op.mean, operator(relax.op.multiply, x, x), axis=last, keepdims=True)
    result = operator(relax.op.multiply, x, reciprocal_root(square, epsilon))
    return result if scale is None else operator(relax.op.multiply, result, scale)


def reciprocal_root(square: Node, epsilon: float) -> Node:
    """1 / sqrt(square + epsilon)."""
    root = operator(relax.op.sqrt, operator(relax.op.add, square, scalar(epsilon, square.dtype)))
    return operator(relax.op.divide, scalar(1.0, square.dtype), root)


def lp_norm(x: Node, axis: int, p: int) -> Node:
    """x divided by its p-norm (1 or 2) along an axis; zeros stay zeros."""
    magnitude = operator(relax.op.abs, x) if p == 1 else operator(relax.op.multiply, x, x)
    total = operator(relax.op.sum, magnitude, axis=[axis], keepdims=True)
    norm = total if p == 1 else operator(relax.op.sqrt, total)
    zero, one = scalar(0, x.dtype), scalar(1, x.dtype)
    return operator(relax.op.divide, x, operator(relax.op.where, operator(relax.op.equal, norm, zero), one, norm))


def local_response_norm(x: Node, size: int, alpha: float, beta: float, bias: float) -> Node:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels)^beta, in float32."""
    batch, channels, *sizes = x.shape
    plane = x if len(sizes) == 2 else reshape(x, (batch, channels, 1, math.prod(sizes)))
    attrs = SimpleNamespace(size=size, alpha=alpha, beta=beta, bias=bias)
    return reshape(Node(LRN, (plane,), attrs, plane.shape, plane.dtype, name=x.name), x.shape)


def _spread(values: Node | None, default: float, sizes: Sequence[int], dtype: str) -> Node:
    """Values broadcast to the sizes of rows; a default for none."""
    if values is None:
        return constant(np.broadcast_to(np.asarray(default, dtype), sizes))
    inner = reshape(values, values.shape[max(len(values.shape) - len(sizes), 0) :])
    if inner.shape == tuple(sizes):
        return inner
    if inner.op == CONSTANT:
        return constant(np.broadcast_to(inner.value, sizes).copy(), inner.name)
    return operator(relax.op.broadcast_to, inner, tuple(sizes))
