"""Operators that read or write elements where tensors of indices say."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics import indices


@onnx_rule("Gather")
def gather(node: OnnxNode) -> Node:
    x = node.input(0)
    _check_rank(node, x)
    axis = node.axis(len(x.shape))
    return indices.gathered(_filled(node, x, axis, node.input(1)), node.input(1), axis)


@onnx_rule("GatherElements")
def gather_elements(node: OnnxNode) -> Node:
    x, index = node.input(0), node.input(1)
    _check_rank(node, x)
    axis = node.axis(len(x.shape))
    _check_inside(node, x, index, axis)
    return indices.gathered_elements(_filled(node, x, axis, index), index, axis)


@onnx_rule("GatherND")
def gather_nd(node: OnnxNode) -> Node:
    x, index = node.input(0), node.input(1)
    batch = int(node.attribute("batch_dims", 0))
    _check_rank(node, x)
    _check_rank(node, index)
    columns = index.shape[-1]
    fits = 0 <= batch < min(len(x.shape), len(index.shape)) and x.shape[:batch] == index.shape[:batch]
    if not fits or not 1 <= columns <= len(x.shape) - batch:
        raise node.refused(
            f"indices {list(index.shape)} of {list(x.shape)} with {batch} batch dimensions", "export the model again"
        )
    return indices.gathered_slices(x, index, batch)


@onnx_rule("Scatter", "ScatterElements")
def scatter_elements(node: OnnxNode) -> Node:
    x, index, updates = node.input(0), node.input(1), node.input(2)
    _check_rank(node, x)
    axis, reduction = node.axis(len(x.shape)), _reduction(node)
    _check_inside(node, x, index, axis)
    if index.shape != updates.shape:
        raise node.refused(f"{list(index.shape)} indices for {list(updates.shape)} updates", "export the model again")
    return indices.scattered_elements(_filled(node, x, axis, index), index, updates, axis, reduction)


@onnx_rule("ScatterND")
def scatter_nd(node: OnnxNode) -> Node:
    x, index, updates = node.input(0), node.input(1), node.input(2)
    _check_rank(node, x)
    _check_rank(node, index)
    columns = index.shape[-1]
    if columns > len(x.shape) or updates.shape != (*index.shape[:-1], *x.shape[columns:]):
        raise node.refused(
            f"indices {list(index.shape)} and updates {list(updates.shape)} of {list(x.shape)}",
            "export the model again",
        )
    return indices.scattered_slices(x, index, updates, _reduction(node))


@onnx_rule("TensorScatter")
def tensor_scatter(node: OnnxNode) -> Node:
    cache, update, starts = node.input(0), node.input(1), node.optional(2)
    axis, mode = node.axis(len(cache.shape)), node.choice("mode", ("linear", "circular"))
    rest = [(*x.shape[:axis], *x.shape[axis + 1 :]) for x in (cache, update)]
    if axis == 0 or rest[0] != rest[1] or update.shape[axis] > cache.shape[axis]:
        raise node.refused(f"{list(update.shape)} into {list(cache.shape)} on axis {axis}", "export the model again")
    if starts is None:
        starts = constant(np.zeros(cache.shape[:1], np.int64), node.name)
    return indices.written_rows(cache, update, starts, axis, circular=mode == "circular")


@onnx_rule("OneHot")
def one_hot(node: OnnxNode) -> Node:
    index, values = node.input(0), node.input(2)
    axis = node.axis(len(index.shape) + 1)
    given = node.input(1)
    depth = int(given.value.reshape(-1)[0]) if given.op == CONSTANT else node.promised_shape("the depth")[axis]
    if math.prod(given.shape) != 1 or depth < 1 or values.shape != (2,):
        raise node.refused("it needs a depth of at least 1, and two values", "export the model again")
    return indices.one_hot(index, depth, values, axis)


def _reduction(node: OnnxNode) -> str:
    reduction = node.choice("reduction", indices.REDUCTIONS, default="none")
    if reduction != "none" and node.input_type(0) == TensorProto.BOOL:
        raise node.refused(f"reduction {reduction} of truth values is not supported")
    return reduction


def _check_rank(node: OnnxNode, x: Node) -> None:
    if not x.shape:
        raise node.refused("it reads a scalar, expected at least one dimension", "export the model again")


def _check_inside(node: OnnxNode, x: Node, index: Node, axis: int) -> None:
    """Indices of single elements lie below those of the tensor on every other axis."""
    fits = len(index.shape) == len(x.shape)
    if not fits or any(n > m for a, (n, m) in enumerate(zip(index.shape, x.shape, strict=True)) if a != axis):
        raise node.refused(f"indices {list(index.shape)} of {list(x.shape)}", "export the model again")


def _filled(node: OnnxNode, x: Node, axis: int, index: Node) -> Node:
    if x.shape[axis] == 0 and 0 not in index.shape:
        raise node.refused(f"it indexes an axis without elements of {list(x.shape)}", "export the model again")
    return x
