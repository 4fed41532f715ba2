"""Fourier transforms as matrix products with the transform's matrix, whose elements are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import te

from calumma.core.errors import ModelError
from calumma.graph.build import combined, expression, reshape, transpose
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.semantics.movement import concatenated, sliced
from calumma.semantics.products import matmul

_LARGEST_MATRIX = 1 << 26
"""Elements of a transform's matrix."""


def fourier(x: Node, axis: int, length: int, inverse: bool = False, onesided: bool = False) -> Node:
    """The discrete Fourier transform along an axis.

    Args:
        x: (..., 1) real, or (..., 2) with real and imaginary parts.
        axis: not the last one.
        length: points of the transform; the axis is cut, or continued with zeros.
        inverse: whether it is the inverse, divided by `length`.
        onesided: whether only the first length // 2 + 1 points are computed.

    Returns:
        (..., 2): real and imaginary parts.

    Raises:
        ModelError: the transform is too long for a matrix.
    """
    rank, parts = len(x.shape), x.shape[-1]
    order = [*(a for a in range(rank - 1) if a != axis), axis, rank - 1]
    moved = transpose(x, order)
    matrix = _matrix(x.shape[axis], parts, length, inverse, onesided).astype(x.dtype)
    rows = moved.shape[:-2]
    product = matmul(reshape(moved, (*rows, x.shape[axis] * parts)), constant(matrix))
    result = reshape(product, (*rows, matrix.shape[1] // 2, 2))
    return transpose(result, [order.index(a) for a in range(rank)])


@dataclass(frozen=True)
class Complex:
    """A tensor of complex numbers."""

    parts: Node
    """(..., 2): real and imaginary parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.parts.shape[:-1]

    @property
    def dtype(self) -> str:
        """Of the parts."""
        return self.parts.dtype

    @property
    def real(self) -> Node:
        return self._part(0)

    @property
    def imaginary(self) -> Node:
        return self._part(1)

    def _part(self, index: int) -> Node:
        return reshape(sliced(self.parts, {len(self.shape): slice(index, index + 1)}), self.shape)

    @classmethod
    def of(cls, real: Node, imaginary: Node | None = None) -> Complex:
        """A complex tensor of its parts; real without the second one."""
        second = constant(np.zeros(real.shape, real.dtype)) if imaginary is None else imaginary
        return cls(concatenated([reshape(x, (*x.shape, 1)) for x in (real, second)], len(real.shape)))


def fourier_to_real(x: Complex, axis: int, length: int) -> Node:
    """The inverse transform of the first length // 2 + 1 points of a spectrum whose inverse is real.

    What has to be real in such a spectrum is taken as real.
    """
    held = length // 2 + 1
    shares = np.full(held, 2.0)
    shares[0] = 1
    if length % 2 == 0:
        shares[-1] = 1
    turns = np.outer(np.arange(held), np.arange(length)) % length
    factor = np.exp(2j * np.pi / length * turns) * shares[:, None] / length
    matrix = np.stack([factor.real, -factor.imag], axis=1).reshape(held * 2, length)
    rank = len(x.shape)
    order = [*(other for other in range(rank) if other != axis), axis]
    moved = transpose(sliced(x.parts, {axis: slice(0, held)}), [*order, rank])
    rows = moved.shape[:-2]
    result = matmul(reshape(moved, (*rows, held * 2)), constant(matrix.astype(x.dtype)))
    return transpose(result, [order.index(other) for other in range(rank)])


def short_time_fourier(signal: Node, step: int, window: Node | None, length: int, onesided: bool) -> Node:
    """Fourier transforms of overlapping frames.

    Args:
        signal: (batch, samples, 1 or 2).
        step: samples from the start of one frame to that of the next.
        window: (length,): factors of every frame's samples; None for 1.
        length: samples of a frame, at most those of the signal.

    Returns:
        (batch, frames, points, 2).
    """
    batch, samples, parts = signal.shape
    frames = (samples - length) // step + 1

    def framed(x: te.Tensor) -> te.Tensor:
        shape = (batch, frames, length, parts)
        return te.compute(shape, lambda b, f, i, part: x(b, f * step + i, part), name="frames")

    pieces = expression(framed, signal, name="frames")
    matrix = _matrix(length, parts, length, False, onesided)
    if window is not None and window.op == CONSTANT:
        matrix = matrix * np.repeat(window.value.astype(np.float64), parts)[:, None]
    elif window is not None:
        pieces = combined(lambda x, w: x * w, pieces, reshape(window, (length, 1)), name="windowed")
    product = matmul(reshape(pieces, (batch, frames, length * parts)), constant(matrix.astype(signal.dtype)))
    return reshape(product, (batch, frames, matrix.shape[1] // 2, 2))


def _matrix(samples: int, parts: int, length: int, inverse: bool, onesided: bool) -> NDArray[np.float64]:
    """(samples * parts, points * 2): what every sample's parts give to every point's real and imaginary part."""
    points = length // 2 + 1 if onesided else length
    if samples * parts * points * 2 > _LARGEST_MATRIX:
        raise ModelError(f"a Fourier transform of {length} points is too long; cut the model off before this node")
    turns = np.outer(np.arange(samples), np.arange(points)) % max(length, 1)
    angles = 2 * np.pi / length * turns * (1 if inverse else -1)
    factor = np.exp(1j * angles) * (np.arange(samples) < length)[:, None] / (length if inverse else 1)
    both = np.array([factor, 1j * factor][:parts])  # (parts, samples, points)
    return np.stack([both.real, both.imag], axis=-1).transpose(1, 0, 2, 3).reshape(samples * parts, points * 2)


WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}
"""Name -> the coefficients of a constant, of minus one turn and of two turns."""


def window(name: str, size: int, periodic: bool) -> NDArray[np.float64]:
    """A window of cosines: periodic ones end one step before they would begin again."""
    turn = 2 * np.pi * np.arange(size) / max(size if periodic else size - 1, 1)
    first, second, third = WINDOWS[name]
    return np.asarray(first - second * np.cos(turn) + third * np.cos(2 * turn))
