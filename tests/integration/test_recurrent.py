"""Recurrent layers of ONNX and torch: values, against ONNX Runtime, ONNX's reference and torch; refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import calumma
from calumma import tvm_compat
from calumma.core.errors import ModelError
from calumma.core.values import Candidate, Status
from calumma.families.samples import Layer
from calumma.graph.imported_model import ImportedModel
from calumma.graph.nodes import INPUT, Graph, Node, constant
from calumma.measure import LocalRunner
from calumma.pipeline.compile_options import CompileOptions
from calumma.pipeline.preparation import prepare
from calumma.prior.workloads import realise
from calumma.semantics.recurrent import torch_layers
from tests.compiled_model import compiled

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_RESULTS = {"LSTM": 3, "GRU": 2, "RNN": 2}


class Layers:
    """A model of recurrent layers, each with an input of its own and all its results as outputs."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.feeds: dict[str, NDArray] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._outputs: list[str] = []

    def add(
        self,
        cell: str,
        steps: int,
        batch: int,
        hidden: int,
        *,
        lengths: list[int] | None = None,
        fixed: bool = True,
        initial: bool = False,
        peepholes: bool = False,
        bias: bool = True,
        **attributes: Any,
    ) -> None:
        """One layer of three inputs; with `fixed` all but x is a constant of the model."""
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        rows, batch_first = _GATES[cell] * hidden, attributes.get("layout", 0)
        put = self._constant if fixed else self._feed
        state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
        names = [
            self._feed(self._draw(*((batch, steps, 3) if batch_first else (steps, batch, 3)))),
            put(self._draw(directions, rows, 3)),
            put(self._draw(directions, rows, hidden)),
            put(self._draw(directions, 2 * rows)) if bias else "",
            put(np.array(lengths, np.int32)) if lengths else "",
            put(self._draw(*state)) if initial else "",
        ]
        if cell == "LSTM":
            names += [put(self._draw(*state)) if initial else "", put(self._draw(directions, 3 * hidden))]
            if not peepholes:
                names[-1] = ""
        results = [f"{cell}_{len(self._nodes)}_{i}" for i in range(_RESULTS[cell])]
        self._outputs += results
        name = f"{cell}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(cell, names, results, name=name, hidden_size=hidden, **attributes))

    def model(self, opset: int = 22) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in self.feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in self._outputs]
        graph = helper.make_graph(self._nodes, "recurrent", inputs, outputs, self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)

    def _draw(self, *shape: int) -> NDArray[np.float32]:
        return (0.5 * self._rng.standard_normal(shape)).astype(np.float32)

    def _constant(self, value: NDArray) -> str:
        self._weights.append(numpy_helper.from_array(value, f"weight_{len(self._weights)}"))
        return self._weights[-1].name

    def _feed(self, value: NDArray) -> str:
        name = f"input_{len(self.feeds)}"
        self.feeds[name] = value
        return name


def _check(layers: Layers, model: onnx.ModelProto, expected: list[NDArray]) -> None:
    found = calumma.compile(model.SerializeToString(), threads=2).artifact.run(layers.feeds)
    for output, ours, theirs in zip(model.graph.output, found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=output.name)


def test_everything_that_onnx_runtime_computes() -> None:
    layers = Layers()
    every: dict[str, Any] = {"initial": True, "direction": "bidirectional"}
    layers.add("LSTM", 40, 1, 32)
    layers.add("LSTM", 17, 1, 18, direction="bidirectional", bias=False, lengths=[11])
    layers.add("GRU", 16, 1, 18, direction="bidirectional", initial=True, linear_before_reset=1)
    layers.add("LSTM", 5, 3, 20, lengths=[5, 0, 3], peepholes=True, clip=0.4, fixed=False, **every)
    layers.add("LSTM", 4, 2, 18, lengths=[4, 1], peepholes=True, input_forget=1, direction="reverse", bias=False)
    layers.add("LSTM", 4, 1, 7, activations=["HardSigmoid", "Softsign", "Relu"], activation_alpha=[0.3])
    layers.add("GRU", 5, 3, 20, lengths=[1, 5, 3], **every)
    layers.add("GRU", 4, 1, 5, linear_before_reset=1, fixed=False, direction="reverse", clip=0.3)
    layers.add("GRU", 4, 2, 19, linear_before_reset=1, lengths=[3, 4], **every)
    layers.add("RNN", 5, 3, 20, lengths=[1, 5, 3], fixed=False, **every)
    for function, alpha, beta in (
        ("Relu", [], []),
        ("Affine", [0.5], [0.1]),
        ("LeakyRelu", [0.2], []),
        ("ThresholdedRelu", [0.3], []),
        ("ScaledTanh", [1.2], [0.7]),
        ("HardSigmoid", [], []),
        ("Elu", [0.9], []),
        ("Softplus", [], []),
    ):
        values: dict[str, Any] = {"activation_alpha": alpha, "activation_beta": beta}
        values = {"activations": [function], **{name: value for name, value in values.items() if value}}
        layers.add("RNN", 3, 2, 5, **values)
    model = layers.model()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    _check(layers, model, session.run(None, layers.feeds))


def test_batches_first() -> None:
    layers = Layers()
    for cell in _GATES:
        layers.add(cell, 4, 2, 6, layout=1, initial=True)
    model = layers.model(14)
    _check(layers, model, ReferenceEvaluator(model).run(None, layers.feeds))


def test_what_is_not_supported_is_refused() -> None:
    layers = Layers()
    layers.add("RNN", 2, 1, 3, activations=["Swish"])
    with pytest.raises(
        ModelError, match=r"node RNN_0: operator RNN: activation function Swish is not supported, known"
    ):
        calumma.compile(layers.model().SerializeToString(), threads=2)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_torch_modules(module: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = getattr(torch.nn, module)(3, 10, **options)
    layers, directions = options.get("num_layers", 1), 2 if layer.bidirectional else 1
    states = [torch.randn(layers * directions, 2, 10) for _ in range(2 if module == "LSTM" else 1)]
    x = torch.randn(2, 4, 3) if layer.batch_first else torch.randn(4, 2, 3)
    with torch.no_grad():
        sequence, last = layer(x, tuple(states) if module == "LSTM" else states[0])
    feeds = {f"x{i}": tensor.numpy() for i, tensor in enumerate([x, *states])}
    nodes = [Node(INPUT, shape=array.shape, dtype="float32", name=name) for name, array in feeds.items()]
    results = torch_layers(
        nodes[0],
        module.lower(),
        [constant(parameter.detach().numpy()) for parameter in layer._flat_weights],
        nodes[1:],
        layers=layers,
        biased=layer.bias,
        bidirectional=layer.bidirectional,
        batch_first=layer.batch_first,
        activation=options.get("nonlinearity", "tanh"),
    )
    graph = Graph(nodes, list(results), [f"y{i}" for i in range(len(results))])
    found = compiled(ImportedModel(graph, module, "", {})).run(feeds)
    expected = [sequence, *(last if module == "LSTM" else [last])]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_a_sample_layer_is_the_kernel_of_a_model() -> None:
    values: dict[str, int | str] = {
        "cell": "GRU",
        "direction": "reverse",
        "steps": 3,
        "rows": 2,
        "inputs": 5,
        "hidden": 7,
    }
    workload = realise(Layer("recurrent", tuple(values.items())), tvm_compat.target_for())
    assert workload.task.arguments[0] == ((3, 2, 3 * 7), "float32")
    products = 3 * 2 * 2 * 3 * 7 * 7
    assert products < workload.task.flops < 2 * products + 3 * 2 * 7 * 3 * 40


def test_a_long_sequence_can_be_verified() -> None:
    """Weights as large as other random arguments would make a chaotic system of it."""
    layers = Layers()
    layers.add("RNN", 100, 2, 96, lengths=[100, 70], fixed=False)
    model = prepare(layers.model().SerializeToString(), CompileOptions(threads=2))
    (task,) = (task for task in model.tasks if task.anchor == "recurrent")
    space = model.spaces[task.workload.hash]
    drawn = space.sample(np.random.default_rng(0), 3)
    candidates = [Candidate(task.workload, space.template, space.version, space.decode(row)) for row in drawn]
    with LocalRunner(tvm_compat.target_for(), 2) as runner:
        verdicts = runner.verify(candidates)
    assert [(verdict.status, verdict.reason) for verdict in verdicts] == [(Status.OK, "")] * 3
