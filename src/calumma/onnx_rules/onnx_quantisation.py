"""Quantised operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from tvm import relax

from calumma.graph.build import cast, operator, reshape
from calumma.graph.nodes import CONSTANT, Node
from calumma.onnx_import.element_types import type_name
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import CONTRIB, onnx_rule
from calumma.onnx_import.sliding_windows import read_windows
from calumma.semantics.activations import leaky_relu
from calumma.semantics.convolution import convolution, with_bias
from calumma.semantics.element_casts import SMALL_FLOATS
from calumma.semantics.products import matmul
from calumma.semantics.quantisation import RANGES, Parameters, centred, dequantized, quantized, requantized


def _parameters(node: OnnxNode, x: Node, scale: Node, zero_point: Node | None) -> Parameters:
    """The parameters of an operator that takes an axis and blocks."""
    rank = len(x.shape)
    axis = int(node.attribute("axis", 1))
    block = int(node.attribute("block_size", 0))
    if block:
        axis = node.normalised_axis(axis, rank)
        wanted = tuple(-(-size // block) if dim == axis else size for dim, size in enumerate(x.shape))
        if scale.shape != wanted:
            raise node.refused(f"scales {scale.shape} for blocks of {block} of {x.shape}", "export the model again")
    elif scale.shape not in ((), (1,)):
        axis = node.normalised_axis(axis, rank)
        if scale.shape != (x.shape[axis],):
            raise node.refused(f"scales {scale.shape} for axis {axis} of {x.shape}", "export the model again")
    if zero_point is not None and zero_point.shape != scale.shape:
        zero_point = reshape(zero_point, scale.shape)
    return Parameters(cast(scale, "float32"), zero_point, axis, block)


@onnx_rule("QuantizeLinear")
@onnx_rule("QuantizeLinear", domain=CONTRIB)
def quantize_linear(node: OnnxNode) -> Node:
    x, scale, zero_point = node.input(0), node.input(1), node.optional(2)
    named = int(node.attribute("output_dtype", 0))
    target = type_name((node.input_type(2) if zero_point is not None else named) or TensorProto.UINT8)
    saturate = node.flag("saturate", 1)
    if int(node.attribute("precision", 0)) not in (0, TensorProto.FLOAT):
        raise node.refused("a precision other than float32 is not supported", "export it without precision")
    if target not in RANGES and target not in SMALL_FLOATS:
        raise node.refused(f"quantised to {target} is not supported", "quantise it to int8")
    if target in SMALL_FLOATS:
        _check_zeros(node, zero_point)
        zero_point = None
    return quantized(x, _parameters(node, x, scale, zero_point), target, saturate)


@onnx_rule("DequantizeLinear")
@onnx_rule("DequantizeLinear", domain=CONTRIB)
def dequantize_linear(node: OnnxNode) -> Node:
    x, scale, zero_point = node.input(0), node.input(1), node.optional(2)
    node.ignore("output_dtype")  # one of the floats that are computed in float32
    if x.dtype.startswith("float"):
        _check_zeros(node, zero_point)
        zero_point = None
    return dequantized(x, _parameters(node, x, scale, zero_point))


def _check_zeros(node: OnnxNode, zero_point: Node | None) -> None:
    """Refuse zero points of small floats that are not 0."""
    if zero_point is not None and (zero_point.op != CONSTANT or np.any(zero_point.value)):
        raise node.refused("a zero point of floats is not 0", "export the model again")


@onnx_rule("MatMulInteger")
def matmul_integer(node: OnnxNode) -> Node:
    left, right = node.input(0), node.input(1)
    a = centred(left, _of_rows(node.optional(2)))
    return matmul(a, centred(right, node.optional(3)))


def _of_rows(node: Node | None) -> Node | None:
    """What is one per row of a matrix, as a column."""
    return node if node is None or len(node.shape) != 1 or node.shape == (1,) else reshape(node, (*node.shape, 1))


def _quotient(left: Node, right: Node, result: Node) -> Node:
    product = operator(relax.op.multiply, cast(left, "float32"), cast(right, "float32"))
    return operator(relax.op.divide, product, cast(result, "float32"))


@onnx_rule("QLinearMatMul")
def qlinear_matmul(node: OnnxNode) -> Node:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (node.input(index) for index in range(8))
    total = matmul(centred(a, _of_rows(a_zero)), centred(b, b_zero))
    rows, columns = _of_rows(a_scale) or a_scale, b_scale
    if any(len(scale.shape) > 1 for scale in (a_scale, b_scale)):
        raise node.refused("scales of more than one dimension are not supported", "quantise it per tensor")
    scale = _quotient(rows, columns, reshape(y_scale, ()))
    return requantized(total, scale, y_zero, type_name(node.input_type(7)))


def _integer_convolution(node: OnnxNode, x: Node, weight: Node) -> Node:
    groups = int(node.attribute("group", 1))
    windows = read_windows(node, x.shape[2:], weight.shape[2:])
    if groups < 1 or x.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        raise node.refused(f"{x.shape[1]} channels do not fit weights {list(weight.shape)} in {groups} groups")
    return convolution(x, weight, windows, groups)


def _of_channels(node: Node | None, rank: int) -> Node | None:
    """What is one per first axis of a tensor, for broadcasting."""
    if node is None or node.shape in ((), (1,)):
        return None if node is None else reshape(node, ())
    return reshape(node, (*node.shape, *([1] * (rank - 1))))


@onnx_rule("ConvInteger")
def conv_integer(node: OnnxNode) -> Node:
    x, weight = node.input(0), node.input(1)
    x_zero, w_zero = node.optional(2), _of_channels(node.optional(3), len(weight.shape))
    return _integer_convolution(node, centred(x, x_zero), centred(weight, w_zero))


@onnx_rule("QLinearConv")
def qlinear_conv(node: OnnxNode) -> Node:
    x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = (node.input(index) for index in range(8))
    rank = len(weight.shape)
    total = _integer_convolution(node, centred(x, x_zero), centred(weight, _of_channels(w_zero, rank)))
    total = with_bias(total, node.optional(8))
    channels = w_scale if w_scale.shape in ((), (1,)) else reshape(w_scale, (*w_scale.shape, *([1] * (rank - 2))))
    scale = _quotient(reshape(x_scale, ()), channels, reshape(y_scale, ()))
    return requantized(total, scale, y_zero, type_name(node.input_type(7)))


# -- ONNX Runtime's own ---------------------------------------------------------------------------


def _dequantized(node: OnnxNode, first: int) -> Node:
    """Three inputs from `first` on: quantised numbers, their scale and their zero point, of the whole tensor."""
    x, scale, zero_point = node.input(first), node.input(first + 1), node.optional(first + 2)
    shift = None if zero_point is None else reshape(zero_point, ())
    return dequantized(x, Parameters(reshape(scale, ()), shift))


def _quantized(node: OnnxNode, x: Node, first: int, like: int) -> Node:
    """A result quantised by two inputs from `first` on, in the type of input `like`."""
    scale, zero_point = node.input(first), node.optional(first + 1)
    shift = None if zero_point is None else reshape(zero_point, ())
    return quantized(x, Parameters(reshape(scale, ()), shift), type_name(node.input_type(like)))


_QLINEAR_BINARY: dict[str, Any] = {"QLinearAdd": relax.op.add, "QLinearMul": relax.op.multiply}


@onnx_rule(*_QLINEAR_BINARY, domain=CONTRIB)
def qlinear_binary(node: OnnxNode) -> Node:
    value = operator(_QLINEAR_BINARY[node.op], _dequantized(node, 0), _dequantized(node, 3))
    return _quantized(node, value, 6, 0)


@onnx_rule("QLinearSigmoid", domain=CONTRIB)
def qlinear_sigmoid(node: OnnxNode) -> Node:
    return _quantized(node, operator(relax.op.sigmoid, _dequantized(node, 0)), 3, 0)


@onnx_rule("QLinearLeakyRelu", domain=CONTRIB)
def qlinear_leaky_relu(node: OnnxNode) -> Node:
    alpha = float(node.attribute("alpha", 0.01))
    return _quantized(node, leaky_relu(_dequantized(node, 0), alpha), 3, 0)
