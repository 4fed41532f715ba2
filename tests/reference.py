"""Convolutions and matrix products in plain NumPy, for tests: written from the definition, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.expressions.windows import Window


def conv2d(data: NDArray, weight: NDArray, window: Window, groups: int = 1) -> NDArray[np.float32]:
    """data [N, C, H, W], weight [OC, C / groups, KH, KW] -> [N, OC, OH, OW]."""
    top, left, bottom, right = window.padding
    padded = np.pad(data.astype("float64"), [(0, 0), (0, 0), (top, bottom), (left, right)])
    batch, channels = data.shape[:2]
    out_channels, per_in, kh, kw = weight.shape
    out_h, out_w = window.output(*data.shape[2:])
    result = np.zeros((batch, out_channels, out_h, out_w))
    per_out = out_channels // groups
    for y in range(kh):
        for x in range(kw):
            top_y, left_x = y * window.dilation[0], x * window.dilation[1]
            part = padded[:, :, top_y:, left_x:][:, :, :: window.strides[0], :: window.strides[1]][..., :out_h, :out_w]
            for group in range(groups):
                source = part[:, group * per_in : (group + 1) * per_in]
                kernel = weight[group * per_out : (group + 1) * per_out, :, y, x]
                result[:, group * per_out : (group + 1) * per_out] += np.einsum("nchw,oc->nohw", source, kernel)
    assert channels == per_in * groups
    return result.astype("float32")


def identity_slots(channels: int, lanes: int) -> NDArray[np.int64]:
    """The slot map of `channels` in order, holes at the end."""
    slots = np.full(-(-channels // lanes) * lanes, -1, np.int64)
    slots[:channels] = np.arange(channels)
    return slots


def block(data: NDArray, slots: NDArray[np.int64], lanes: int, hole: float = 0.0) -> NDArray:
    """[N, C, H, W] -> [N, C/L, H, W, L] in the order of `slots`; holes hold `hole`."""
    batch, _, height, width = data.shape
    full = np.full((batch, len(slots), height, width), hole, data.dtype)
    full[:, slots >= 0] = data[:, slots[slots >= 0]]
    return np.ascontiguousarray(full.reshape(batch, -1, lanes, height, width).transpose(0, 1, 3, 4, 2))


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Standard normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")
