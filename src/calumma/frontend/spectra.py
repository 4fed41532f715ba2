"""Discrete Fourier transforms as matrix products; a complex tensor is two real ones.

Functions of graph nodes, for every importer. Axes count from 0. A transform of n elements costs n * n products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from calumma.graph.build import operator, scalar, transpose
from calumma.graph.nodes import Node, constant


@dataclass(frozen=True)
class Pair:
    """Real and imaginary parts, of one shape and type."""

    real: Node
    imaginary: Node


def of_real(x: Node) -> Pair:
    """A real tensor as a complex one."""
    return Pair(x, constant(np.zeros(x.shape, x.dtype)))


def scaled(pair: Pair, factor: float) -> Pair:
    """A pair times a real number."""
    return Pair(*(operator(relax.op.multiply, x, scalar(factor, x.dtype)) for x in (pair.real, pair.imaginary)))


def normalisation(kind: int, count: int) -> float:
    """The factor of a transform of `count` elements, by torch's number: none, 1 / root of it, 1 / it."""
    return (1.0, 1 / math.sqrt(count), 1 / count)[kind]


def transform(pair: Pair, axes: Sequence[int], *, forward: bool) -> Pair:
    """The sum of x[j] * e ** (-+ 2 pi i j k / n) along axes, without a factor; the sign is + of a backward one."""
    for axis in axes:
        n = pair.real.shape[axis]
        cos, sin = _waves(n, n)
        sin = sin if forward else -sin
        real = operator(relax.op.add, _along(pair.real, axis, cos), _along(pair.imaginary, axis, sin))
        imaginary = operator(relax.op.subtract, _along(pair.imaginary, axis, cos), _along(pair.real, axis, sin))
        pair = Pair(real, imaginary)
    return pair


def transform_of_real(x: Node, axis: int, outputs: int) -> Pair:
    """The first `outputs` elements of the forward transform of a real tensor along an axis."""
    cos, sin = _waves(x.shape[axis], outputs)
    return Pair(_along(x, axis, cos), _along(x, axis, 0.0 - sin))  # not -0.0: the first angle is 0


def transform_to_real(pair: Pair, axis: int, outputs: int) -> Node:
    """The backward transform, without a factor, of the half of a spectrum whose result is real, of `outputs` elements.

    What has to be real in such a spectrum is taken as real.
    """
    held = outputs // 2 + 1
    cos, sin = _waves(held, outputs, outputs)
    doubled = np.full((held, 1), 2.0)
    doubled[0] = 1
    if outputs % 2 == 0:
        doubled[-1] = 1
    real, imaginary = _along(pair.real, axis, cos * doubled), _along(pair.imaginary, axis, sin * doubled)
    return operator(relax.op.subtract, real, imaginary)


def _waves(inputs: int, outputs: int, period: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2 pi j k / period, (inputs, outputs)."""
    period = period or inputs
    turns = np.outer(np.arange(inputs), np.arange(outputs)) % period * (2 * math.pi / period)
    return np.cos(turns), np.sin(turns)


def _along(x: Node, axis: int, matrix: np.ndarray) -> Node:
    """The product of an axis with a matrix."""
    rank = len(x.shape)
    order = [*(other for other in range(rank) if other != axis), axis]
    product = operator(relax.op.matmul, transpose(x, order), constant(matrix.astype(x.dtype)))
    return transpose(product, [order.index(other) for other in range(rank)])
