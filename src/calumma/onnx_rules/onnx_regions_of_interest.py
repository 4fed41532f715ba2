"""Pooling over regions, and the inverse of maximum pooling."""

from __future__ import annotations

import math

from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.onnx_import.sliding_windows import per_axis, read_kernel, read_pads
from calumma.semantics.regions_of_interest import max_roi_pool, max_unpool, roi_align


@onnx_rule("RoiAlign", since=10)
def align(node: OnnxNode) -> Node:
    """Before version 16 pixels are not shifted by half of one."""
    x, rois, images = (node.input(index) for index in range(3))
    coordinates = ("half_pixel", "output_half_pixel")
    shift = node.choice("coordinate_transformation_mode", coordinates, "output_half_pixel")
    return roi_align(
        x,
        rois,
        images,
        (int(node.attribute("output_height")), int(node.attribute("output_width"))),
        mode=node.choice("mode", ("avg", "max")),
        ratio=int(node.attribute("sampling_ratio")),
        scale=float(node.attribute("spatial_scale")),
        half_pixel=shift == "half_pixel",
    )


@onnx_rule("MaxRoiPool")
def max_pool_regions(node: OnnxNode) -> Node:
    height, width = (int(size) for size in node.attribute("pooled_shape"))
    return max_roi_pool(node.input(0), node.input(1), (height, width), float(node.attribute("spatial_scale")))


@onnx_rule("MaxUnpool", since=9)
def unpool(node: OnnxNode) -> Node:
    """Indices count the elements of the shape that the pooling had; another output_shape would change their meaning."""
    x, indices = node.input(0), node.input(1)
    rank = len(x.shape) - 2
    kernel, strides, (before, after) = (
        read_kernel(node, rank, None),
        per_axis(node, "strides", rank, 1),
        read_pads(node, rank),
    )
    sizes = [
        (size - 1) * stride - low - high + window
        for size, stride, low, high, window in zip(x.shape[2:], strides, before, after, kernel, strict=True)
    ]
    shape = (*x.shape[:2], *sizes)
    wanted = node.integers(2, "output_shape")
    if min(shape) < 1 or indices.shape != x.shape or (wanted is not None and wanted[-rank:] != shape[-rank:]):
        given = "" if wanted is None else f" instead of {list(wanted)}"
        raise node.refused(f"{math.prod(indices.shape)} indices give the shape {list(shape)}{given}")
    return max_unpool(x, indices, shape)
