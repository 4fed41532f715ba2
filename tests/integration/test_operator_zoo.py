"""ONNX operators that are easily compiled to something wrong, to nothing, or for ever: each against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from tvm import relax

from calumma import tvm_compat
from calumma.core.errors import ModelError
from calumma.frontend.importer import import_model
from calumma.graph.build import operator
from calumma.graph.nodes import INPUT, Graph, Node
from calumma.lowering.lowering import lower
from tests import isas
from tests.compiled_model import compiled
from tests.integration.test_import_onnx import Zoo

# Windows of stride 2 over rows of 9 give outputs narrower than a vector.
IMAGE = (1, 8, 10, 9)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_pools_that_leave_the_image(isa: str) -> None:
    zoo = Zoo(17)
    x = zoo.feed(zoo.random(*IMAGE))
    window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
    for padding in (
        {"pads": [1, 1, 1, 1]},
        {"pads": [1, 1, 1, 1], "ceil_mode": 1},
        {"ceil_mode": 1},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
    ):
        zoo.add("MaxPool", x, **window, **padding)
        zoo.add("AveragePool", x, **window, **padding)
        zoo.add("AveragePool", x, **window, **padding, count_include_pad=1)
    zoo.add("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1])
    zoo.check(isa)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_nested_functions_compile_in_no_time(isa: str) -> None:
    zoo = Zoo(18)
    x = zoo.feed(zoo.random(2, 8, 5, 7))
    zoo.add("Mish", x)
    zoo.add("LRN", x, size=5, alpha=0.2, beta=0.6, bias=1.5)
    zoo.add("Softplus", zoo.add("Softplus", zoo.add("Softplus", x)))
    chain = x
    for _ in range(8):
        chain = zoo.add("Mul", chain, zoo.add("Sigmoid", chain))
    zoo.add("GlobalAveragePool", chain)
    zoo.check(isa)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_scans_sorting_and_scattering(isa: str) -> None:
    zoo = Zoo(17)
    x = zoo.feed(zoo.random(2, 3, 5, 7))
    zoo.add("CumSum", x, np.int64(1))
    zoo.add("CumSum", x, np.int64(2), reverse=1)
    zoo.add("CumSum", x, np.int64(2), exclusive=1)
    rows = zoo.feed(zoo.random(6, 9))
    zoo.add("TopK", rows, np.array([4]), outputs=2)
    zoo.add("TopK", rows, np.array([2]), outputs=2, axis=0, largest=0)
    zoo.add("ScatterElements", rows, np.array([[0, 1, 2], [3, 4, 5]]), zoo.feed(zoo.random(2, 3)), axis=0)
    zoo.add("ScatterND", rows, np.array([[0], [4]]), zoo.feed(zoo.random(2, 9)))
    zoo.add("Gather", x, np.array(1), axis=2)
    zoo.check(isa)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_computed_indices_count_from_the_end_and_are_clamped(isa: str) -> None:
    zoo = Zoo(17)
    rows, updates = zoo.feed(zoo.random(4, 3)), zoo.feed(zoo.random(2, 3))
    elements = zoo.feed(np.array([[0, -1, 2], [3, -4, 1]]))
    points = zoo.feed(np.array([[0, 2], [-1, -3]]))
    zoo.add("GatherElements", rows, elements, axis=0)
    zoo.add("GatherND", rows, points)
    zoo.add("ScatterElements", rows, elements, updates, axis=0)
    zoo.add("ScatterND", rows, zoo.feed(np.array([[1], [-1]])), updates)
    zoo.check(isa)
    model = compiled(import_model(zoo.proto().SerializeToString()), isa)
    for value, nearest in ((10**9, zoo.feeds[rows][-1]), (-(10**9), zoo.feeds[rows][0])):
        feeds = zoo.feeds | {name: np.full_like(zoo.feeds[name], value) for name in (elements, points)}
        gathered, picked, *_ = model.run(feeds)  # what is scattered to one place is any of it
        np.testing.assert_array_equal(gathered, [nearest, nearest])
        np.testing.assert_array_equal(picked, [nearest[-1 if value > 0 else 0]] * 2)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_float64_is_computed_in_float64(isa: str) -> None:
    zoo = Zoo(17)
    x = zoo.feed(zoo.rng.standard_normal((2, 3, 8)))
    zoo.add("Softmax", x)
    zoo.add("LogSoftmax", x)
    zoo.add("LayerNormalization", x, np.ones(8), np.zeros(8))
    zoo.add("ReduceMean", x, axes=[2])
    zoo.add("ReduceMean", zoo.feed(zoo.rng.standard_normal((1, 3, 4, 4))), axes=[2, 3])
    zoo.add("MaxPool", zoo.feed(zoo.rng.standard_normal((1, 3, 5, 5))), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    zoo.check(isa, tolerance=1e-11)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_casts(isa: str) -> None:
    zoo = Zoo(17)
    x = zoo.feed(3 * zoo.random(2, 3, 5))
    positive = zoo.feed(np.abs(3 * zoo.random(2, 3, 5)))
    for kind in (TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.BOOL):
        zoo.add("Cast", x, to=kind)
    zoo.add("Cast", positive, to=TensorProto.UINT8)
    zoo.check(isa)


@pytest.mark.parametrize("kind", ["Flatten", "Reshape", "Squeeze", "Unsqueeze"])
def test_a_model_that_computes_nothing(kind: str) -> None:
    zoo = Zoo(17)
    x = zoo.feed(zoo.random(1, 3, 4))
    zoo.add(kind, x, *{"Reshape": [np.array([3, -1])], "Unsqueeze": [np.array([0])]}.get(kind, []))
    zoo.check(isas.NATIVE)


def test_an_operator_without_lowering_is_named() -> None:
    x = Node(INPUT, shape=(2, 3), dtype="float32", name="x")
    y = operator(relax.op.ewise_fma, x, x, x)
    with pytest.raises(ModelError, match="operator ewise_fma is not supported; export the model without it"):
        lower(Graph([x], [y], ["y"]), tvm_compat.target_for("x86-64-v4"))
