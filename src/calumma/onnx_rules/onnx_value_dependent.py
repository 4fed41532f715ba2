"""Operators of which the result's shape depends on values, and slices, of which it may."""

from __future__ import annotations

import numpy as np

from calumma.extents import run_time_sizes, run_time_slices, selection
from calumma.extents.run_time_extents import as_scalar
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule


@onnx_rule("NonZero")
def nonzero(node: OnnxNode) -> Node:
    return selection.nonzero(node.input(0))


@onnx_rule("Compress")
def compress(node: OnnxNode) -> Node:
    x = node.input(0)
    axis = node.axis(len(x.shape)) if node.has_attribute("axis") else None
    return selection.compress(x, node.input(1), axis)


@onnx_rule("Unique")
def unique(node: OnnxNode) -> tuple[Node, ...]:
    """Its second to fourth outputs are int64."""
    x = node.input(0)
    axis = node.axis(len(x.shape)) if node.has_attribute("axis") else None
    return selection.unique(x, axis, ordered=node.flag("sorted"))


@onnx_rule("TopK")
def top_k(node: OnnxNode) -> tuple[Node, Node]:
    """With K as an attribute."""
    return _top_k(node, int(node.attribute("k")), largest=True)


@onnx_rule("TopK", since=10)
def top_k_of_input(node: OnnxNode) -> tuple[Node, Node]:
    """With K as an input. Without `sorted` any order is right."""
    given = node.input(1)
    k = as_scalar(given)
    largest = node.flag("largest", 1)
    node.ignore("sorted")
    most = None if given.sizes is None else run_time_sizes.largest(given.sizes)[0]
    return _top_k(node, int(k.value) if k.op == CONSTANT else k, largest=largest, most=most)


def _top_k(node: OnnxNode, k: int | Node, *, largest: bool, most: int | None = None) -> tuple[Node, Node]:
    x = node.input(0)
    return selection.top_k(x, k, node.axis(len(x.shape)), largest=largest, most=most)


@onnx_rule("NonMaxSuppression")
def non_max_suppression(node: OnnxNode) -> Node:
    """No box is kept unless it is said how many; boxes overlap from the first common point unless it is said from what
    share."""
    boxes, scores = node.input(0), node.input(1)
    if len(boxes.shape) != 3 or len(scores.shape) != 3 or boxes.shape != (scores.shape[0], scores.shape[2], 4):
        raise node.refused(f"boxes {list(boxes.shape)} and scores {list(scores.shape)}", "export the model again")
    most, iou, score = (node.optional(index) for index in (2, 3, 4))
    return selection.non_max_suppression(
        boxes,
        scores,
        constant(np.array(0, np.int64)) if most is None else as_scalar(most),
        constant(np.array(0, np.float32)) if iou is None else as_scalar(iou, "float32"),
        None if score is None else as_scalar(score, "float32"),
        centred=node.flag("center_point_box"),
    )


@onnx_rule("Slice")
def slice_of_attributes(node: OnnxNode) -> Node:
    """With its bounds as attributes."""
    starts, ends, axes = (node.attribute(name, None) for name in ("starts", "ends", "axes"))
    vectors = [None if given is None else constant(np.array(given, np.int64)) for given in (starts, ends, axes)]
    first, last, order = vectors
    if first is None or last is None:
        raise node.refused("starts or ends are missing", "export the model again")
    return run_time_slices.sliced(node.input(0), first, last, order)


@onnx_rule("Slice", since=10)
def slice_of_inputs(node: OnnxNode) -> Node:
    """With its bounds as inputs."""
    return run_time_slices.sliced(node.input(0), node.input(1), node.input(2), node.optional(3), node.optional(4))
