"""Activations."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from calumma.graph.build import operator, reshape
from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import CONTRIB, onnx_rule
from calumma.semantics import activations
from calumma.semantics.arithmetic import aligned

_WITH_NUMBERS: dict[str, tuple[Callable[..., Node], dict[str, float]]] = {
    "Celu": (activations.celu, {"alpha": 1.0}),
    "Elu": (activations.elu, {"alpha": 1.0}),
    "HardSigmoid": (activations.hard_sigmoid, {"alpha": 0.2, "beta": 0.5}),
    "HardSwish": (activations.hard_swish, {}),
    "LeakyRelu": (activations.leaky_relu, {"alpha": 0.01}),
    "Mish": (activations.mish, {}),
    "Selu": (activations.elu, {"alpha": 1.67326, "gamma": 1.0507}),
    "Shrink": (activations.shrink, {"bias": 0.0, "lambd": 0.5}),
    "Softplus": (activations.softplus, {}),
    "Softsign": (activations.softsign, {}),
    "Swish": (activations.swish, {"alpha": 1.0}),
    "ThresholdedRelu": (activations.thresholded_relu, {"alpha": 1.0}),
}
"""Operator -> its function, and the attributes that this takes with what they are by default."""


@onnx_rule(*_WITH_NUMBERS)
def with_numbers(node: OnnxNode) -> Node:
    node.ignore("consumed_inputs")
    function, defaults = _WITH_NUMBERS[node.op]
    return function(node.input(0), **{name: float(node.attribute(name, value)) for name, value in defaults.items()})


@onnx_rule("Gelu")
def gelu(node: OnnxNode) -> Node:
    approximate = node.choice("approximate", ("none", "tanh"), "none")
    return activations.gelu(node.input(0), approximate == "tanh")


@onnx_rule("Gelu", domain=CONTRIB)
def contrib_gelu(node: OnnxNode) -> Node:
    return activations.gelu(node.input(0), approximate=False)


@onnx_rule("BiasGelu", domain=CONTRIB)
def bias_gelu(node: OnnxNode) -> Node:
    return activations.gelu(operator(relax.op.add, node.input(0), node.input(1)), approximate=False)


@onnx_rule("FastGelu", domain=CONTRIB)
def fast_gelu(node: OnnxNode) -> Node:
    x, bias = node.input(0), node.optional(1)
    return activations.gelu(x if bias is None else operator(relax.op.add, x, bias), approximate=True)


@onnx_rule("QuickGelu", domain=CONTRIB)
def quick_gelu(node: OnnxNode) -> Node:
    return activations.swish(node.input(0), float(node.attribute("alpha", 1.702)))


@onnx_rule("PRelu")
def prelu(node: OnnxNode) -> Node:
    """Before version 7, a vector of slopes is one per channel."""
    node.ignore("consumed_inputs")
    x, slope = node.input(0), node.input(1)
    if node.version < 7 and len(x.shape) > 1 and len(slope.shape) == 1 and slope.shape[0] != 1:
        slope = reshape(slope, aligned(slope, len(x.shape), 1))
    return activations.prelu(x, slope)
