"""Depthwise convolution of blocked tensors, as a tensor expression, and the packing of its weights.

Notation: as in `convolution.expression`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import te

from calumma.expressions.integers import ints
from calumma.expressions.windows import Window, padded_to
from calumma.graph.layouts import Slots
from calumma.space.blocks import OPERATOR


def pack_depthwise_weight(weight: NDArray[np.float32], slots: Slots, lanes: int) -> NDArray[np.float32]:
    """(C, 1, KH, KW) -> (CB, KH, KW, L) in the order of `slots`."""
    full = np.zeros((len(slots), *weight.shape[2:]), np.float32)
    full[slots >= 0] = weight[slots[slots >= 0], 0]
    return np.ascontiguousarray(full.reshape(-1, lanes, *weight.shape[2:]).transpose(0, 2, 3, 1))


def depthwise_conv2d(data: te.Tensor, weight: te.Tensor, window: Window) -> te.Tensor:
    """Depthwise: [N, CB, H, W, L] x [CB, KH, KW, L] -> [N, CB, OH, OW, L]."""
    batch, blocks, height, width, lanes = ints(data.shape)
    _, kh, kw, _ = ints(weight.shape)
    out_h, out_w = window.output(height, width)
    padded = padded_to(data, window, out_h, out_w)
    ky = te.reduce_axis((0, kh), "kh")
    kx = te.reduce_axis((0, kw), "kw")
    (sy, sx), (dy, dx) = window.strides, window.dilation
    return te.compute(
        (batch, blocks, out_h, out_w, lanes),
        lambda n, c, y, x, l: te.sum(
            padded[n, c, y * sy + ky * dy, x * sx + kx * dx, l] * weight[c, ky, kx, l], axis=[ky, kx]
        ),
        name="depthwise_conv2d",
        attrs={OPERATOR: "depthwise_conv2d"},
    )
