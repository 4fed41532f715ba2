"""ONNX operators of every supported opset, imported, compiled with default schedules and compared with ONNX Runtime.

All nodes of one opset are outputs of one model, so that each opset is imported and built once. The newest is also built
for the narrower instruction sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from calumma.frontend.importer import import_model
from tests import isas
from tests.compiled_model import compiled


@dataclass
class Zoo:
    """A model under construction: every node added is an output."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    feeds: dict[str, NDArray] = field(default_factory=dict)
    weights: dict[str, NDArray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of outputs, where the model is to declare them."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def random(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def feed(self, array: NDArray) -> str:
        name = f"in_{len(self.feeds)}"
        self.feeds[name] = array
        return name

    def weight(self, array: Any) -> str:
        name = f"w_{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def add(self, operator: str, *operands: Any, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Add a node of names (inputs and earlier outputs), arrays (weights) and None (left out)."""
        names = ["" if x is None else x if isinstance(x, str) else self.weight(x) for x in operands]
        results = [f"{operator}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, results, domain=domain, **attributes))
        return results[0]

    def proto(self, *, infer: bool = True) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in self.feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for node in self.nodes for name in node.output]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "zoo", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        proto = onnx.shape_inference.infer_shapes(proto) if infer else proto
        for output in proto.graph.output:
            if output.name in self.shapes:
                element_type = output.type.tensor_type.elem_type
                output.CopyFrom(helper.make_tensor_value_info(output.name, element_type, self.shapes[output.name]))
        return proto

    def check(self, isa: str, tolerance: float = 1e-4, *, by_standard: bool = False) -> None:
        """Compile for an instruction set, run, and compare each output with ONNX Runtime or the standard's own code."""
        proto = self.proto()
        data = proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        runtime: Any = ReferenceEvaluator(proto) if by_standard else None
        runtime = runtime or onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found = compiled(import_model(data), isa).run(self.feeds)
        expected = runtime.run(None, self.feeds)
        wrong = [
            output.name
            for output, ours, theirs in zip(proto.graph.output, found, expected, strict=True)
            if not agree(ours, theirs, tolerance)
        ]
        assert not wrong


def agree(ours: NDArray, theirs: NDArray, tolerance: float) -> bool:
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return False
    if theirs.dtype.kind != "f":
        return bool(np.array_equal(ours, theirs))
    return bool(np.allclose(ours, theirs, rtol=0, atol=tolerance * max(_largest(theirs), 1.0), equal_nan=True))


def _largest(x: NDArray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def cases(*opsets: int) -> list[tuple[int, str]]:
    """All opsets for this CPU, the newest for narrower ones too."""
    return [*((opset, isas.NATIVE) for opset in opsets), *((opsets[-1], isa) for isa in isas.NARROWER)]


UNARY = [
    "Abs",
    "Asinh",
    "Atan",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsNaN",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Tanh",
    "ThresholdedRelu",
]


@pytest.mark.parametrize("isa", isas.ISAS)
def test_elementwise(isa: str) -> None:
    zoo = Zoo(17)
    x = zoo.feed(zoo.random(2, 3, 5, 7))
    positive = zoo.feed(np.abs(zoo.random(2, 3, 5, 7)) + np.float32(1.1))
    for operator in UNARY:
        zoo.add(operator, x)
    for operator in ("Log", "Sqrt", "Reciprocal", "Acosh"):
        zoo.add(operator, positive)
    for operator in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "GreaterOrEqual"):
        zoo.add(operator, x, positive)
        zoo.add(operator, x, zoo.feed(zoo.random(3, 1, 1)))
        zoo.add(operator, zoo.random(5, 7), x)
    zoo.add("Sum", x, positive, x)
    zoo.add("Mean", x, positive, x)
    zoo.add("Pow", positive, np.float32(2.5))
    zoo.add("Pow", x, np.int64(2))
    zoo.add("PRelu", x, zoo.random(3, 1, 1))
    zoo.add("Clip", x, np.float32(-0.5), np.float32(0.5))
    zoo.add("Clip", x, None, np.float32(0.5))
    zoo.add("Where", zoo.add("Greater", x, np.float32(0)), x, zoo.random(5, 1))
    zoo.add("BiasGelu", x, zoo.random(7), domain="com.microsoft")
    zoo.check(isa)


@pytest.mark.parametrize("opset, isa", cases(7, 11, 13, 18, 21))
def test_reductions_and_softmax(opset: int, isa: str) -> None:
    zoo = Zoo(opset)
    x = zoo.feed(zoo.random(2, 3, 5, 7))
    for operator in ("ReduceMax", "ReduceMean", "ReduceL2", "ReduceLogSumExp"):
        if opset < 18:
            zoo.add(operator, x, axes=[1, 3])
            zoo.add(operator, x, axes=[2], keepdims=0)
        else:
            zoo.add(operator, x, np.array([1, 3]))
            zoo.add(operator, x, np.array([-2]), keepdims=0)
    axes: dict[str, Any] = {"axes": [1]} if opset < 13 else {}
    zoo.add("ReduceSum", x, **axes)
    zoo.add("Softmax", x, axis=1)
    zoo.add("Softmax", x, axis=3)
    zoo.add("LogSoftmax", x, axis=3)
    zoo.add("ArgMax", x, axis=3)
    zoo.add("ArgMin", x, axis=1, keepdims=0)
    zoo.check(isa)


@pytest.mark.parametrize("opset, isa", cases(7, 10, 11, 13, 18, 21))
def test_shape_operators(opset: int, isa: str) -> None:
    zoo = Zoo(opset)
    x = zoo.feed(zoo.random(2, 3, 5, 7))
    pads = [0, 0, 1, 2, 0, 0, 3, 1]
    if opset < 10:
        zoo.add("Slice", x, starts=[0, 1], ends=[2, -1], axes=[1, 3])
    else:
        zoo.add("Slice", x, np.array([0, 1]), np.array([2, -1]), np.array([1, 3]), np.array([1, 2]))
        zoo.add("Slice", x, np.array([-1]), np.array([-100]), np.array([3]), np.array([-1]))
    for mode in ("constant", "reflect", "edge"):
        if opset < 11:
            zoo.add("Pad", x, pads=pads, mode=mode)
        else:
            zoo.add("Pad", x, np.array(pads), mode=mode)
    if opset < 13:
        zoo.add("Split", x, axis=3, split=[2, 5], outputs=2)
        axes: tuple[list, dict] = [], {"axes": [0, 2]}
    else:
        zoo.add("Split", x, np.array([2, 5]), axis=3, outputs=2)
        axes = [np.array([0, 2])], {}
    zoo.add("Relu", zoo.add("Unsqueeze", x, *axes[0], **axes[1]))
    zoo.add("Relu", zoo.add("Reshape", x, np.array([0, -1])))
    zoo.add("Relu", zoo.add("Flatten", x, axis=2))
    zoo.add("Transpose", x, perm=[0, 2, 3, 1])
    zoo.add("Concat", x, x, zoo.random(2, 1, 5, 7), axis=1)
    zoo.add("Tile", x, np.array([1, 2, 1, 3]))
    zoo.add("Gather", x, np.array([2, 0, -1] if opset >= 11 else [2, 0, 1]), axis=1)
    zoo.add("SpaceToDepth", zoo.feed(zoo.random(1, 2, 6, 4)), blocksize=2)
    zoo.add("DepthToSpace", zoo.feed(zoo.random(1, 8, 3, 4)), blocksize=2)
    if opset >= 8:
        zoo.add("Expand", zoo.feed(zoo.random(3, 1)), np.array([2, 3, 4]))
    if opset >= 12:
        zoo.add("Einsum", zoo.feed(zoo.random(2, 3, 4)), zoo.feed(zoo.random(2, 5, 4)), equation="bid,bjd->bij")
    zoo.check(isa)


@pytest.mark.parametrize("opset, isa", cases(7, 9, 10, 11, 13, 19))
def test_resize(opset: int, isa: str) -> None:
    zoo = Zoo(opset)
    x = zoo.feed(zoo.random(1, 3, 6, 8))
    scales = np.array([1, 1, 2, 2], np.float32)
    if opset < 9:
        zoo.add("Upsample", x, scales=scales.tolist(), mode="nearest")
    elif opset < 11:
        for mode in ("nearest", "linear"):
            zoo.add("Upsample" if opset < 10 else "Resize", x, scales, mode=mode)
    else:
        empty = np.array([], np.float32) if opset < 13 else None
        zoo.add("Resize", x, empty, scales, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        zoo.add("Resize", x, empty, scales, mode="linear")
        zoo.add(
            "Resize",
            x,
            empty,
            empty,
            np.array([1, 3, 9, 13]),
            mode="linear",
            coordinate_transformation_mode="align_corners",
        )
        zoo.add("Resize", x, empty, scales, mode="cubic")
    zoo.check(isa)


@pytest.mark.parametrize("opset, isa", cases(7, 21))
def test_convolutions_and_pools(opset: int, isa: str) -> None:
    zoo = Zoo(opset)
    x = zoo.feed(zoo.random(1, 8, 10, 9))
    zoo.add("Conv", x, zoo.random(20, 8, 3, 3), zoo.random(20), pads=[1, 1, 1, 1])
    zoo.add("Conv", x, zoo.random(6, 8, 3, 3), strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 0])
    zoo.add("Conv", x, zoo.random(8, 2, 3, 3), group=4)
    zoo.add("Conv", x, zoo.random(8, 1, 3, 3), zoo.random(8), group=8, pads=[1, 1, 1, 1])
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        zoo.add("Conv", x, zoo.random(6, 8, 2, 4), auto_pad=mode, strides=[2, 2])
        zoo.add("MaxPool", x, auto_pad=mode, kernel_shape=[3, 3], strides=[2, 2])
    zoo.add("Conv", zoo.feed(zoo.random(1, 4, 12)), zoo.random(6, 4, 3), zoo.random(6), pads=[1, 1])
    zoo.add("Conv", zoo.feed(zoo.random(1, 3, 5, 6, 7)), zoo.random(4, 3, 2, 3, 3), pads=[0, 1, 1, 0, 1, 1])
    zoo.add(
        "ConvTranspose",
        x,
        zoo.random(8, 5, 3, 3),
        zoo.random(5),
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    )
    zoo.add("ConvTranspose", x, zoo.random(8, 3, 3, 3), group=2)
    zoo.add("ConvTranspose", x, zoo.random(8, 24, 2, 2), zoo.random(24), strides=[2, 2])
    zoo.add("ConvTranspose", x, zoo.random(8, 20, 5, 3), strides=[3, 2], pads=[2, 0, 1, 1])
    zoo.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    zoo.add("AveragePool", x, kernel_shape=[3, 3])
    zoo.add("GlobalAveragePool", x)
    zoo.add("GlobalMaxPool", x)
    zoo.add("LRN", x, size=3)
    scale, shift, mean, variance = (
        zoo.random(20),
        zoo.random(20),
        zoo.random(20),
        np.abs(zoo.random(20)) + np.float32(0.5),
    )
    conv = zoo.add("Conv", x, zoo.random(20, 8, 1, 1), zoo.random(20))
    zoo.add("Relu", zoo.add("BatchNormalization", conv, scale, shift, mean, variance))
    if opset >= 11:
        zoo.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
        zoo.add("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2])
    zoo.check(isa)


@pytest.mark.parametrize("opset, isa", cases(7, 17))
def test_matrix_products_and_normalisation(opset: int, isa: str) -> None:
    zoo = Zoo(opset)
    rows = zoo.feed(zoo.random(4, 40))
    zoo.add("Gemm", rows, zoo.random(30, 40), zoo.random(30), transB=1)
    zoo.add("Gemm", rows, zoo.random(30, 4), zoo.random(40, 1), transA=1, transB=1, alpha=0.5, beta=2.0)
    zoo.add("MatMul", zoo.feed(zoo.random(2, 3, 4, 6)), zoo.feed(zoo.random(2, 3, 6, 5)))
    zoo.add("MatMul", zoo.feed(zoo.random(3, 4, 6)), zoo.feed(zoo.random(6, 5)))
    zoo.add("InstanceNormalization", zoo.feed(zoo.random(2, 8, 6, 5)), zoo.random(8), zoo.random(8))
    if opset >= 17:
        tokens = zoo.feed(zoo.random(2, 5, 16))
        zoo.add("LayerNormalization", tokens, zoo.random(16), zoo.random(16))
        skip = zoo.feed(zoo.random(2, 5, 16))
        zoo.add(
            "SkipLayerNormalization",
            tokens,
            skip,
            zoo.random(16),
            zoo.random(16),
            zoo.random(16),
            domain="com.microsoft",
        )
    ids = zoo.feed(np.array([[1, 2, 48], [0, 49, 7]]))
    zoo.add("Gather", zoo.random(50, 8), ids)
    zoo.check(isa)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_outputs_that_are_inputs_or_constants_and_an_unused_input(isa: str) -> None:
    zoo = Zoo(17)
    x = zoo.feed(zoo.random(2, 3))
    zoo.feed(zoo.random(4))
    y = zoo.add("Relu", x)
    zoo.add("Identity", x)
    zoo.add("Identity", zoo.random(5))
    zoo.add("Identity", y)
    zoo.add("Dropout", y)
    zoo.check(isa)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_integers_and_float64(isa: str) -> None:
    zoo = Zoo(17)
    i = zoo.feed(np.array([[7, -7, -9], [8, 3, -1]]))
    zoo.add("Div", i, np.array([3, -2, 5]))
    zoo.add("Sub", zoo.add("Mul", i, i), np.array([1, 2, 3]))
    zoo.add("Cast", i, to=TensorProto.FLOAT)
    d = zoo.feed(zoo.random(4, 8).astype(np.float64))
    zoo.add("Relu", zoo.add("MatMul", d, zoo.random(8, 9).astype(np.float64)))
    zoo.add("Cast", d, to=TensorProto.FLOAT)
    zoo.check(isa)
