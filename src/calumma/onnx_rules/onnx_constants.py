"""Constants, and what is known of a tensor without computing it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import helper

from calumma.extents.run_time_sizes import number_of_elements, sizes_of
from calumma.graph.build import check_size, scalar
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.onnx_import.element_types import computed_dtype
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics import movement

_NUMBERS = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}


@onnx_rule("Constant")
def constant_node(node: OnnxNode) -> Node:
    """The value of its one attribute; sparse and text ones are refused."""
    for name, dtype in _NUMBERS.items():
        if node.has_attribute(name):
            return constant(np.asarray(node.attribute(name), dtype), node.name)
    value = node.attribute("value", None)
    if value is None:
        raise node.refused("it is neither a tensor nor a number")
    return constant(value.astype(node.output_dtype()), node.name)


@onnx_rule("Identity")
def identity(node: OnnxNode) -> Node:
    return node.input(0)


@onnx_rule("Shape")
def shape(node: OnnxNode) -> Node:
    return sizes_of(node.input(0), node.attribute("start", 0), node.attribute("end", None))


@onnx_rule("Size")
def size(node: OnnxNode) -> Node:
    return number_of_elements(node.input(0))


@onnx_rule("ConstantOfShape")
def constant_of_shape(node: OnnxNode) -> Node:
    shape = (node.integers(0, "the shape") or ()) if node.is_known(0) else node.promised_shape("the shape")
    node.input(0)
    if any(extent < 0 for extent in shape):
        raise node.refused(f"{list(shape)} is no shape", "export the model again")
    value = node.attribute("value", None)
    value = np.zeros(1, np.float32) if value is None else value
    if value.size != 1:
        raise node.refused(f"its value has {value.size} elements", "give one")
    dtype = computed_dtype(int(helper.np_dtype_to_tensor_dtype(value.dtype)))
    check_size(node.name, dtype, shape)
    return movement.broadcast(scalar(value.reshape(()), dtype), shape)


@onnx_rule("Range")
def range_rule(node: OnnxNode) -> Node:
    node.ignore("stash_type")  # narrow floats are computed in float32
    if any(math.prod(given.shape) != 1 for given in node.inputs()):
        raise node.refused("start, limit and delta are scalars", "export the model again")
    if not all(node.is_known(index) for index in range(3)):
        (count,) = node.promised_shape("where it ends")
        return movement.counted(node.input(0), node.input(2), count)
    values = [node.constant(index, what) for index, what in enumerate(("the start", "the limit", "the delta"))]
    start, limit, delta = (value.reshape(())[()] for value in values)
    if delta == 0 or not all(np.isfinite((start, limit, delta))):
        raise node.refused(f"from {start} to {limit} in steps of {delta}", "export the model again")
    if values[0].dtype.kind == "f":
        count = max(int(np.ceil((float(limit) - float(start)) / float(delta))), 0)
    else:
        count = len(range(int(start), int(limit), int(delta)))
    check_size(node.name, str(values[0].dtype), (count,))
    return constant((start + np.arange(count, dtype=values[0].dtype) * delta).astype(values[0].dtype), node.name)


@onnx_rule("EyeLike")
def eye_like(node: OnnxNode) -> Node:
    shape = node.input(0).shape
    dtype = computed_dtype(int(node.attribute("dtype", node.input_type(0))))
    if len(shape) != 2:
        raise node.refused(f"it reads {list(shape)}, expected a matrix", "export the model again")
    check_size(node.name, dtype, shape)
    return constant(np.eye(*shape, k=int(node.attribute("k")), dtype=dtype), node.name)


@onnx_rule("Dropout")
def dropout(node: OnnxNode) -> Sequence[Node]:
    x = node.input(0)
    node.ignore("ratio", "seed", "consumed_inputs")  # of training alone
    trains = node.version < 7 and not node.attribute("is_test")
    if node.version >= 12:
        ratio, trains = node.optional(1), node.optional(2) is not None
        if trains and node.is_known(2):
            trains = bool(node.constant(2, "training_mode").any())
        if ratio is not None and ratio.op == CONSTANT and not ratio.value.any():
            trains = False
    if trains:
        raise node.refused("it drops random elements where training_mode is set", "export the model for inference")
    if not node.wants(1):
        return [x]
    return [x, movement.broadcast(scalar(1, node.output_dtype(1)), x.shape)]
