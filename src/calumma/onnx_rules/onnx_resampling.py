"""Resizing, and sampling between the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.extents.run_time_resampling import OpenAxis, resize_at_run_time
from calumma.graph.build import cast, operator
from calumma.graph.nodes import Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics.grid_sampling import MODES, PADDINGS, affine_grid, grid_sample
from calumma.semantics.movement import broadcast
from calumma.semantics.resampling import COORDINATES, ROUNDINGS, WHOLE, Axis, Interpolation, Taps, resize

_MODES = ("nearest", "linear", "cubic")
_POLICIES = ("stretch", "not_larger", "not_smaller")


@onnx_rule("Upsample")
def upsample(node: OnnxNode) -> Node:
    """The scales are attributes before version 9, an input from there on."""
    x = node.input(0)
    if node.version >= 9 and not node.is_known(1):
        return _simply_open(node, x, _linear(str(node.attribute("mode"))))
    if node.version >= 9:
        scales = [float(scale) for scale in node.constant(1, "scales").reshape(-1)]
    elif node.version >= 7:
        scales = [float(scale) for scale in node.attribute("scales")]
    else:
        scales = [1.0, 1.0, float(node.attribute("height_scale")), float(node.attribute("width_scale"))]
    return _simply_resized(node, x, scales, _linear(str(node.attribute("mode"))))


def _linear(mode: str) -> str:
    return "linear" if mode == "bilinear" else mode


@onnx_rule("Resize", since=10)
def resize_10(node: OnnxNode) -> Node:
    if not node.is_known(1):
        return _simply_open(node, node.input(0), str(node.attribute("mode")))
    scales = [float(scale) for scale in node.constant(1, "scales").reshape(-1)]
    return _simply_resized(node, node.input(0), scales, str(node.attribute("mode")))


def _simply_resized(node: OnnxNode, x: Node, scales: Sequence[float], mode: str) -> Node:
    """As before version 11 of Resize: nearest rounds up where an axis shrinks, else down, as ONNX Runtime does."""
    if mode not in ("nearest", "linear"):
        raise node.refused(f"mode {mode!r} is not supported, known are nearest, linear")
    axes = _axes(node, x, range(len(x.shape)), scales, None)

    def taps(axis: Axis) -> Taps:
        return Interpolation(mode, "asymmetric", "ceil" if axis.scale < 1 else "floor").taps(axis)

    return resize(x, axes, taps)


def _simply_open(node: OnnxNode, x: Node, mode: str) -> Node:
    """Likewise by scales that a model computes, to the sizes that it declares."""
    shape, scales = node.promised_shape("scales"), node.input(1)
    if mode not in ("nearest", "linear") or x.dtype != "float32" or scales.shape != (len(x.shape),):
        raise node.refused("scales are computed at run time", "make them a constant of the model")
    for index, (size, outputs) in enumerate(zip(x.shape, shape, strict=True)):
        how = Interpolation(mode, "asymmetric", "ceil" if outputs < size else "floor")
        axis = OpenAxis(size, outputs, index, len(shape))
        x = resize_at_run_time(x, {index: axis}, how, cast(scales, "float32"), None, 0.0)
    return x


@onnx_rule("Resize", since=11)
def resize_11(node: OnnxNode) -> Node:
    x = node.input(0)
    rank = len(x.shape)
    given = node.attribute("axes", None)
    indices = [node.normalised_axis(int(axis), rank) for axis in (range(rank) if given is None else given)]
    mode = node.choice("mode", _MODES)
    coordinates = node.choice("coordinate_transformation_mode", COORDINATES)
    interpolation = Interpolation(
        mode,
        coordinates,
        node.choice("nearest_mode", ROUNDINGS),
        node.flag("antialias", 0),
        float(node.attribute("cubic_coeff_a")),
        node.flag("exclude_outside"),
    )
    extrapolation = float(node.attribute("extrapolation_value"))
    if not node.is_known(2) or (coordinates == "tf_crop_and_resize" and not node.is_known(1)):
        return _open_resize(node, x, indices, interpolation, extrapolation)
    policy = node.choice("keep_aspect_ratio_policy", _POLICIES, "stretch")
    if policy != "stretch" and not node.is_known(3) and coordinates != "tf_crop_and_resize":
        return _kept_in_ratio(node, x, indices, interpolation, largest=policy == "not_smaller")
    scales, sizes = _scales_and_sizes(node, indices)
    if sizes is not None and policy != "stretch":
        ratios = [size / x.shape[axis] for size, axis in zip(sizes, indices, strict=True)]
        ratio = float(np.float32(min(ratios) if policy == "not_larger" else max(ratios)))
        scales, sizes = [ratio] * len(indices), [int(ratio * x.shape[axis] + 0.5) for axis in indices]
    roi = node.optional_constant(1, "roi") if coordinates == "tf_crop_and_resize" else None
    node.optional(1)  # other modes do not read it
    if coordinates == "tf_crop_and_resize" and (roi is None or roi.size != 2 * len(indices)):
        raise node.refused(f"roi does not give start and end of {len(indices)} axes", "export the model again")
    axes = _axes(node, x, indices, scales, sizes, roi)
    return resize(x, axes, interpolation.taps, extrapolation, rounds=interpolation.antialias)


def _open_resize(node: OnnxNode, x: Node, indices: Sequence[int], how: Interpolation, extrapolation: float) -> Node:
    """By scales or regions that a model computes, to the sizes that it declares."""
    shape = node.promised_shape("scales or roi")
    scales, roi = node.optional(2), node.optional(1)
    stretches = str(node.attribute("keep_aspect_ratio_policy", "stretch")) == "stretch"
    if x.dtype != "float32" or not stretches or len(shape) != len(x.shape):
        raise node.refused("scales or roi are computed at run time", "make them constants of the model")
    node.optional(3)  # the declared sizes
    scales = None if scales is None or 0 in scales.shape else cast(scales, "float32")
    roi = None if roi is None or 0 in roi.shape else cast(roi, "float32")
    if any(v is not None and v.shape != (count * len(indices),) for v, count in ((scales, 1), (roi, 2))):
        raise node.refused(f"scales or roi are not those of {len(indices)} axes", "export the model again")
    axes = {index: OpenAxis(x.shape[index], shape[index], i, len(indices)) for i, index in enumerate(indices)}
    return resize_at_run_time(x, axes, how, scales, roi, extrapolation)


def _kept_in_ratio(node: OnnxNode, x: Node, indices: Sequence[int], how: Interpolation, *, largest: bool) -> Node:
    """By one scale for all axes, that of the smallest or largest of the sizes that a model computes."""
    shape, sizes = node.promised_shape("sizes"), node.input(3)
    for index in (1, 2):
        node.optional(index)
    if x.dtype != "float32" or len(shape) != len(x.shape) or sizes.shape != (len(indices),):
        raise node.refused("sizes are computed at run time", "make them a constant of the model")
    old = constant(np.array([x.shape[index] for index in indices], np.float32))
    ratios = operator(relax.op.divide, cast(sizes, "float32"), old)
    ratio = operator(relax.op.max if largest else relax.op.min, ratios, [0], True)
    axes = {index: OpenAxis(x.shape[index], shape[index], i, len(indices)) for i, index in enumerate(indices)}
    return resize_at_run_time(x, axes, how, broadcast(ratio, (len(indices),)), None, 0.0)


def _scales_and_sizes(node: OnnxNode, indices: Sequence[int]) -> tuple[Sequence[float] | None, Sequence[int] | None]:
    """What the axes are scaled by, or the sizes they get; sizes that a model computes are those it declares."""
    scales = node.optional_constant(2, "scales")
    given = [float(scale) for scale in scales.reshape(-1)] if scales is not None and scales.size else None
    if node.is_known(3):
        sizes = node.integers(3, "sizes") or None
    else:
        node.optional(3)
        shape = node.promised_shape("sizes")
        if str(node.attribute("keep_aspect_ratio_policy", "stretch")) != "stretch" or len(shape) <= max(indices):
            raise node.refused("sizes are computed at run time", "make them a constant of the model")
        sizes = tuple(shape[index] for index in indices)
    if (given is None) == (sizes is None):
        raise node.refused("it needs either scales or sizes", "export the model again")
    return given, sizes


def _axes(
    node: OnnxNode,
    x: Node,
    indices: Sequence[int],
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    roi: np.ndarray | None = None,
) -> dict[int, Axis]:
    """How the axes `indices` are resized, by scales, by sizes, or by both where sizes are rounded."""
    for given in (scales, sizes):
        if given is not None and (len(given) != len(indices) or min(given) <= 0):
            raise node.refused(
                f"{list(given)} are not {len(indices)} positive scales or sizes", "export the model again"
            )
    axes = {}
    for i, index in enumerate(indices):
        size = x.shape[index]
        scale = float(np.float32(scales[i])) if scales is not None else 0.0
        outputs = int(sizes[i]) if sizes is not None else int(np.floor(np.float32(size) * np.float32(scale)))
        length = size * scale if abs(size * scale - outputs) > WHOLE * outputs else 0.0
        ends = (0.0, 1.0) if roi is None else (float(roi.reshape(-1)[i]), float(roi.reshape(-1)[i + len(indices)]))
        axes[index] = Axis(size, outputs, scale or float(np.float32(outputs) / np.float32(size)), ends, length)
    return axes


@onnx_rule("GridSample", since=16)
def sample_grid(node: OnnxNode) -> Node:
    x, grid = node.input(0), node.input(1)
    given = str(node.attribute("mode"))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(given, given)
    if mode not in MODES:
        raise node.refused(f"mode {given!r} is not supported, known are {', '.join(MODES)}")
    if len(x.shape) not in (4, 5) or grid.shape[-1] != len(x.shape) - 2:
        raise node.refused(f"a grid {list(grid.shape)} is none of points in {list(x.shape)}")
    padding = node.choice("padding_mode", PADDINGS)
    return grid_sample(x, grid, mode, padding, align_corners=node.flag("align_corners"))


@onnx_rule("AffineGrid", since=20)
def grid_of_maps(node: OnnxNode) -> Node:
    """Its size, where it is computed at run time, is what the model declares."""
    theta = node.input(0)
    if node.is_known(1):
        sizes = (node.integers(1, "the size") or ())[2:]
    else:
        node.input(1)
        sizes = node.promised_shape("the size")[1:-1]
    if len(sizes) not in (2, 3) or theta.shape[1:] != (len(sizes), len(sizes) + 1):
        raise node.refused(f"maps {list(theta.shape)} of a grid {list(sizes)}", "export the model again")
    return affine_grid(theta, sizes, align_corners=node.flag("align_corners"))
