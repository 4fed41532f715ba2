"""Training workloads: layers as the functions that a real model's would become, and the tasks of a user's own models.

A drawn layer is written as a small ONNX model, with whatever has to stand around it so that its inputs come in the
layout which they have in a real model, and goes the way of all models: importer, graph passes, lowering, extraction.
So its workload has the hash, the template and the features of the real thing. That takes about 50 ms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tvm import tirx

from calumma.core.errors import InputError, InternalError
from calumma.core.values import Task
from calumma.frontend.importer import import_model
from calumma.frontend.lowering import lower
from calumma.frontend.simplify import simplify
from calumma.prior.networks import Layer, Window
from calumma.prior.sampling import SHARES, LayerSampler, in_turn
from calumma.space import KnobSpace, design_space
from calumma.target import Target
from calumma.tasks import extract

_OPSET = 17
_KEPT_SPACES = 64


@dataclass(frozen=True)
class TrainingWorkload:
    """A workload to collect measurements of."""

    task: Task
    function: tirx.PrimFunc
    """The unscheduled function."""
    family: str
    """Of the layer it was drawn as; the name of the model it is from, if it is a user's own."""
    origin: str
    """The layer, or the task's name in the model, for people."""


def drawn_workloads(
    target: Target,
    *,
    seed: int = 0,
    families: Sequence[str] = tuple(SHARES),
    exclude: Collection[str] = (),
    exclude_hashes: Collection[str] = (),
) -> Iterator[TrainingWorkload]:
    """Draw distinct workloads without end, families mixed by their shares; the same ones for the same arguments.

    Args:
        target: the CPU, whose lanes decide the blocked layout.
        seed: decides everything.
        families: those to draw from. What comes of a family does not depend on the others.
        exclude: networks of the table that are held out: their layers take no part in the distribution.
        exclude_hashes: workloads that must not come out, such as all those of held-out networks.

    Raises:
        InputError: a family or a network that does not exist.
    """
    unknown = sorted(set(families) - set(SHARES))
    if unknown or not families:
        raise InputError(f"no family is called {(unknown or [''])[0]!r}: one of {', '.join(SHARES)}")
    sampler = LayerSampler(seed, exclude)

    def draw() -> Iterator[TrainingWorkload]:
        seen = set(exclude_hashes)
        for family, number in in_turn(families):
            workload = realise(sampler.draw(family, number), target)
            if workload.task.workload.hash not in seen:
                seen.add(workload.task.workload.hash)
                yield workload

    return draw()


def model_workloads(
    models: Sequence[str | PathLike[str]], target: Target, *, exclude_hashes: Collection[str] = ()
) -> Iterator[TrainingWorkload]:
    """The distinct tasks of model files, one of each model in turn.

    Raises:
        InputError: a model that cannot be imported; none of them is begun then.
    """
    seen = set(exclude_hashes)
    queues: list[list[TrainingWorkload]] = []
    for model in models:
        imported = import_model(model)
        graph = lower(simplify(imported.graph), target)
        parts = extract(graph.mod, len(graph.inputs))
        queue = []
        for task in sorted(parts.tasks, key=lambda task: task.weight * task.flops, reverse=True):
            if task.workload.hash not in seen:
                seen.add(task.workload.hash)
                queue.append(TrainingWorkload(task, parts.functions[task.workload.hash], imported.name, task.name))
        queues.append(queue)
    longest = max(map(len, queues), default=0)
    return (queue[i] for i in range(longest) for queue in queues if i < len(queue))


def realise(layer: Layer, target: Target) -> TrainingWorkload:
    """The workload that a layer becomes.

    Raises:
        InternalError: it did not become a kernel of its own.
    """
    model = _Model()
    kernel = _WRITERS[layer.family](model, layer)
    graph = lower(simplify(import_model(model.serialised()).graph), target)
    parts = extract(graph.mod, len(graph.inputs))
    # The kernels around it are layout changes, and feeders: of several of one kind, the last one is the layer's.
    found = [task for task in parts.tasks if kernel in _words(task.name)]
    if not found:
        names = ", ".join(task.name for task in parts.tasks)
        raise InternalError(f"layer {layer} gave the kernels {names or 'none'}, expected a {kernel}")
    task = replace(found[-1], weight=1)
    return TrainingWorkload(task, parts.functions[task.workload.hash], layer.family, str(layer))


@functools.lru_cache(maxsize=_KEPT_SPACES)
def kept_space(function: Any, target: Target, threads: int) -> KnobSpace:
    """The design space of a function; kept, since a worker asks for it once per candidate."""
    return design_space(function, target, threads)


def _words(name: str) -> str:
    """A fused kernel's name, so that "conv2d" is not found in "depthwise_conv2d"."""
    return name.replace("depthwise_conv2d", "depthwise").replace("global_avg_pool2d", "mean")


class _Model:
    """An ONNX model under construction: values are named by strings."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._outputs: list[str] = []

    def input(self, *shape: int) -> str:
        name = f"input_{len(self._inputs)}"
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def weight(self, *shape: int) -> str:
        """Weights whose values do not matter, but are no pattern that could be folded: all 0.5."""
        return self.constant(np.full(shape, 0.5, np.float32))

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        result = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [result], name=result, **attributes))
        return result

    def output(self, name: str) -> str:
        """Make a value an output: what it is computed by becomes a kernel that nothing of its readers is fused into."""
        self._outputs.append(name)
        return name

    def serialised(self) -> bytes:
        graph = helper.make_graph(
            self._nodes,
            "layer",
            self._inputs,
            [onnx.ValueInfoProto(name=name) for name in self._outputs],
            self._weights,
        )
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()

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


def _gelu(m: _Model, x: str) -> str:
    erf = m.op("Erf", m.op("Div", x, m.constant(2**0.5)))
    return m.op("Mul", m.op("Mul", x, m.op("Add", erf, m.constant(1.0))), m.constant(0.5))


_STEPS: dict[str, Callable[[_Model, str], str]] = {
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


# -- writers: add a layer to a model, and return the name its kernel will have --------------------------


def _convolution(m: _Model, layer: Layer) -> str:
    depthwise = layer.family == "depthwise"
    inputs, size, window = layer.number("inputs"), layer.number("size"), Window.parse(layer.text("window"))
    outputs = inputs if depthwise else layer.number("outputs")
    groups = inputs if depthwise else layer.number("groups") if layer.family == "grouped" else 1
    top, left = window.padding
    result = m.op(
        "Conv",
        m.input(1, inputs, size, size),
        m.weight(outputs, inputs // groups, *window.kernel),
        kernel_shape=list(window.kernel),
        strides=[window.stride] * 2,
        dilations=[window.dilation] * 2,
        pads=[top, left, top, left],
        group=groups,
    )
    shape = (1, outputs, *window.results(size))
    m.output(m.epilogue(result, layer.text("epilogue"), (1, outputs, 1, 1), shape))
    return "depthwise" if depthwise else "conv2d"


def _transposed(m: _Model, layer: Layer) -> str:
    inputs, outputs, size = (layer.number(name) for name in ("inputs", "outputs", "size"))
    window = Window.parse(layer.text("window"))
    result = m.op(
        "ConvTranspose",
        m.input(1, inputs, size, size),
        m.weight(inputs, outputs, *window.kernel),
        strides=[window.stride] * 2,
        pads=[*window.padding, *window.padding],
    )
    m.output(m.epilogue(result, layer.text("epilogue"), (1, outputs, 1, 1), ()))
    return "conv2d"


def _dense(m: _Model, layer: Layer) -> str:
    rows, inputs, outputs = (layer.number(name) for name in ("rows", "inputs", "outputs"))
    batch = () if layer["form"] == "vector" else (1,)
    result = m.op("MatMul", m.input(*batch, rows, inputs), m.weight(inputs, outputs))
    m.output(m.epilogue(result, layer.text("epilogue"), (outputs,), (*batch, rows, outputs)))
    return "dense"


def _attention(m: _Model, layer: Layer) -> str:
    """Products of two activations that a reshape and a transpose have split into heads."""
    heads, rows, columns, inputs = (layer.number(name) for name in ("heads", "rows", "columns", "inputs"))

    def split(tokens: int, width: int, *axes: int) -> str:
        shape = m.constant([1, tokens, heads, width], "int64")
        return m.op("Transpose", m.op("Reshape", m.input(1, tokens, heads * width), shape), perm=list(axes))

    if layer["form"] == "scores":
        product = m.op("MatMul", split(rows, inputs, 0, 2, 1, 3), split(columns, inputs, 0, 2, 3, 1))
        m.output(m.op("Div", product, m.constant(inputs**0.5)))
    else:
        product = m.op("MatMul", m.input(1, heads, rows, inputs), split(inputs, columns, 0, 2, 1, 3))
        joined = m.constant([1, rows, heads * columns], "int64")
        m.output(m.op("Reshape", m.op("Transpose", product, perm=[0, 2, 1, 3]), joined))
    return "batch_matmul"


def _rows(m: _Model, layer: Layer) -> str:
    form, heads, rows, columns = layer.text("form"), *(layer.number(name) for name in ("heads", "rows", "columns"))
    if form == "layer_norm":
        weights = m.weight(columns), m.weight(columns)
        m.output(m.op("LayerNormalization", m.input(1, rows, columns), *weights, axis=-1, epsilon=1e-6))
    else:
        shape = (1, columns) if heads == rows == 1 else (1, heads, rows, columns)
        m.output(m.op("Softmax", m.input(*shape), axis=-1))
    return form


def _pool(m: _Model, layer: Layer) -> str:
    form, _, window_text = layer.text("form").partition(" ")
    x = m.blocked(layer.number("inputs"), layer.number("size"))
    if form == "mean":
        m.output(m.op("GlobalAveragePool", x))
        return "mean"
    if form == "lrn":
        m.output(m.op("LRN", x, size=5, alpha=1e-4, beta=0.75, bias=1.0))
        return "lrn"
    window = Window.parse(window_text)
    before, after = window.padding[0], window.padding[0] + (form == "max_ceil")
    m.output(
        m.op(
            "AveragePool" if form == "average" else "MaxPool",
            x,
            kernel_shape=list(window.kernel),
            strides=[window.stride] * 2,
            pads=[before, before, after, after],
        )
    )
    return "pool2d"


def _elementwise(m: _Model, layer: Layer) -> str:
    form, channels, size = layer.text("form"), layer.number("inputs"), layer.number("size")
    if form == "transpose":
        pixels = m.op("Reshape", m.input(1, channels, size, size), m.constant([1, channels, size * size], "int64"))
        m.output(m.op("Transpose", pixels, perm=[0, 2, 1]))
        return "transpose"
    x = m.output(m.blocked(channels, size))
    if form == "add":
        result, kernel = m.op("Add", x, m.output(m.blocked(channels, size))), "add"
    elif form == "gate":
        result, kernel = m.op("Mul", x, m.output(m.blocked(channels, 1))), "multiply"
    else:
        scaled = m.op("Mul", x, m.weight(1, channels, 1, 1))
        result, kernel = m.op("Relu", m.op("Add", scaled, m.weight(1, channels, 1, 1))), "multiply"
    # A convolution that reads it: a change of layout would become part of its kernel.
    m.output(m.op("Conv", result, m.weight(channels, 1, 1, 1), kernel_shape=[1, 1], group=channels))
    return kernel


_WRITERS: dict[str, Callable[[_Model, Layer], str]] = {
    **dict.fromkeys(("conv", "pointwise", "first", "grouped", "depthwise"), _convolution),
    "transposed": _transposed,
    "dense": _dense,
    "attention": _attention,
    "rows": _rows,
    "pool": _pool,
    "elementwise": _elementwise,
}
