"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from calumma.graph.build import cast, operator, reshape, scalar
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics import normalisation


@onnx_rule("BatchNormalization")
def batch_norm(node: OnnxNode) -> Sequence[Node]:
    """With the statistics that it is given, or in training mode with those of the batch."""
    x, *given = (node.input(index) for index in range(5))
    scale, shift, mean, variance = (cast(values, x.dtype) for values in given)
    epsilon, momentum = float(node.attribute("epsilon")), float(node.attribute("momentum"))
    if node.version < 7 and not node.attribute("is_test", 0):
        raise node.refused("it is in training mode", "export the model for inference")
    if node.version < 9 and not node.attribute("spatial", 1) and len(x.shape) > 2:
        scale, shift, mean, variance = (reshape(v, x.shape[1:]) for v in (scale, shift, mean, variance))
    node.ignore("consumed_inputs")
    if not node.attribute("training_mode", 0):
        return [normalisation.batch_norm(x, scale, shift, mean, variance, epsilon)]
    axes = [axis for axis in range(len(x.shape)) if axis != 1]
    batch_mean, batch_variance = (reshape(value, mean.shape) for value in normalisation.moments(x, axes))
    y = normalisation.batch_norm(x, scale, shift, batch_mean, batch_variance, epsilon)
    running = [_moved(old, new, momentum) for old, new in ((mean, batch_mean), (variance, batch_variance))]
    return [y, *(cast(value, like.dtype) for value, like in zip(running, given[2:], strict=True))]


def _moved(old: Node, new: Node, momentum: float) -> Node:
    kept = operator(relax.op.multiply, old, scalar(momentum, old.dtype))
    return operator(relax.op.add, kept, operator(relax.op.multiply, new, scalar(1 - momentum, new.dtype)))


@onnx_rule("InstanceNormalization")
def instance_norm(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    return normalisation.instance_norm(node.input(0), node.input(1), node.input(2), float(node.attribute("epsilon")))


@onnx_rule("LayerNormalization")
def layer_norm(node: OnnxNode) -> Sequence[Node | None]:
    x, scale, shift = node.input(0), node.input(1), node.optional(2)
    node.ignore("stash_type")
    axes = len(x.shape) - node.axis(len(x.shape))
    epsilon = float(node.attribute("epsilon"))
    results: list[Node | None] = [normalisation.layer_norm(x, scale, shift, axes, epsilon), None, None]
    if node.wants(1) or node.wants(2):
        mean, variance = normalisation.moments(x, list(range(len(x.shape) - axes, len(x.shape))))
        deviation = normalisation.reciprocal_root(variance, epsilon)
        results[1:] = [cast(value, node.output_dtype(1 if node.wants(1) else 2)) for value in (mean, deviation)]
    return results


@onnx_rule("GroupNormalization", since=18)
def group_norm(node: OnnxNode) -> Node:
    """Scale and shift are of groups before version 21, of channels from there on."""
    x, groups = node.input(0), int(node.attribute("num_groups"))
    node.ignore("stash_type")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise node.refused(f"{channels} channels do not divide into {groups} groups")
    scale, shift = (_for_channels(node.input(index), channels) for index in (1, 2))
    return normalisation.group_norm(x, scale, shift, groups, float(node.attribute("epsilon")))


def _for_channels(values: Node, channels: int) -> Node:
    times = channels // values.shape[0]
    if times == 1:
        return values
    if values.op == CONSTANT:
        return constant(np.repeat(values.value, times), values.name)
    return operator(relax.op.repeat, values, times, 0)


@onnx_rule("RMSNormalization", since=23)
def rms_norm(node: OnnxNode) -> Node:
    x = node.input(0)
    node.ignore("stash_type")
    axes = len(x.shape) - node.axis(len(x.shape))
    return normalisation.rms_norm(x, node.input(1), axes, float(node.attribute("epsilon")))


@onnx_rule("LpNormalization")
def lp_norm(node: OnnxNode) -> Node:
    x, p = node.input(0), int(node.attribute("p"))
    if p not in (1, 2):
        raise node.refused(f"p is {p}, known are 1 and 2")
    return normalisation.lp_norm(x, node.axis(len(x.shape)), p)


@onnx_rule("LRN")
def lrn(node: OnnxNode) -> Node:
    x = node.input(0)
    if x.dtype != "float32" or len(x.shape) < 2:
        raise node.refused(f"its input is {x.dtype}{list(x.shape)}", "convert it to float32 images")
    alpha, beta, bias = (float(node.attribute(name)) for name in ("alpha", "beta", "bias"))
    return normalisation.local_response_norm(x, int(node.attribute("size")), alpha, beta, bias)


@onnx_rule("MeanVarianceNormalization", since=9)
def mean_variance_norm(node: OnnxNode) -> Node:
    x = node.input(0)
    axes = [node.normalised_axis(int(axis), len(x.shape)) for axis in node.attribute("axes")]
    mean, variance = normalisation.moments(x, axes)
    deviation = operator(relax.op.add, operator(relax.op.sqrt, variance), scalar(1e-9, x.dtype))
    return operator(relax.op.divide, operator(relax.op.subtract, x, mean), deviation)
