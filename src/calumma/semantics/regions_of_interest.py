"""Pooling over regions of interest, and the inverse of a maximum pooling: loops whose extents depend on values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions import statements
from calumma.graph.build import cast, expression, reshape
from calumma.graph.nodes import Node


def roi_align(
    x: Node,
    rois: Node,
    images: Node,
    outputs: tuple[int, int],
    *,
    mode: str,
    ratio: int,
    scale: float,
    half_pixel: bool,
) -> Node:
    """Regions of images, resized by bilinear samples (He et al., 2017, "Mask R-CNN").

    Args:
        x: (N, C, H, W).
        rois: (R, 4), each x and y of the first corner and of the last.
        images: (R,), which image each region is of.
        outputs: height and width of the result.
        mode: avg or max, of what the samples of a bin read; a maximum is over weighted pixels.
        ratio: samples per bin along each axis; 0 for one per pixel.
        scale: by which the regions are multiplied.
        half_pixel: whether the first pixel's centre is at one half.

    Returns:
        (R, C, *outputs).
    """
    batch, channels, *sizes = x.shape
    shape = (rois.shape[0], channels, *outputs)

    def body(x: Any, rois: Any, images: Any, out: Any) -> None:
        with T.parallel(0, shape[0] * channels) as row:
            r, c = row // channels, row % channels
            image = tirx.max(tirx.min(images[r], batch - 1), 0)
            starts, bins, grids = _bins(rois, r, outputs, ratio, scale, half_pixel, x.dtype)
            with T.grid(*outputs) as bin_index:
                total = statements.counter(x.dtype)
                total[0] = statements.constant(0, x.dtype)
                with T.serial(0, grids[0]) as iy, T.serial(0, grids[1]) as ix:
                    steps = zip(starts, bins, grids, bin_index, (iy, ix), strict=True)
                    where = [
                        start + b.astype(x.dtype) * extent + (i.astype(x.dtype) + 0.5) * extent / n.astype(x.dtype)
                        for start, extent, n, b, i in steps
                    ]
                    pixels = _bilinear(x, image, c, where, sizes)
                    if mode == "avg":
                        total[0] = total[0] + sum(pixels[1:], pixels[0])
                    else:
                        highest = tirx.max(tirx.max(pixels[0], pixels[1]), tirx.max(pixels[2], pixels[3]))
                        first = tirx.all(iy == 0, ix == 0)
                        total[0] = tirx.Select(first, highest, tirx.max(total[0], highest))
                count = tirx.max(grids[0] * grids[1], 1).astype(x.dtype)
                out[(r, c, *bin_index)] = total[0] / count if mode == "avg" else total[0]

    def function(x: te.Tensor, rois: te.Tensor, images: te.Tensor) -> te.Tensor:
        return statements.kernel("roi_align", body, [x, rois, images], [(shape, x.dtype)])[0]

    return expression(function, x, cast(rois, x.dtype), cast(images, "int32"), name="roi_align")


def _bins(
    rois: Any, r: tirx.Expr, outputs: Sequence[int], ratio: int, scale: float, half_pixel: bool, dtype: str
) -> tuple[list[tirx.Expr], list[tirx.Expr], list[tirx.Expr]]:
    """Start, size of a bin and samples per bin of a region, along height and width."""
    shift = 0.5 if half_pixel else 0.0
    starts, bins, grids = [], [], []
    for axis, count in enumerate(outputs):
        start = rois[r, 1 - axis] * statements.constant(scale, dtype) - statements.constant(shift, dtype)
        size = rois[r, 3 - axis] * statements.constant(scale, dtype) - statements.constant(shift, dtype) - start
        if not half_pixel:
            size = tirx.max(size, statements.constant(1, dtype))
        extent = size / statements.constant(count, dtype)
        starts.append(start)
        bins.append(extent)
        samples = tirx.max(
            tirx.min(tirx.ceil(extent), statements.constant(1 << 20, dtype)), statements.constant(0, dtype)
        )
        grids.append(tirx.const(ratio, "int32") if ratio > 0 else samples.astype("int32"))
    return starts, bins, grids


def _bilinear(x: Any, image: tirx.Expr, c: tirx.Expr, where: Sequence[tirx.Expr], sizes: Sequence[int]) -> list[Any]:
    """The four pixels around a position, weighted; zeros for one more than a pixel outside."""
    dtype = x.dtype
    inside, lows, parts = [], [], []
    for position, size in zip(where, sizes, strict=True):
        inside.append(tirx.all(position >= -1, position <= size))
        position = tirx.max(tirx.min(position, statements.constant(size - 1, dtype)), statements.constant(0, dtype))
        low = tirx.max(tirx.min(tirx.floor(position).astype("int32"), size - 1), 0)
        lows.append(low)
        parts.append(position - low.astype(dtype))
    pixels = []
    for dy in (0, 1):
        for dx in (0, 1):
            (y, x_), (py, px) = (
                [tirx.min(low + d, size - 1) for low, d, size in zip(lows, (dy, dx), sizes, strict=True)],
                [part if d else 1 - part for part, d in zip(parts, (dy, dx), strict=True)],
            )
            value = py * px * x[image, c, y, x_]
            pixels.append(tirx.Select(tirx.all(*inside), value, statements.constant(0, dtype)))
    return pixels


def max_roi_pool(x: Node, rois: Node, outputs: tuple[int, int], scale: float) -> Node:
    """The maximum of every bin of regions of images, whose corners are rounded to pixels; 0 for an empty bin.

    Args:
        x: (N, C, H, W).
        rois: (R, 5), each the image, and x and y of the first corner and of the last.
        outputs: height and width of the result.
        scale: by which the regions are multiplied.

    Returns:
        (R, C, *outputs).
    """
    batch, channels, *sizes = x.shape
    shape = (rois.shape[0], channels, *outputs)

    def limits(rois: Any, r: tirx.Expr, axis: int, index: tirx.Expr, dtype: str) -> tuple[tirx.Expr, tirx.Expr]:
        corners = [_half_up(rois[r, column] * statements.constant(scale, dtype)) for column in (2 - axis, 4 - axis)]
        start = corners[0].astype("int32")
        size = tirx.max(corners[1].astype("int32") - start + 1, 1).astype(dtype)
        extent = size / statements.constant(outputs[axis], dtype)
        low = tirx.floor(index.astype(dtype) * extent).astype("int32") + start
        high = tirx.ceil((index + 1).astype(dtype) * extent).astype("int32") + start
        return tuple(tirx.max(tirx.min(end, sizes[axis]), 0) for end in (low, high))

    def body(x: Any, rois: Any, out: Any) -> None:
        with T.parallel(0, shape[0] * channels) as row:
            r, c = row // channels, row % channels
            image = tirx.max(tirx.min(rois[r, 0].astype("int32"), batch - 1), 0)
            with T.grid(*outputs) as bin_index:
                (top, bottom), (left, right) = (limits(rois, r, a, i, x.dtype) for a, i in enumerate(bin_index))
                highest = statements.counter(x.dtype)
                highest[0] = tirx.Select(
                    tirx.any(bottom <= top, right <= left), statements.constant(0, x.dtype), te.min_value(x.dtype)
                )
                with T.serial(0, tirx.max(bottom - top, 0)) as dy, T.serial(0, tirx.max(right - left, 0)) as dx:
                    highest[0] = tirx.max(highest[0], x[image, c, top + dy, left + dx])
                out[(r, c, *bin_index)] = highest[0]

    def function(x: te.Tensor, rois: te.Tensor) -> te.Tensor:
        return statements.kernel("max_roi_pool", body, [x, rois], [(shape, x.dtype)])[0]

    return expression(function, x, cast(rois, x.dtype), name="max_roi_pool")


def max_unpool(x: Node, indices: Node, shape: Sequence[int]) -> Node:
    """Zeros of a shape, in which the values of `x` are at indices that count all elements in order."""
    size, count = math.prod(shape), math.prod(x.shape)

    def body(x: Any, indices: Any, out: Any) -> None:
        with T.serial(0, size) as i:
            out[i] = statements.constant(0, x.dtype)
        with T.serial(0, count) as i:
            out[tirx.max(tirx.min(indices[i], statements.constant(size - 1)), statements.constant(0))] = x[i]

    def function(x: te.Tensor, indices: te.Tensor) -> te.Tensor:
        return statements.kernel("max_unpool", body, [x, indices], [((size,), x.dtype)])[0]

    flat = reshape(x, (count,)), cast(reshape(indices, (count,)), "int64")
    return reshape(expression(function, *flat, name="max_unpool"), shape)


def _half_up(x: tirx.Expr) -> tirx.Expr:
    """Rounded, halves away from zero."""
    return tirx.Select(x < 0, tirx.ceil(x - 0.5), tirx.floor(x + 0.5))
