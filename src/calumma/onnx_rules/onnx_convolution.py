"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.graph.build import operator
from calumma.graph.nodes import Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.onnx_import.sliding_windows import PADDINGS, distributed, per_axis, read_kernel, read_pads, read_windows
from calumma.operators.pooling.expression import AxisWindow
from calumma.semantics.convolution import convolution, transposed_convolution, with_bias
from calumma.semantics.grid_sampling import deformable_convolution
from calumma.semantics.movement import concatenated, sliced


@onnx_rule("Conv")
def conv(node: OnnxNode) -> Node:
    x, weight = node.input(0), node.input(1)
    groups = int(node.attribute("group"))
    windows = read_windows(node, x.shape[2:], weight.shape[2:])
    if groups < 1 or x.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        raise node.refused(f"{x.shape[1]} channels do not fit weights {list(weight.shape)} in {groups} groups")
    return with_bias(convolution(x, weight, windows, groups), node.optional(2))


@onnx_rule("ConvTranspose")
def conv_transpose(node: OnnxNode) -> Node:
    x, weight = node.input(0), node.input(1)
    groups = int(node.attribute("group"))
    if groups < 1 or x.shape[1] != weight.shape[0] or weight.shape[0] % groups:
        raise node.refused(f"{x.shape[1]} channels do not fit weights {list(weight.shape)} in {groups} groups")
    windows, outputs = _transposed_windows(node, x, weight)
    return with_bias(transposed_convolution(x, weight, windows, outputs, groups), node.optional(2))


@onnx_rule("DeformConv", since=19)
def deform_conv(node: OnnxNode) -> Node:
    x, weight, offset, mask = node.input(0), node.input(1), node.input(2), node.optional(4)
    groups, parts = int(node.attribute("group")), int(node.attribute("offset_group"))
    if len(x.shape) != 4:
        raise node.refused(f"it has {len(x.shape) - 2} spatial axes, supported are 2")
    windows = read_windows(node, x.shape[2:], weight.shape[2:])
    outputs = tuple(w.outputs(size) for w, size in zip(windows, x.shape[2:], strict=True))
    taps = windows[0].kernel * windows[1].kernel
    if offset.shape[1:] != (2 * parts * taps, *outputs) or x.shape[1] % parts or x.shape[1] != groups * weight.shape[1]:
        raise node.refused(f"offsets {list(offset.shape)} do not fit its operands", "export the model again")
    return with_bias(deformable_convolution(x, weight, offset, mask, windows, groups, parts), node.optional(3))


def _transposed_windows(node: OnnxNode, x: Node, weight: Node) -> tuple[tuple[AxisWindow, ...], tuple[int, ...]]:
    """The windows of a transposed convolution, and its spatial sizes, as ONNX Runtime derives them."""
    sizes = x.shape[2:]
    rank = len(sizes)
    kernel = read_kernel(node, rank, weight.shape[2:])
    strides, dilations = (per_axis(node, name, rank, 1) for name in ("strides", "dilations"))
    extra = per_axis(node, "output_padding", rank, 0)
    mode = node.choice("auto_pad", PADDINGS, "NOTSET")
    spans = tuple(
        (size - 1) * stride + more + (window - 1) * dilation + 1
        for size, stride, more, window, dilation in zip(sizes, strides, extra, kernel, dilations, strict=True)
    )
    wanted = tuple(node.attribute("output_shape", None) or ())[-rank:]
    if not wanted and mode.startswith("SAME"):
        wanted = tuple(size * stride for size, stride in zip(sizes, strides, strict=True))
    if wanted:
        node.ignore("pads")
        totals = [max(span - size, 0) for span, size in zip(spans, wanted, strict=True)]
        before, after = distributed(totals, more_after=mode == "SAME_UPPER")
        outputs = tuple(wanted if node.has_attribute("output_shape") else map(_left, spans, before, after))
    else:
        before, after = read_pads(node, rank) if mode == "NOTSET" else ((0,) * rank, (0,) * rank)
        node.ignore("pads")
        outputs = tuple(map(_left, spans, before, after))
    if min(outputs) < 1:
        raise node.refused(f"its result would have sizes {list(outputs)}", "export the model again")
    return tuple(map(AxisWindow, kernel, strides, before, after, dilations)), outputs


def _left(span: int, before: int, after: int) -> int:
    return span - before - after


@onnx_rule("CausalConvWithState", since=27)
def causal_conv(node: OnnxNode) -> Sequence[Node]:
    """Every channel by itself, over the tokens before each; also returns what the next call has to be given."""
    x, weight, bias, state = node.input(0), node.input(1), node.optional(2), node.optional(3)
    activation = node.choice("activation", ("none", "silu", "swish"))
    batch, channels, tokens = x.shape
    before = weight.shape[2] - 1
    if state is None:
        state = constant(np.zeros((batch, channels, before), x.dtype))
    line = concatenated([state, x], 2)
    result = with_bias(convolution(line, weight, [AxisWindow(before + 1)], channels), bias)
    if activation != "none":
        result = operator(relax.op.nn.silu, result)
    return [result, sliced(line, {2: slice(tokens, tokens + before)})]
