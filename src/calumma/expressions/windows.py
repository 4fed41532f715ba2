"""Sliding windows over images: what they see, and the padded copies and register tiles that follow."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx

from calumma.expressions import casts
from calumma.expressions.integers import ints

_GOOD_TILE = range(6, 15)
"""Columns of a register tile that keep a core's multiply-add units busy and fit into its registers.

Chosen for 32 registers, on the CPU of `target.costs`. They decide the width that is computed, and so what a
workload is (its hash): they are the same for every CPU.
"""


@dataclass(frozen=True)
class Window:
    """Strides, dilations and padding of a sliding window, height before width."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    """top, left, bottom, right"""

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width for an input of (height, width)."""
        top, left, bottom, right = self.padding
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        return (
            (height + top + bottom - spans[0]) // self.strides[0] + 1,
            (width + left + right - spans[1]) // self.strides[1] + 1,
        )


def tileable(extent: int) -> int:
    """The smallest extent >= `extent` that a register tile of 6 to 14 divides; small extents stay as they are."""
    if extent <= _GOOD_TILE[-1]:
        return extent
    while not any(extent % tile == 0 for tile in _GOOD_TILE):
        extent += 1
    return extent


def padded_to(data: te.Tensor, window: Window, out_h: int, out_w: int) -> te.Tensor:
    """Zero-pad to exactly what `out_h` x `out_w` outputs read; the tensor itself where nothing is outside it."""
    shape = ints(data.shape)
    height, width = shape[2:4]
    top, left, _, _ = window.padding
    need_h = (out_h - 1) * window.strides[0] + (window.kernel[0] - 1) * window.dilation[0] + 1
    need_w = (out_w - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
    if top == left == 0 and need_h <= height and need_w <= width:
        return data

    def body(n: tirx.Var, c: tirx.Var, y: tirx.Var, x: tirx.Var, *lane: tirx.Var) -> tirx.Expr:
        inside = []
        if top:
            inside.append(y >= top)
        if need_h > height + top:
            inside.append(y < height + top)
        if left:
            inside.append(x >= left)
        if need_w > width + left:
            inside.append(x < width + left)
        value = casts.as_stored(data(n, c, y - top, x - left, *lane))
        return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, str(value.ty))) if inside else value

    return te.compute((*shape[:2], need_h, need_w, *shape[4:]), body, name="data_pad")


def cropped(tensor: te.Tensor, width: int) -> te.Tensor:
    """The first `width` columns; the tensor itself where it has no more."""
    shape = ints(tensor.shape)
    if shape[3] == width:
        return tensor
    return te.compute((*shape[:3], width, *shape[4:]), lambda *i: tensor(*i), name="crop")
