"""Sample layers: a layer of a network as a small model, from which the kernel comes that it would be in a real one.

A layer is written as ONNX, with whatever has to stand around it so that its inputs come in the layout which they have
in a real model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 17
_IR_VERSION = 8

AttributeValue = int | str


@dataclass(frozen=True)
class Layer:
    """One layer: the values of its family's attributes, in their order."""

    family: str
    values: tuple[tuple[str, AttributeValue], ...]

    def __getitem__(self, attribute: str) -> AttributeValue:
        return dict(self.values)[attribute]

    def number(self, attribute: str) -> int:
        """The value of an attribute that is a number."""
        return int(self[attribute])

    def text(self, attribute: str) -> str:
        """The value of an attribute that is a word."""
        return str(self[attribute])

    def __str__(self) -> str:
        return " ".join([self.family, *(f"{name}={value}" for name, value in self.values)])


@dataclass(frozen=True)
class LayerWindow:
    """What a convolution or a pooling sees at once, and how it moves, as a layer's attribute."""

    kernel: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)

    @classmethod
    def parse(cls, text: str) -> LayerWindow:
        """Read "3x3/2d1p1"."""
        kernel, _, rest = text.partition("/")
        stride, _, rest = rest.partition("d")
        dilation, _, padding = rest.partition("p")
        height, _, width = kernel.partition("x")
        top, _, left = padding.partition(",")
        return cls((int(height), int(width)), int(stride), int(dilation), (int(top), int(left or top)))

    def __str__(self) -> str:
        top, left = self.padding
        pads = f"{top}" if top == left else f"{top},{left}"
        return f"{self.kernel[0]}x{self.kernel[1]}/{self.stride}d{self.dilation}p{pads}"

    def results(self, size: int) -> tuple[int, int]:
        """Height and width of the result for a square input; 0 or less where the window does not fit."""
        high, wide = (
            (size + 2 * pad - self.dilation * (kernel - 1) - 1) // self.stride + 1
            for kernel, pad in zip(self.kernel, self.padding, strict=True)
        )
        return high, wide


class LayerModel:
    """An ONNX model under construction: values are named by strings."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._outputs: list[str] = []

    def input(self, *shape: int) -> str:
        """One more input."""
        name = f"input_{len(self._inputs)}"
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def weight(self, *shape: int) -> str:
        """Weights whose values do not matter, but are no pattern that could be folded: all 0.5."""
        return self.constant(np.full(shape, 0.5, np.float32))

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """A constant of given values."""
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The first result of an operator."""
        result = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [result], name=result, **attributes))
        return result

    def output(self, name: str) -> str:
        """Make a value an output: what it is computed by becomes a kernel that nothing of its readers is fused into."""
        self._outputs.append(name)
        return name

    def serialised(self) -> bytes:
        """The model as the bytes of an ONNX file."""
        graph = helper.make_graph(
            self._nodes,
            "layer",
            self._inputs,
            [onnx.ValueInfoProto(name=name) for name in self._outputs],
            self._weights,
        )
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION).SerializeToString()

    def blocked(self, channels: int, size: int) -> str:
        """A value in blocked layout, as a convolution leaves it: here a depthwise one of a single tap."""
        x = self.input(1, channels, size, size)
        return self.op("Conv", x, self.weight(channels, 1, 1, 1), kernel_shape=[1, 1], group=channels)

    def epilogue(self, x: str, steps: str, bias: tuple[int, ...], shape: tuple[int, ...]) -> str:
        """What follows in the same kernel; `shape` is that of x."""
        for step in filter(None, steps.split(",")):
            if step in _STEPS:
                x = _STEPS[step](self, x)
            elif step == "bias":
                x = self.op("Add", x, self.weight(*bias))
            else:
                x = self.op("Add", *((x, self.input(*shape)) if step == "add" else (self.input(*shape), x)))
        return x


SampleWriter = Callable[[LayerModel, Layer], str]
"""Adds a layer to a model; returns the name that its kernel will have."""


def _gelu(m: LayerModel, x: str) -> str:
    erf = m.op("Erf", m.op("Div", x, m.constant(2**0.5)))
    return m.op("Mul", m.op("Mul", x, m.op("Add", erf, m.constant(1.0))), m.constant(0.5))


_STEPS: dict[str, Callable[[LayerModel, str], str]] = {
    "relu": lambda m, x: m.op("Relu", x),
    "clip": lambda m, x: m.op("Clip", x, m.constant(0.0), m.constant(6.0)),
    "leaky": lambda m, x: m.op("LeakyRelu", x, alpha=0.1),
    "sigmoid": lambda m, x: m.op("Sigmoid", x),
    "hardsigmoid": lambda m, x: m.op("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    "hardswish": lambda m, x: m.op("HardSwish", x),
    "silu": lambda m, x: m.op("Mul", x, m.op("Sigmoid", x)),
    "tanh": lambda m, x: m.op("Tanh", x),
    "gelu": _gelu,
}
"""Steps of an epilogue that map each element; the others are additions."""
