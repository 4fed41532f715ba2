"""Local response normalisation across channels, on NCHW and on blocked NCHWc tensors."""

from __future__ import annotations

from tvm import te, tirx

from calumma.expressions import math
from calumma.space.blocks import OPERATOR


def local_response_norm(x: te.Tensor, size: int, alpha: float, beta: float, bias: float) -> te.Tensor:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels)^beta, channels being axis 1.

    Axis 4 of a 5-D tensor holds the channels inside a block; the window crosses blocks. As in ONNX, the window has
    (size - 1) // 2 channels before the centre and the rest after it.

    Raises:
        ValueError: the window reaches beyond the neighbouring block of a blocked tensor.
    """
    before = (size - 1) // 2
    blocks = int(x.shape[1])
    if x.ndim == 5:
        lanes = int(x.shape[4])
        if size - before > lanes:
            raise ValueError(f"local_response_norm: a window of {size} is too wide for blocks of {lanes} channels")

        # Each block's squares between its neighbours', contiguous: shifted windows are then plain vector loads.
        def square(n, c, h, w, p):
            block = c + p // lanes - 1
            value = x(n, tirx.min(tirx.max(block, 0), blocks - 1), h, w, p % lanes)
            return math.masked(value * value, math.margin(block, blocks))

        squares = te.compute(
            (*x.shape[:4], 3 * lanes), square, name="local_response_norm_squares", attrs={"calumma.keep": 1}
        )

        def neighbour(i: tuple[tirx.Expr, ...], offset: int) -> tirx.Expr:
            return squares(*i[:4], i[4] + (lanes + offset))
    else:

        def neighbour(i: tuple[tirx.Expr, ...], offset: int) -> tirx.Expr:
            channel = i[1] + offset
            value = x(i[0], tirx.min(tirx.max(channel, 0), blocks - 1), *i[2:])
            return math.masked(value * value, math.margin(channel, blocks))

    def normalised(*i: tirx.Expr) -> tirx.Expr:
        total = neighbour(i, -before)
        for offset in range(1 - before, size - before):
            total = total + neighbour(i, offset)
        base = tirx.const(bias, x.dtype) + tirx.const(alpha / size, x.dtype) * total
        return x(*i) * _negative_power(base, beta, x.dtype)

    return te.compute(x.shape, normalised, name="local_response_norm", attrs={OPERATOR: "local_response_norm"})


def _negative_power(base: tirx.Expr, exponent: float, dtype: str) -> tirx.Expr:
    """base^-exponent for base > 0."""
    one = tirx.const(1.0, dtype)
    if exponent == 0.75:
        root = tirx.sqrt(base)
        return one / (root * tirx.sqrt(root))
    if exponent == 0.5:
        return one / tirx.sqrt(base)
    if exponent == 1.0:
        return one / base
    return math.exp(tirx.const(-exponent, dtype) * math.log(base))
