"""Operators that give elements another shape, order or place by rules known at import."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calumma.graph.build import reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import Result, onnx_rule
from calumma.semantics import movement


@onnx_rule("Reshape")
def reshape_rule(node: OnnxNode) -> Node:
    x = node.input(0)
    node.ignore("consumed_inputs")
    if not node.is_known(1):
        return _reshaped(node, x, "the shape")
    sizes = node.attribute("shape") if node.version < 5 else node.integers(1, "the shape")
    if sizes is None:
        raise node.refused("the shape is missing", "export the model again")
    keeps_zeros = node.flag("allowzero", 0)
    result = list(sizes)
    if not keeps_zeros:
        if any(size == 0 for size in result[len(x.shape) :]):
            raise node.refused(f"{list(sizes)} keeps a size that {list(x.shape)} does not have")
        result = [x.shape[axis] if size == 0 else size for axis, size in enumerate(result)]
    if result.count(-1) > 1 or any(size < -1 for size in result):
        raise node.refused(f"{list(sizes)} is no shape", "export the model again")
    if -1 in result:
        rest = math.prod(size for size in result if size != -1)
        if rest == 0 or math.prod(x.shape) % rest:
            raise node.refused(f"{list(x.shape)} has no shape {list(sizes)}", "export the model again")
        result[result.index(-1)] = math.prod(x.shape) // rest
    if math.prod(result) != math.prod(x.shape):
        raise node.refused(f"{list(x.shape)} has no shape {list(sizes)}", "export the model again")
    return reshape(x, result)


def _reshaped(node: OnnxNode, x: Node, what: str) -> Node:
    """An input in the shape of the result, which is known though not the value it follows from."""
    node.optional(1)
    node.attribute("allowzero", 0)
    shape = node.promised_shape(what)
    if math.prod(shape) != math.prod(x.shape):
        raise node.refused(f"{list(x.shape)} has no shape {list(shape)}", "export the model again")
    return reshape(x, shape)


@onnx_rule("Flatten")
def flatten(node: OnnxNode) -> Node:
    x, axis = node.input(0), int(node.attribute("axis"))
    rank = len(x.shape)
    if not -rank <= axis <= rank:
        raise node.refused(f"axis {axis} of a tensor with {rank} dimensions", "export the model again")
    axis = axis + rank if axis < 0 else axis
    return reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _axes(node: OnnxNode) -> tuple[int, ...] | None:
    """The axes of Squeeze and Unsqueeze: an attribute before version 13, then an input."""
    if node.version < 13:
        axes = node.attribute("axes", None)
        return None if axes is None else tuple(int(axis) for axis in axes)
    return node.integers(1, "axes")


@onnx_rule("Squeeze")
def squeeze(node: OnnxNode) -> Node:
    x = node.input(0)
    if not node.is_known(1):
        return _reshaped(node, x, "what axes these are")
    given, rank = _axes(node), len(x.shape)
    if given is None:
        return reshape(x, [size for size in x.shape if size != 1])
    axes = {node.normalised_axis(axis, rank) for axis in given}
    if any(x.shape[axis] != 1 for axis in axes):
        raise node.refused(f"axes {list(given)} of {list(x.shape)} have other sizes than 1", "export the model again")
    return reshape(x, [size for axis, size in enumerate(x.shape) if axis not in axes])


@onnx_rule("Unsqueeze")
def unsqueeze(node: OnnxNode) -> Node:
    x = node.input(0)
    if not node.is_known(1):
        return _reshaped(node, x, "what axes these are")
    given = _axes(node)
    if given is None:
        raise node.refused("axes are missing", "export the model again")
    rank = len(x.shape) + len(given)
    axes = {node.normalised_axis(axis, rank) for axis in given}
    if len(axes) < len(given):
        raise node.refused(f"axes {list(given)} are the same", "export the model again")
    sizes = iter(x.shape)
    return reshape(x, [1 if axis in axes else next(sizes) for axis in range(rank)])


@onnx_rule("Transpose")
def transpose_rule(node: OnnxNode) -> Node:
    x, axes = node.input(0), node.attribute("perm", None)
    axes = tuple(range(len(x.shape)))[::-1] if axes is None else axes
    if sorted(axes) != list(range(len(x.shape))):
        raise node.refused(f"perm {list(axes)} is no order of {len(x.shape)} axes", "export the model again")
    return transpose(x, axes)


@onnx_rule("Concat")
def concat(node: OnnxNode) -> Node:
    parts = node.inputs()
    axis = node.axis(len(parts[0].shape), default=1)
    rest = [(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts]
    if not parts[0].shape or any(shape != rest[0] for shape in rest):
        raise node.refused("its inputs do not fit together", "export the model again")
    return movement.concatenated(parts, axis)


@onnx_rule("Split")
def split(node: OnnxNode) -> Result:
    x = node.input(0)
    axis, count = node.axis(len(x.shape), default=0), len(node.proto.output)
    sizes: Sequence[int] | None
    if node.is_known(1):
        sizes = node.integers(1, "split")
    else:
        node.optional(1)
        sizes = [node.promised_shape("split", index)[axis] for index in range(count)]
    if node.version < 13 and sizes is None:
        sizes = node.attribute("split", None)
    count = int(node.attribute("num_outputs", count)) if node.version >= 18 else count
    if sizes is None:
        size = -(-x.shape[axis] // count)
        sizes = (size,) * (count - 1) + (x.shape[axis] - size * (count - 1),)
    if len(sizes) != len(node.proto.output) or sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise node.refused(
            f"parts {list(sizes)} of {x.shape[axis]} for {len(node.proto.output)} outputs", "export the model again"
        )
    return movement.split(x, sizes, axis)


@onnx_rule("Expand")
def expand(node: OnnxNode) -> Node:
    x = node.input(0)
    sizes = node.integers(1, "the shape") if node.is_known(1) else node.promised_shape("the shape")
    node.optional(1)
    try:
        shape = np.broadcast_shapes(x.shape, sizes or ())
    except ValueError as error:
        raise node.refused(f"{list(x.shape)} cannot be expanded to {list(sizes or ())}") from error
    return movement.broadcast(x, shape)


@onnx_rule("Tile", since=6)
def tile(node: OnnxNode) -> Node:
    """With repeats of every axis."""
    x = node.input(0)
    if node.is_known(1):
        repeats = list(node.integers(1, "repeats") or ())
    else:
        node.optional(1)
        shape = node.promised_shape("repeats")
        repeats = [m // max(n, 1) for n, m in zip(x.shape, shape, strict=True)]
        if any(n * count != m for n, count, m in zip(x.shape, repeats, shape, strict=True)):
            raise node.refused(f"repeats of {list(x.shape)} do not give {list(shape)}", "export the model again")
    return _tiled(node, x, repeats)


@onnx_rule("Tile")
def tile_of_axis(node: OnnxNode) -> Node:
    """With repeats of one axis."""
    x, count, axis = node.input(0), node.integers(1, "tiles"), node.integers(2, "axis")
    if count is None or axis is None or len(count) != 1 or len(axis) != 1:
        raise node.refused("it needs one axis and its number of tiles", "export the model again")
    repeats = [1] * len(x.shape)
    repeats[node.normalised_axis(axis[0], len(x.shape))] = count[0]
    return _tiled(node, x, repeats)


def _tiled(node: OnnxNode, x: Node, repeats: Sequence[int]) -> Node:
    if len(repeats) != len(x.shape) or any(count < 0 for count in repeats):
        raise node.refused(f"repeats {list(repeats)} of {list(x.shape)}", "export the model again")
    return movement.tiled(x, repeats)


@onnx_rule("Pad")
def pad_of_attributes(node: OnnxNode) -> Node:
    """With pads and value as attributes."""
    x = node.input(0)
    amounts = node.attribute("paddings" if node.version < 2 else "pads")
    value = scalar(node.attribute("value"), x.dtype)
    mode = node.choice("mode", ("constant", "reflect", "edge"))
    return _padded(node, x, range(len(x.shape)), amounts, mode, value)


@onnx_rule("Pad", since=11)
def pad(node: OnnxNode) -> Node:
    """With pads, value and axes as inputs."""
    x, value = node.input(0), node.optional(2)
    rank = len(x.shape)
    mode = node.choice("mode", movement.PAD_MODES)
    if value is not None and math.prod(value.shape) != 1:
        raise node.refused(f"the value has {math.prod(value.shape)} elements", "give one")
    if not node.is_known(1) or not node.is_known(3):
        axes = node.optional(3) or constant(np.arange(rank), node.name)
        if node.input(1).shape != (2 * math.prod(axes.shape),) or 0 in x.shape:
            raise node.refused("its pads do not fit its input", "make them constants of the model")
        return movement.padded_at_run_time(x, node.input(1), axes, node.promised_shape("the padding"), mode, value)
    given = node.integers(3, "axes")
    places = range(rank) if given is None else [node.normalised_axis(axis, rank) for axis in given]
    if len(set(places)) < len(places):
        raise node.refused(f"axes {list(places)} are the same", "export the model again")
    return _padded(node, x, places, node.integers(1, "pads") or (), mode, value)


def _padded(
    node: OnnxNode, x: Node, places: Sequence[int], amounts: Sequence[int], mode: str, value: Node | None
) -> Node:
    if len(amounts) != 2 * len(places):
        raise node.refused(f"pads {list(amounts)} of {len(places)} axes", "export the model again")
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for index, axis in enumerate(places):
        before[axis], after[axis] = int(amounts[index]), int(amounts[index + len(places)])
    if any(n + b + e < 0 for n, b, e in zip(x.shape, before, after, strict=True)):
        raise node.refused(f"pads {list(amounts)} cut off more than {list(x.shape)}", "export the model again")
    return movement.padded(x, before, after, mode, value)


@onnx_rule("CenterCropPad")
def center_crop_pad(node: OnnxNode) -> Node:
    x, axes = node.input(0), node.attribute("axes", None)
    rank = len(x.shape)
    places = range(rank) if axes is None else [node.normalised_axis(axis, rank) for axis in axes]
    if node.is_known(1):
        sizes = node.integers(1, "the shape") or ()
    else:
        node.optional(1)
        sizes = tuple(node.promised_shape("the shape")[axis] for axis in places)
    if len(sizes) != len(places) or len(set(places)) < len(places) or any(size < 0 for size in sizes):
        raise node.refused(f"sizes {list(sizes)} of axes {list(places)}", "export the model again")
    before, after = [0] * rank, [0] * rank
    for axis, size in zip(places, sizes, strict=True):
        missing = size - x.shape[axis]
        before[axis] = missing // 2 if missing >= 0 else -(-missing // 2)
        after[axis] = missing - before[axis]
    return movement.padded(x, before, after)


@onnx_rule("DepthToSpace")
def depth_to_space(node: OnnxNode) -> Node:
    x, block = _image(node), int(node.attribute("blocksize"))
    mode = node.choice("mode", ("DCR", "CRD"), default="DCR")
    if block < 1 or x.shape[1] % block**2:
        raise node.refused(f"blocks of {block} do not divide {x.shape[1]} channels", "export the model again")
    return movement.depth_to_space(x, block, depth_first=mode == "DCR")


@onnx_rule("SpaceToDepth")
def space_to_depth(node: OnnxNode) -> Node:
    x, block = _image(node), int(node.attribute("blocksize"))
    mode = node.choice("mode", ("DCR", "CRD"), default="DCR")
    if block < 1 or x.shape[2] % block or x.shape[3] % block:
        raise node.refused(f"blocks of {block} do not divide {list(x.shape[2:])}", "export the model again")
    return movement.space_to_depth(x, block, depth_first=mode == "DCR")


def _image(node: OnnxNode) -> Node:
    x = node.input(0)
    if len(x.shape) != 4:
        raise node.refused(f"it reads {list(x.shape)}, expected four dimensions", "export the model again")
    return x


@onnx_rule("Col2Im")
def col2im(node: OnnxNode) -> Node:
    """Its block may be computed where the model declares the result's shape."""
    x, block = node.input(0), node.input(2)
    rank = math.prod(block.shape)
    if node.is_known(1) and node.is_known(2):
        sizes = node.integers(2, "the block") or ()
        channels = x.shape[1] // max(math.prod(sizes), 1)
        shape = (x.shape[0], channels, *(node.integers(1, "the image") or ()))
        fits = channels * math.prod(sizes) == x.shape[1]
    else:
        node.optional(1)
        shape = node.promised_shape("the image")
        fits = x.shape[:1] == shape[:1] and shape[1] > 0 and x.shape[1] % shape[1] == 0
    dilations, strides = (node.attribute(name, (1,) * rank) for name in ("dilations", "strides"))
    pads = node.attribute("pads", (0,) * 2 * rank)
    lengths = len(shape) - 2, len(dilations), len(strides), len(pads) // 2
    if len(x.shape) != 3 or not fits or 0 in (*x.shape, *shape) or any(length != rank for length in lengths):
        raise node.refused(f"{list(x.shape)} does not fit {list(shape)} of blocks", "export the model again")
    if min((*dilations, *strides)) < 1 or min(pads) < 0:
        raise node.refused("dilations and strides are at least 1, pads at least 0", "export the model again")
    if node.is_known(1) and node.is_known(2):
        steps = zip(shape[2:], sizes, dilations, strides, pads[:rank], pads[rank:], strict=True)
        counts = [(n + before + after - d * (k - 1) - 1) // s + 1 for n, k, d, s, before, after in steps]
        if min(counts) < 1 or math.prod(counts) != x.shape[2]:
            raise node.refused(f"{x.shape[2]} columns for {counts} blocks", "export the model again")
    return movement.folded_columns(x, shape, block, dilations, pads, strides)


@onnx_rule("Trilu")
def trilu(node: OnnxNode) -> Node:
    x, offset = node.input(0), node.optional(1)
    if len(x.shape) < 2:
        raise node.refused(f"it reads {list(x.shape)}, expected matrices", "export the model again")
    upper = node.flag("upper")
    return movement.triangle(x, scalar(0, "int64") if offset is None else offset, upper=upper)


@onnx_rule("ReverseSequence")
def reverse_sequence(node: OnnxNode) -> Node:
    x, lengths = node.input(0), node.input(1)
    axis, batch_axis = node.axis(2, "time_axis"), node.axis(2, "batch_axis")
    if len(x.shape) < 2 or axis == batch_axis or lengths.shape != (x.shape[batch_axis],):
        raise node.refused(f"time axis {axis}, batch axis {batch_axis} of {list(x.shape)}", "export the model again")
    return movement.reversed_rows(x, lengths, axis, batch_axis)
