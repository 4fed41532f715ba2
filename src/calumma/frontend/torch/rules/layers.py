"""Convolutions, products, pooling and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.frontend import activations
from calumma.frontend.torch.node import TorchNode
from calumma.frontend.torch.registry import aten_rule
from calumma.graph.build import cast, operator, reshape, scalar
from calumma.graph.nodes import Node, constant


@aten_rule("mm.default", "bmm.default")
def matmul(node: TorchNode, self: Node, mat2: Node) -> Node:
    return operator(relax.op.matmul, cast(self, node.dtype), cast(mat2, node.dtype))


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
    left, right = (mat1, mat2) if node.op == "addmm" else (batch1, batch2)
    result = operator(relax.op.matmul, left, right)
    if alpha != 1:
        result = operator(relax.op.multiply, result, scalar(alpha, node.dtype))
    if beta == 0:
        return result
    bias = self if beta == 1 else operator(relax.op.multiply, self, scalar(beta, node.dtype))
    return operator(relax.op.add, bias, result)


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
) -> tuple[Node, ...]:
    channels = input.shape[1]
    scale = constant(np.ones(channels, input.dtype)) if weight is None else weight
    shift = constant(np.zeros(channels, input.dtype)) if bias is None else bias
    result = operator(
        relax.op.nn.batch_norm, input, scale, shift, running_mean, running_var, axis=1, epsilon=eps, training=False
    )
    empty = constant(np.zeros(0, input.dtype))
    return result[0], empty, empty


@aten_rule("native_layer_norm.default")
def layer_norm(
    node: TorchNode,
    input: Node,
    normalized_shape: Sequence[int],
    weight: Node | None,
    bias: Node | None,
    eps: float,
) -> tuple[Node, ...]:
    shape = tuple(normalized_shape)
    axes = list(range(len(input.shape) - len(shape), len(input.shape)))
    scale = constant(np.ones(shape, input.dtype)) if weight is None else weight
    shift = constant(np.zeros(shape, input.dtype)) if bias is None else bias
    result = operator(relax.op.nn.layer_norm, input, scale, shift, axes=axes, epsilon=eps)
    mean = operator(relax.op.mean, input, axes, True)
    off = operator(relax.op.subtract, input, mean)
    variance = operator(relax.op.mean, operator(relax.op.multiply, off, off), axes, True)
    deviation = operator(relax.op.rsqrt, operator(relax.op.add, variance, scalar(eps, input.dtype)))
    return result, mean, deviation


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
    grouped = reshape(input, (N, group, C // group * HxW))
    mean = operator(relax.op.mean, grouped, [2], True)
    off = operator(relax.op.subtract, grouped, mean)
    variance = operator(relax.op.mean, operator(relax.op.multiply, off, off), [2], True)
    deviation = operator(relax.op.rsqrt, operator(relax.op.add, variance, scalar(eps, input.dtype)))
    result = reshape(operator(relax.op.multiply, off, deviation), input.shape)
    per_channel = (1, C, *([1] * (len(input.shape) - 2)))
    if weight is not None:
        result = operator(relax.op.multiply, result, reshape(weight, per_channel))
    if bias is not None:
        result = operator(relax.op.add, result, reshape(bias, per_channel))
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
    mean = operator(relax.op.mean, input, axes, True)
    off = operator(relax.op.subtract, input, mean)
    variance = operator(relax.op.mean, operator(relax.op.multiply, off, off), axes, True)
    deviation = operator(relax.op.rsqrt, operator(relax.op.add, variance, scalar(eps, input.dtype)))
    result = operator(relax.op.multiply, off, deviation)
    per_channel = (1, input.shape[1], *([1] * (len(input.shape) - 2)))
    if weight is not None:
        result = operator(relax.op.multiply, result, reshape(weight, per_channel))
    if bias is not None:
        result = operator(relax.op.add, result, reshape(bias, per_channel))
    return result, reshape(mean, (input.shape[1],)), reshape(deviation, (input.shape[1],))


@aten_rule("prelu.default", "_prelu_kernel.default")
def prelu(node: TorchNode, self: Node, weight: Node) -> Node:
    if math.prod(weight.shape) > 1 and len(weight.shape) == 1 and len(self.shape) > 1:
        weight = reshape(weight, (1, weight.shape[0], *([1] * (len(self.shape) - 2))))
    return activations.prelu(self, weight)


@aten_rule("hardswish.default")
def hard_swish(node: TorchNode, self: Node) -> Node:
    return activations.hard_swish(self)


@aten_rule("hardsigmoid.default")
def hard_sigmoid(node: TorchNode, self: Node) -> Node:
    return activations.hard_sigmoid(self, 1 / 6, 0.5)
