"""Pooling over one to three spatial axes, made of two-dimensional ones where there are kernels for those.

    x (N, C, *sizes)    result (N, C, *outputs)

A maximum or a mean over a window is one over the axes in turn: padding, dilation and the numbers of elements that count
belong to each axis alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions import statements
from calumma.graph.build import expression, operator, reshape, scalar
from calumma.graph.nodes import Node, constant
from calumma.operators.pooling.expression import AxisWindow
from calumma.semantics.convolution import padded, transposed_convolution

_NONE = AxisWindow(1)
_LARGEST_PRODUCT = 8
"""Whole exponents up to which a power is a product."""


def max_pool(x: Node, windows: Sequence[AxisWindow], ceil_mode: bool = False) -> Node:
    """The maximum of each window; padding never wins.

    With `ceil_mode` a last window may hang over the padding's end.
    """
    if x.dtype == "float32":
        return _by_planes(lambda x, *w: _pool2d(relax.op.nn.max_pool2d, x, w, ceil_mode), x, windows)
    outputs = _outputs(x, windows, ceil_mode)

    def pooled(x: te.Tensor) -> te.Tensor:
        source = padded(x, windows, outputs, te.min_value(x.dtype))
        taps = [te.reduce_axis((0, w.kernel), "k") for w in windows]
        return te.compute(
            (*x.shape[:2], *outputs),
            lambda n, c, *p: te.max(source(n, c, *_taps(p, taps, windows)), axis=taps),
            name="max_pool",
        )

    return expression(pooled, x, name="max_pool")


def max_pool_indices(x: Node, pooled: Node, windows: Sequence[AxisWindow], *, column_major: bool = False) -> Node:
    """Where in `x`, all its elements counted in order, the maximum of each window is first; int64.

    Args:
        pooled: the maxima.
        column_major: count the elements of an image with the first spatial axis running fastest.
    """
    sizes = x.shape[2:]
    strides = [math.prod(sizes[:i] if column_major else sizes[i + 1 :]) for i in range(len(sizes))]
    plane = math.prod(sizes)
    last = tirx.const(math.prod(x.shape) - 1, "int64")

    def indices(x: te.Tensor, pooled: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, w.kernel), "k") for w in windows]

        def body(n: tirx.Var, c: tirx.Var, *p: tirx.Var) -> tirx.Expr:
            where = [t - w.before for t, w in zip(_taps(p, taps, windows), windows, strict=True)]
            inside = [tirx.all(i >= 0, i < size) for i, size in zip(where, sizes, strict=True)]
            value = x(n, c, *(tirx.min(tirx.max(i, 0), size - 1) for i, size in zip(where, sizes, strict=True)))
            found = tirx.any(value == pooled(n, c, *p), value != value)
            index = (n * int(x.shape[1]) + c).astype("int64") * plane
            for i, stride in zip(where, strides, strict=True):
                index = index + i.astype("int64") * stride
            return te.min(tirx.Select(tirx.all(*inside, found), index, last), axis=taps)

        return te.compute(pooled.shape, body, name="max_pool_indices")

    return expression(indices, x, pooled, name="max_pool_indices")


def average_pool(
    x: Node, windows: Sequence[AxisWindow], ceil_mode: bool = False, count_include_pad: bool = False
) -> Node:
    """The mean of each window: padding counts as zeros or not at all, what `ceil_mode` adds behind it never counts."""
    if x.dtype == "float32":

        def pool(x: Node, *w: AxisWindow) -> Node:
            return _pool2d(relax.op.nn.avg_pool2d, x, w, ceil_mode, count_include_pad)

        return _by_planes(pool, x, windows)
    counts = window_counts(windows, x.shape[2:], _outputs(x, windows, ceil_mode), count_include_pad)
    total = window_sum(x, windows, ceil_mode)
    return operator(relax.op.divide, total, constant(counts.astype(x.dtype)))


def window_counts(
    windows: Sequence[AxisWindow], sizes: Sequence[int], outputs: Sequence[int], include_pad: bool
) -> NDArray[np.int64]:
    """How many elements each window has, with those of the padding or without; at least 1."""
    counts = np.ones((), np.int64)
    for window, size, count in zip(windows, sizes, outputs, strict=True):
        counts = np.multiply.outer(counts, _counts(window, size, count, include_pad))
    return counts


def window_sum(x: Node, windows: Sequence[AxisWindow], ceil_mode: bool = False) -> Node:
    """The sum of each window."""
    outputs = _outputs(x, windows, ceil_mode)

    def summed(x: te.Tensor) -> te.Tensor:
        source = padded(x, windows, outputs, tirx.const(0, x.dtype))
        taps = [te.reduce_axis((0, w.kernel), "k") for w in windows]
        return te.compute(
            (*x.shape[:2], *outputs),
            lambda n, c, *p: te.sum(source(n, c, *_taps(p, taps, windows)), axis=taps),
            name="window_sum",
        )

    return expression(summed, x, name="window_sum")


def window_sum_gradient(gradient: Node, windows: Sequence[AxisWindow], sizes: Sequence[int]) -> Node:
    """The gradient of what `window_sum` reads, with spatial axes `sizes`, from that of its result."""
    channels = gradient.shape[1]
    ones = constant(np.ones((channels, 1, *(w.kernel for w in windows)), gradient.dtype))
    return transposed_convolution(gradient, ones, windows, sizes, channels)


def global_mean(x: Node) -> Node:
    """The mean over all spatial axes, which stay with extent 1."""
    plane = _as_plane(x)
    return reshape(operator(relax.op.mean, plane, axis=[2, 3], keepdims=True), _pointlike(x))


def global_max(x: Node) -> Node:
    """The maximum over all spatial axes, which stay with extent 1."""
    return operator(relax.op.max, x, axis=list(range(2, len(x.shape))), keepdims=True)


def global_norm(x: Node, p: float) -> Node:
    """The p-norm over all spatial axes, which stay with extent 1."""
    total = operator(relax.op.sum, power(x, p), axis=list(range(2, len(x.shape))), keepdims=True)
    return root(total, p)


def norm_pool(x: Node, windows: Sequence[AxisWindow], p: float, ceil_mode: bool = False) -> Node:
    """The p-norm of each window."""
    return root(window_sum(power(x, p), windows, ceil_mode), p)


def power(x: Node, p: float) -> Node:
    """|x| to the power p."""
    result = operator(relax.op.multiply, x, x) if p == 2 else operator(relax.op.abs, x)
    if p in (1, 2):
        return result
    if p != int(p) or not 0 < p <= _LARGEST_PRODUCT:
        return operator(relax.op.power, result, scalar(p, x.dtype))
    magnitude = result
    for _ in range(int(p) - 1):
        result = operator(relax.op.multiply, result, magnitude)
    return result


def root(x: Node, p: float) -> Node:
    """The p-th root of what is not negative."""
    if p == 2:
        return operator(relax.op.sqrt, x)
    return x if p == 1 else operator(relax.op.power, x, scalar(1 / p, x.dtype))


def _by_planes(pool: Callable[..., Node], x: Node, windows: Sequence[AxisWindow]) -> Node:
    """Pool over any number of spatial axes by a function that pools over two."""
    batch, channels, *sizes = x.shape
    if len(windows) == 1:
        narrow = pool(reshape(x, (batch, channels, 1, *sizes)), _NONE, *windows)
        return reshape(narrow, (batch, channels, narrow.shape[3]))
    if len(windows) == 2:
        return pool(x, *windows)
    depth, *plane = windows
    images = reshape(x, (batch, channels * sizes[0], *sizes[1:]))
    images = images if plane == [_NONE, _NONE] else pool(images, *plane)
    height, width = images.shape[2:]
    lines = pool(reshape(images, (batch, channels, sizes[0], height * width)), depth, _NONE)
    return reshape(lines, (batch, channels, lines.shape[2], height, width))


def _pool2d(
    function: Callable, x: Node, windows: Sequence[AxisWindow], ceil_mode: bool, count_include_pad: bool = False
) -> Node:
    """A pooling of Relax. Its `ceil_mode` counts windows that start in the padding, of which there are none here."""
    floors, wanted, ceils = (
        [count(window, size) for window, size in zip(windows, x.shape[2:], strict=True)]
        for count in (AxisWindow.outputs, lambda w, size: w.outputs(size, ceil_mode), _all_outputs)
    )
    if floors == wanted != ceils:
        ceil_mode = False
    elif ceil_mode and wanted != ceils:  # one axis has such a window, the other a last one that hangs over
        height, width = windows
        rows = _pool2d(function, x, (height, _NONE), ceil_mode, count_include_pad)
        return _pool2d(function, rows, (_NONE, width), ceil_mode, count_include_pad)
    height, width = windows
    return operator(
        function,
        x,
        pool_size=[w.kernel for w in windows],
        strides=[w.stride for w in windows],
        padding=[height.before, width.before, height.after, width.after],
        dilation=[w.dilation for w in windows],
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )


def _all_outputs(window: AxisWindow, size: int) -> int:
    span = size + window.before + window.after - (window.kernel - 1) * window.dilation - 1
    return -(-span // window.stride) + 1


def _outputs(x: Node, windows: Sequence[AxisWindow], ceil_mode: bool) -> list[int]:
    return [window.outputs(size, ceil_mode) for window, size in zip(windows, x.shape[2:], strict=True)]


def _taps(position: Sequence[tirx.Expr], taps: Sequence[tirx.Expr], windows: Sequence[AxisWindow]) -> list[tirx.Expr]:
    """Coordinates of windows' taps in the padded tensor."""
    return [i * w.stride + k * w.dilation for i, k, w in zip(position, taps, windows, strict=True)]


def _counts(window: AxisWindow, size: int, outputs: int, include_pad: bool) -> NDArray[np.int64]:
    """How many taps of each window count."""
    where = np.arange(outputs)[:, None] * window.stride + np.arange(window.kernel) * window.dilation - window.before
    low, high = (-window.before, size + window.after) if include_pad else (0, size)
    return np.maximum(((where >= low) & (where < high)).sum(axis=1), 1)


def _as_plane(x: Node) -> Node:
    """All spatial axes as two."""
    if len(x.shape) == 4:
        return x
    return reshape(x, (*x.shape[:2], 1, math.prod(x.shape[2:])))


def _pointlike(x: Node) -> tuple[int, ...]:
    return (*x.shape[:2], *([1] * (len(x.shape) - 2)))


# -- windows that cover an axis evenly -------------------------------------------------------------


def adaptive_max_pool(x: Node, outputs: Sequence[int]) -> tuple[Node, Node]:
    """The maximum of windows that cover each axis evenly, and where in its image it is, int64.

    Window j goes from floor(j * size / outputs) to before ceil((j + 1) * size / outputs); windows may overlap.
    """
    batch, channels, *sizes = x.shape
    planes, shape = batch * channels, (batch * channels, *outputs)
    if 0 in (planes, *outputs):
        empty = (batch, channels, *outputs)
        return constant(np.zeros(empty, x.dtype), x.name), constant(np.zeros(empty, np.int64), x.name)

    def body(data: Any, values: Any, places: Any) -> None:
        with T.parallel(0, planes) as row, contextlib.ExitStack() as loops:
            i = [loops.enter_context(T.serial(0, count)) for count in outputs]
            windows = list(zip(i, sizes, outputs, strict=True))
            starts = [T.Bind(j * size // count) for j, size, count in windows]
            ends = [T.Bind(((j + 1) * size + (count - 1)) // count) for j, size, count in windows]
            where = (row, *i)
            values[where], places[where] = data[(row, *starts)], _flat(starts, sizes)
            for start, end in zip(starts, ends, strict=True):
                starts = [*starts[1:], start + loops.enter_context(T.serial(0, end - start))]
            found = T.Bind(data[(row, *starts)])
            wins = found > values[where]
            wins = tirx.any(wins, tirx.isnan(found)) if x.dtype.startswith("float") else wins
            with T.If(wins), T.Then():
                values[where], places[where] = found, _flat(starts, sizes)

    def function(data: te.Tensor) -> list[te.Tensor]:
        return statements.kernel("adaptive_max_pool", body, [data], [(shape, x.dtype), (shape, "int64")])

    results = expression(function, reshape(x, (planes, *sizes)), name="adaptive_max_pool")
    values, places = (reshape(result, (batch, channels, *outputs)) for result in results)
    return values, places


def _flat(where: Sequence[tirx.Expr], sizes: Sequence[int]) -> tirx.Expr:
    """The number of an element in order."""
    number = tirx.const(0, "int64")
    for place, size in zip(where, sizes, strict=True):
        number = number * size + place.astype("int64")
    return number
