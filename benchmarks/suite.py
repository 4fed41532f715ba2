"""The models every speed claim is made on: nine light ONNX models, and nine that are written node by node.

    suite.names()                  their names
    suite.path("resnet50")         the ONNX file, built at the first call and kept in the user's cache
    suite.inputs("resnet50")       the two seeded inputs that outputs are compared on

The light models ship with the `onnx` package, their weights left as shapes; they get seeded random weights here. A
network of random weights has to be calibrated before its outputs can show an error: batch normalisation takes the
statistics of one input, and the last layer is scaled so that the logits have unit deviation and no softmax saturates.
A model that ends in a softmax also has its logits as a second output, so that one file is both timed and compared
before the softmax.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks import modern_networks, networks
from calumma.core.errors import InputError
from calumma.core.rng import generator
from calumma.peers import input_specs, random_inputs

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
WRITTEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet18": networks.resnet18,
    "mobilenet_v2": networks.mobilenet_v2,
    "bert": networks.bert,
    "vit_b_16": networks.vit_b_16,
    "minilm": modern_networks.minilm,
    "convnext_tiny": modern_networks.convnext_tiny,
    "efficientnet_b0": modern_networks.efficientnet_b0,
    "yolov8n": modern_networks.yolov8n,
    "whisper_encoder": modern_networks.whisper_encoder,
}
QUICK = ("squeezenet",)
"""The models of `--quick` runs."""

_CALIBRATION_SEED = 100
_LEAST_VARIANCE = {"efficientnet_b0": 0.5, "yolov8n": 0.5}
"""Of a channel, as a share of its layer's mean: a channel that is nearly constant on one input must not be blown up on
another. 0.1 in the other models; these two would let a deviation grow from layer to layer."""
_LINEAR = ("Conv", "Gemm")
_HOMOGENEOUS = ("Relu", "GlobalAveragePool", "AveragePool", "Flatten", "Reshape", "Dropout")
"""Operators that pass a positive factor on to their output."""


def names() -> tuple[str, ...]:
    """Names of all models."""
    return (*LIGHT, *WRITTEN)


def path(name: str) -> Path:
    """Return the ONNX file of a model, building it if it is not there.

    It lies in $CALUMMA_CACHE, or else `calumma/models` of the user's cache directory; its name carries a digest of the
    code that builds it.

    Raises:
        InputError: no such model.
    """
    if name not in names():
        raise InputError(f"no model {name!r} in the suite: one of {', '.join(names())}")
    file = cache() / f"{name}-{_digest()}.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        model = WRITTEN[name]() if name in WRITTEN else _light(name)
        _calibrate(model, _LEAST_VARIANCE.get(name, 0.1))
        onnx.checker.check_model(model)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{name}-", delete=False) as partial:
            partial.write(model.SerializeToString())
        os.replace(partial.name, file)
    return file


def torch_source(name: str) -> str | None:
    """Where the model is to be had as a torch module, "module:function"; None for the light ones."""
    return f"benchmarks.torch_models:{name}" if name in WRITTEN else None


def inputs(name: str) -> list[dict[str, np.ndarray]]:
    """The two inputs of a model, always the same."""
    specs = input_specs(path(name))
    return [random_inputs(specs, seed) for seed in (0, 1)]


def cache() -> Path:
    if "CALUMMA_CACHE" in os.environ:
        return Path(os.environ["CALUMMA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calumma" / "models"


def _digest() -> str:
    sources = (Path(__file__), Path(networks.__file__), Path(modern_networks.__file__))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


def _light(name: str) -> onnx.ModelProto:
    """A light model with seeded weights in place of its ConstantOfShape nodes: He scale, small biases."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    model.ir_version = 8  # initialisers need not be inputs from version 4 on
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = _scales(graph)
    rng = generator(0, name)
    nodes, weights = [], []
    for node in graph.node:
        if node.op_type == "Softmax" and not node.attribute:  # said aloud: converters of others assume a later default
            node.attribute.append(helper.make_attribute("axis", 1))
        if node.op_type != "ConstantOfShape":
            nodes.append(node)
            continue
        shape = constants[node.input[0]].tolist()
        if len(shape) > 1:
            array = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif node.output[0] in scales:
            array = rng.uniform(0.8, 1.2, shape)
        else:
            array = 0.1 * rng.standard_normal(shape)
        weights.append(numpy_helper.from_array(array.astype(np.float32, copy=False), node.output[0]))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    sources = [value for value in graph.input if value.name not in constants]
    for field, values in ((graph.node, nodes), (graph.initializer, [*kept, *weights]), (graph.input, sources)):
        del field[:]
        field.extend(values)
    return model


def _scales(graph: onnx.GraphProto) -> set[str]:
    """Names of the vectors that multiply: scales of batch normalisation, and what an Unsqueeze hands to a Mul."""
    factors = {name for node in graph.node if node.op_type == "Mul" for name in node.input}
    unsqueezed = {node.input[0] for node in graph.node if node.op_type == "Unsqueeze" and node.output[0] in factors}
    return unsqueezed | {node.input[1] for node in graph.node if node.op_type == "BatchNormalization"}


def _calibrate(model: onnx.ModelProto, least_variance: float) -> None:
    """Fit the statistics of every batch normalisation and the scale of the logits to one input, in place."""
    feed = random_inputs(input_specs(model), _CALIBRATION_SEED)
    _fit_batch_norms(model, feed, least_variance)
    graph = model.graph
    softmax = graph.node[-1] if graph.node[-1].op_type == "Softmax" else None
    logits = softmax.input[0] if softmax else graph.output[0].name
    (values,) = _evaluate(model, [logits], feed)
    if softmax:
        graph.output.append(helper.make_tensor_value_info(logits, TensorProto.FLOAT, values.shape))
    for weight in _last_weights(graph, logits):
        _set(graph, weight, numpy_helper.to_array(_tensor(graph, weight)) / values.std())


def _fit_batch_norms(model: onnx.ModelProto, feed: dict[str, np.ndarray], least_variance: float) -> None:
    """Set means and variances to those of one input.

    A normalisation changes what the next one sees, so they would have to be fitted one after another. Instance
    normalisation with the same parameters computes on this input what they will compute once fitted, all in one run.
    """
    fitted = onnx.ModelProto()
    fitted.CopyFrom(model)
    norms = [node for node in fitted.graph.node if node.op_type == "BatchNormalization"]
    targets = []
    for node in norms:
        targets.append((node.input[0], node.input[3], node.input[4]))
        epsilon = next((a for a in node.attribute if a.name == "epsilon"), None)
        instance = helper.make_node("InstanceNormalization", node.input[:3], node.output[:1])
        if epsilon is not None:
            instance.attribute.append(epsilon)
        node.CopyFrom(instance)
    if not targets:
        return
    for (_, mean, variance), x in zip(targets, _evaluate(fitted, [x for x, _, _ in targets], feed), strict=True):
        means, variances = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        variances = np.maximum(variances, least_variance * variances.mean())
        _set(model.graph, mean, means)
        _set(model.graph, variance, variances)


def _evaluate(model: onnx.ModelProto, tensors: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Values of any tensors of a model."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(tensors, feed)


def _last_weights(graph: onnx.GraphProto, tensor: str) -> list[str]:
    """Weights and bias of the last linear layer, if all after it passes a factor on; none if there is no such layer."""
    producers = {output: node for node in graph.node for output in node.output}
    while (node := producers.get(tensor)) is not None and node.op_type in _HOMOGENEOUS:
        tensor = node.input[0]
    if node is None or node.op_type not in _LINEAR:
        return []
    weights = []
    for weight in node.input[1:]:
        while weight in producers:  # two light models reshape theirs
            weight = producers[weight].input[0]
        weights.append(weight)
    return weights


def _tensor(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def _set(graph: onnx.GraphProto, name: str, array: np.ndarray) -> None:
    _tensor(graph, name).CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
