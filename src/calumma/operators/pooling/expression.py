"""Two-dimensional pooling over NCHW and over blocked NCHWc tensors (n, c / lanes, h, w, lanes).

Elements are float32, or of a narrow type of which float32 is computed.

Nothing is padded in memory. Where a window may leave the image its coordinates are clamped to it: a maximum then sees
an element of the window twice, which changes nothing; a sum masks it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from tvm import te, tirx

from calumma.expressions import casts, math
from calumma.space.blocks import OPERATOR


@dataclass(frozen=True)
class AxisWindow:
    """The sliding window along one axis."""

    kernel: int
    stride: int = 1
    before: int = 0
    """Padding in front of the first element."""
    after: int = 0
    dilation: int = 1

    def outputs(self, size: int, ceil_mode: bool = False) -> int:
        """Number of windows over `size` elements; with `ceil_mode` a last window may hang over the padding's end."""
        span = size + self.before + self.after - (self.kernel - 1) * self.dilation - 1
        count = span // self.stride + 1
        if ceil_mode and span % self.stride and count * self.stride < size + self.before:
            count += 1
        return count

    def leaves(self, size: int, outputs: int) -> tuple[bool, bool]:
        """Whether some window starts before the first element, or ends after the last."""
        last = (outputs - 1) * self.stride + (self.kernel - 1) * self.dilation - self.before
        return self.before > 0, last > size - 1

    def position(self, output: tirx.Expr, tap: tirx.Expr) -> tirx.Expr:
        """Coordinate of a window's tap; outside [0, size) in the padding."""
        return output * self.stride + tap * self.dilation - self.before


def max_pool2d(x: te.Tensor, height: AxisWindow, width: AxisWindow, ceil_mode: bool = False) -> te.Tensor:
    """Maximum of each window over axes 2 and 3 of a 4-D (NCHW) or 5-D (NCHWc) tensor; padding never wins."""
    # With dilation, or padding as wide as the kernel, the clamped coordinate need not belong to the window.
    exact = all(w.dilation == 1 and max(w.before, w.after) < w.kernel for w in (height, width)) and not ceil_mode

    def padding(value: tirx.Expr, inside: tirx.Expr) -> tirx.Expr:
        return value if exact else math.masked(value, inside, -inf)

    return _pool(x, height, width, ceil_mode, te.max, padding, "max_pool2d", {OPERATOR: "max_pool2d"})


def avg_pool2d(
    x: te.Tensor, height: AxisWindow, width: AxisWindow, ceil_mode: bool = False, count_include_pad: bool = False
) -> te.Tensor:
    """Mean of each window over axes 2 and 3 of a 4-D (NCHW) or 5-D (NCHWc) tensor.

    Padding counts as zeros if `count_include_pad`, and not at all otherwise; what `ceil_mode` adds behind it never
    counts.
    """
    total = _pool(x, height, width, ceil_mode, te.sum, math.masked, "avg_pool2d_sum", {OPERATOR: "avg_pool2d"})
    sizes = int(x.shape[2]), int(x.shape[3])
    outputs = int(total.shape[2]), int(total.shape[3])

    def mean(*i: tirx.Expr) -> tirx.Expr:
        rows = _window_count(height, i[2], sizes[0], outputs[0], count_include_pad)
        columns = _window_count(width, i[3], sizes[1], outputs[1], count_include_pad)
        if isinstance(rows, int) and isinstance(columns, int):
            return total(*i) * tirx.const(1.0 / (rows * columns), total.dtype)
        return total(*i) / tirx.convert(rows * columns).astype(total.dtype)

    return te.compute(total.shape, mean, name="avg_pool2d")


def global_avg_pool2d(x: te.Tensor) -> te.Tensor:
    """Mean over axes 2 and 3, which stay with extent 1."""
    return adaptive_avg_pool2d(x, 1, 1)


def adaptive_avg_pool2d(x: te.Tensor, out_height: int, out_width: int) -> te.Tensor:
    """Mean over out_height x out_width windows that share the image out evenly; raises ValueError if they cannot."""
    height, width = int(x.shape[2]), int(x.shape[3])
    if height % out_height or width % out_width:
        raise ValueError(f"adaptive_avg_pool2d: {height} x {width} is not divisible by {out_height} x {out_width}")
    rows, columns = height // out_height, width // out_width
    return avg_pool2d(x, AxisWindow(rows, rows), AxisWindow(columns, columns))


def _pool(
    x: te.Tensor,
    height: AxisWindow,
    width: AxisWindow,
    ceil_mode: bool,
    combine: Callable,
    padding: Callable[[tirx.Expr, tirx.Expr], tirx.Expr],
    name: str,
    attrs: dict[str, str],
) -> te.Tensor:
    """Combine (te.max or te.sum) the taps of each window; `padding` maps a clamped element and its margin inside.

    Over NCHW, windows are combined in columns first, which are contiguous, and these in rows: fewer strided loads.
    """
    if x.ndim == 4 and width.kernel > 1 and width.outputs(int(x.shape[3]), ceil_mode) > 1:
        columns = _combine(x, {2: height}, ceil_mode, combine, padding, f"{name}_columns", {})
        return _combine(columns, {3: width}, ceil_mode, combine, padding, name, attrs)
    return _combine(x, {2: height, 3: width}, ceil_mode, combine, padding, name, attrs)


def _combine(
    x: te.Tensor,
    windows: dict[int, AxisWindow],
    ceil_mode: bool,
    combine: Callable,
    padding: Callable[[tirx.Expr, tirx.Expr], tirx.Expr],
    name: str,
    attrs: dict[str, str],
) -> te.Tensor:
    """Slide windows along some axes (axis -> window)."""
    shape = list(x.shape)
    for axis, window in windows.items():
        shape[axis] = window.outputs(int(x.shape[axis]), ceil_mode)
    taps = {axis: te.reduce_axis((0, w.kernel), name="kh" if axis == 2 else "kw") for axis, w in windows.items()}

    def body(*i: tirx.Expr) -> tirx.Expr:
        index, margins = list(i), []
        for axis, window in windows.items():
            size = int(x.shape[axis])
            position = clamped = window.position(i[axis], taps[axis])
            starts_before, ends_after = window.leaves(size, shape[axis])
            if starts_before or ends_after:
                margins.append(math.margin(position, size))
            if starts_before:
                clamped = tirx.max(clamped, 0)
            if ends_after:
                clamped = tirx.min(clamped, size - 1)
            index[axis] = clamped
        value = casts.widened(x(*index))
        value = padding(value, functools.reduce(tirx.min, margins)) if margins else value
        return combine(value, axis=list(taps.values()))

    return te.compute(shape, body, name=name, attrs=attrs)


def _window_count(window: AxisWindow, output: tirx.Expr, size: int, outputs: int, include_pad: bool) -> int | tirx.Expr:
    """Number of taps of a window that count: inside the image, or inside the padded image."""
    starts_before, ends_after = window.leaves(size, outputs)
    low, high = (-window.before, size + window.after) if include_pad else (0, size)
    last = (outputs - 1) * window.stride + (window.kernel - 1) * window.dilation - window.before
    if (include_pad or not starts_before) and (not ends_after or last < high):
        return window.kernel
    d = window.dilation
    start = output * window.stride - window.before
    # Taps t with low <= start + t * d < high.
    first = tirx.max((low - start + d - 1) // d, 0)
    end = tirx.min((high - start + d - 1) // d, window.kernel)
    return tirx.max(end - first, 1)
