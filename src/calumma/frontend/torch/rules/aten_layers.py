"""Convolutions, products, pooling and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax, tirx

from calumma.core.errors import ModelError
from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, combined, operator, reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.operators.pooling.expression import AxisWindow
from calumma.semantics import activations, normalisation, pooling, products, resampling
from calumma.semantics import convolution as convolutions
from calumma.semantics.reductions import reduced
from calumma.semantics.resampling import Axis, Interpolation


@aten_rule("mm.default", "bmm.default")
def matmul(node: TorchNode, self: Node, mat2: Node) -> Node:
    return products.matmul(cast(self, node.dtype), cast(mat2, node.dtype))


@aten_rule("addmm.default", "baddbmm.default")
def addmm(
    node: TorchNode,
    self: Node,
    mat1: Node | None = None,
    mat2: Node | None = None,
    batch1: Node | None = None,
    batch2: Node | None = None,
    beta: float = 1,
    alpha: float = 1,
) -> Node:
    left, right = (batch1, batch2) if mat1 is None else (mat1, mat2)
    if left is None or right is None:
        raise node.refused("a factor is missing")
    result = products.matmul(left, right)
    if alpha != 1:
        result = operator(relax.op.multiply, result, scalar(alpha, node.dtype))
    if beta == 0:
        return result
    bias = self if beta == 1 else operator(relax.op.multiply, self, scalar(beta, node.dtype))
    return operator(relax.op.add, bias, result)


@aten_rule("addbmm.default")
def sum_of_products(node: TorchNode, self: Node, batch1: Node, batch2: Node, beta: float = 1, alpha: float = 1) -> Node:
    """The products of a batch, added up: one product, whose inner axis is batch and inner axis together."""
    (batch, rows, inner), columns = batch1.shape, batch2.shape[2]
    left = reshape(transpose(batch1, (1, 0, 2)), (rows, batch * inner))
    return addmm(node, self, mat1=left, mat2=reshape(batch2, (batch * inner, columns)), beta=beta, alpha=alpha)


@aten_rule("_trilinear.default")
def trilinear(
    node: TorchNode,
    i1: Node,
    i2: Node,
    i3: Node,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Node:
    """The product of three tensors with new axes, summed over some; `unroll_dim` decides how torch computes it."""
    factors = []
    for tensor, new in ((i1, expand1), (i2, expand2), (i3, expand3)):
        sizes = iter(tensor.shape)
        factors.append(reshape(tensor, [1 if a in new else next(sizes) for a in range(len(tensor.shape) + len(new))]))
    first, second, third = factors
    product = operator(relax.op.multiply, operator(relax.op.multiply, first, second), third)
    return reduced("sum", product, sumdim, keepdims=False)


@aten_rule("convolution.default")
def convolution(
    node: TorchNode,
    input: Node,
    weight: Node,
    bias: Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Node:
    spatial = len(weight.shape) - 2
    x = batched(input, spatial)
    strides, pads, dilations = (each(values, spatial) for values in (stride, padding, dilation))
    windows = [
        AxisWindow(kernel, s, p, p, d)
        for kernel, s, p, d in zip(weight.shape[2:], strides, pads, dilations, strict=True)
    ]
    if transposed:
        result = convolutions.transposed_convolution(x, weight, windows, node.shape[-spatial:], groups)
    else:
        result = convolutions.convolution(x, weight, windows, groups)
    return reshape(convolutions.with_bias(result, bias), node.shape)


def each(values: Sequence[int], count: int) -> list[int]:
    """One value per axis; a single one holds for all."""
    return list(values) * count if len(values) == 1 else list(values)


def windows_of(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], count: int
) -> list[AxisWindow]:
    """Windows over `count` axes; without strides they lie side by side."""
    sizes = each(kernel, count)
    strides = each(stride, count) if stride else sizes
    pads, dilations = each(padding, count), each(dilation, count)
    return [AxisWindow(k, s, p, p, d) for k, s, p, d in zip(sizes, strides, pads, dilations, strict=True)]


def batched(x: Node, spatial: int) -> Node:
    """With a batch of one where there is no axis of batches."""
    return x if len(x.shape) == spatial + 2 else reshape(x, (1, *x.shape))


@aten_rule("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def max_pool(
    node: TorchNode,
    self: Node,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Node, Node | None]:
    """The maximum of each window, and where in its image it is."""
    spatial = 2 if "2d" in node.op else 3
    windows = windows_of(kernel_size, stride, padding, dilation, spatial)
    x = batched(self, spatial)
    pooled = pooling.max_pool(x, windows, ceil_mode)
    values = reshape(pooled, node.shape)
    if len(node.fx.users) < 2 and all(user.args[1] == 0 for user in node.fx.users):
        return values, None
    places = pooling.max_pool_indices(x, pooled, windows)
    plane = math.prod(x.shape[2:])
    within = combined(lambda i: tirx.floormod(i, tirx.const(plane, "int64")), places, name="in_image")
    return values, reshape(within, node.shape)


@aten_rule("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def average_pool(
    node: TorchNode,
    self: Node,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    spatial = int(node.op[len("avg_pool")])
    windows = windows_of(kernel_size, stride, padding, (1,), spatial)
    x = batched(self, spatial)
    if divisor_override is None:
        return reshape(pooling.average_pool(x, windows, ceil_mode, count_include_pad), node.shape)
    total = pooling.window_sum(x, windows, ceil_mode)
    return reshape(operator(relax.op.divide, total, scalar(divisor_override, x.dtype)), node.shape)


@aten_rule("adaptive_avg_pool1d.default", "_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")
def adaptive_average(node: TorchNode, self: Node, output_size: Sequence[int]) -> Node:
    """The mean of windows that cover each axis evenly; they may overlap."""
    spatial = len(output_size)
    x = batched(self, spatial)
    if all(size == 1 for size in output_size):
        return reshape(pooling.global_mean(x), node.shape)
    taps = {axis: resampling.even_windows(x.shape[axis], size) for axis, size in enumerate(output_size, start=2)}
    return reshape(resampling.weighted(x, taps), node.shape)


@aten_rule(
    *("upsample_nearest1d.default", "upsample_nearest2d.default", "upsample_nearest3d.default"),
    *("_upsample_nearest_exact1d.default", "_upsample_nearest_exact2d.default", "_upsample_nearest_exact3d.default"),
)
def upsample_nearest(
    node: TorchNode,
    self: Node,
    output_size: Sequence[int],
    scales: float | None = None,
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Node:
    coordinates = "tf_half_pixel_for_nn" if "exact" in node.op else "asymmetric"
    how = Interpolation("nearest", coordinates, "floor")
    return _resized(self, output_size, [scales_d, scales_h, scales if scales is not None else scales_w], how)


@aten_rule("upsample_linear1d.default", "upsample_bilinear2d.default", "upsample_trilinear3d.default")
def upsample_linear(
    node: TorchNode,
    self: Node,
    output_size: Sequence[int],
    align_corners: bool,
    scales: float | None = None,
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Node:
    how = Interpolation("linear", "align_corners" if align_corners else "half_pixel")
    return _resized(self, output_size, [scales_d, scales_h, scales if scales is not None else scales_w], how)


@aten_rule("upsample_bicubic2d.default", "_upsample_bicubic2d_aa.default", "_upsample_bilinear2d_aa.default")
def upsample_smooth(
    node: TorchNode,
    self: Node,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Node:
    """Cubic, or with a filter that widens where an axis shrinks; that one has the coefficient -0.5."""
    wide = node.op.endswith("_aa")
    how = Interpolation(
        "cubic" if "bicubic" in node.op else "linear",
        "align_corners" if align_corners else "half_pixel",
        antialias=wide,
        cubic_a=-0.5 if wide else -0.75,
        exclude_outside=wide,
    )
    return _resized(self, output_size, [None, scales_h, scales_w], how)


def _resized(x: Node, sizes: Sequence[int], scales: Sequence[float | None], how: Interpolation) -> Node:
    """The last axes in other sizes; a scale that is given counts more than the sizes'."""
    first = len(x.shape) - len(sizes)
    given = scales[-len(sizes) :]
    axes = {
        first + i: Axis(x.shape[first + i], size, size / x.shape[first + i] if scale is None else float(scale))
        for i, (size, scale) in enumerate(zip(sizes, given, strict=True))
    }
    return resampling.resize(x, axes, how.taps)


@aten_rule("_native_batch_norm_legit_no_training.default")
def batch_norm(
    node: TorchNode,
    input: Node,
    weight: Node | None,
    bias: Node | None,
    running_mean: Node,
    running_var: Node,
    momentum: float,
    eps: float,
) -> tuple[Node | None, ...]:
    channels = input.shape[1]
    scale = constant(np.ones(channels, input.dtype)) if weight is None else weight
    shift = constant(np.zeros(channels, input.dtype)) if bias is None else bias
    empty = constant(np.zeros(0, input.dtype))
    return normalisation.batch_norm(input, scale, shift, running_mean, running_var, eps), empty, empty


@aten_rule("native_layer_norm.default")
def layer_norm(
    node: TorchNode,
    input: Node,
    normalized_shape: Sequence[int],
    weight: Node | None,
    bias: Node | None,
    eps: float,
) -> tuple[Node, ...]:
    count = len(normalized_shape)
    axes = list(range(len(input.shape) - count, len(input.shape)))
    mean, variance = normalisation.moments(input, axes)
    deviation = normalisation.reciprocal_root(variance, eps)
    return normalisation.layer_norm(input, weight, bias, count, eps), mean, deviation


@aten_rule("native_group_norm.default")
def group_norm(
    node: TorchNode,
    input: Node,
    weight: Node | None,
    bias: Node | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> tuple[Node, ...]:
    scale = constant(np.ones(C, input.dtype)) if weight is None else weight
    shift = constant(np.zeros(C, input.dtype)) if bias is None else bias
    mean, variance = normalisation.moments(reshape(input, (N, group, C // group * HxW)), [2])
    deviation = normalisation.reciprocal_root(variance, eps)
    result = normalisation.group_norm(input, scale, shift, group, eps)
    return result, reshape(mean, (N, group)), reshape(deviation, (N, group))


@aten_rule("_native_batch_norm_legit.no_stats")
def batch_norm_without_statistics(
    node: TorchNode,
    input: Node,
    weight: Node | None,
    bias: Node | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Node, ...]:
    """Normalisation by the statistics of the input itself: instance normalisation is made of it."""
    axes = [0, *range(2, len(input.shape))]
    mean, variance = normalisation.moments(input, axes)
    deviation = normalisation.reciprocal_root(variance, eps)
    result = operator(relax.op.multiply, operator(relax.op.subtract, input, mean), deviation)
    if weight is not None:
        result = normalisation.scaled(result, weight, bias)
    elif bias is not None:
        result = operator(relax.op.add, result, normalisation.per_channel(bias, input))
    return result, reshape(mean, (input.shape[1],)), reshape(deviation, (input.shape[1],))


@aten_rule("native_dropout.default")
def dropout(node: TorchNode, input: Node, p: float, train: bool | None) -> tuple[Node, Node]:
    """Everything kept, and the mask that says so; torch takes no word on `train` for yes."""
    if train is not False and p > 0:
        raise ModelError(
            f"node {node.name}: operator native_dropout is of training; call .eval() on the module before exporting it"
        )
    return input, constant(np.ones(input.shape, bool), node.name)


@aten_rule("prelu.default", "_prelu_kernel.default")
def prelu(node: TorchNode, self: Node, weight: Node) -> Node:
    if math.prod(weight.shape) > 1 and len(weight.shape) == 1 and len(self.shape) > 1:
        weight = reshape(weight, (1, weight.shape[0], *([1] * (len(self.shape) - 2))))
    return activations.prelu(self, weight)


@aten_rule("hardswish.default")
def hard_swish(node: TorchNode, self: Node) -> Node:
    """x * min(max(x + 3, 0), 6) / 6 in this order: what overflows in torch does so here."""
    gate = operator(relax.op.clip, operator(relax.op.add, self, scalar(3, self.dtype)), min=0, max=6)
    return operator(relax.op.divide, operator(relax.op.multiply, self, gate), scalar(6, self.dtype))


@aten_rule("hardsigmoid.default")
def hard_sigmoid(node: TorchNode, self: Node) -> Node:
    return activations.hard_sigmoid(self, 1 / 6, 0.5)
