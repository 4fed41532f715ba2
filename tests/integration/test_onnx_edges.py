"""Models at the edge of what a graph is: no elements, half precision, quantised layers, training's outputs."""

from __future__ import annotations

import numpy as np
import pytest

from tests import isas
from tests.integration.test_import_onnx import Zoo


@pytest.mark.parametrize("isa", isas.ISAS)
def test_extents_of_zero(isa: str) -> None:
    """Of inputs, of results on the way, of outputs: what reduces over nothing is the operator's neutral element."""
    zoo = Zoo(13)
    x, wide = zoo.feed(zoo.random(4, 3)), zoo.feed(zoo.random(4, 7))
    none, deep = zoo.feed(np.zeros((0, 3), np.float32)), zoo.feed(np.zeros((4, 0), np.float32))
    zoo.add("Relu", zoo.add("Concat", x, none, axis=0))
    zoo.add("Relu", zoo.add("Concat", none, none, axis=0))
    empty = zoo.add("Slice", wide, np.array([5]), np.array([2]), np.array([1]))
    zoo.add("Neg", zoo.add("Concat", empty, wide, axis=1))
    zoo.add("MatMul", none, zoo.random(3, 5))
    zoo.add("Add", zoo.add("MatMul", deep, zoo.random(0, 6)), zoo.random(6))
    zoo.add("Transpose", none, perm=[1, 0])
    zoo.add("Shape", none)
    zoo.add("ReduceSum", none, np.array([0]), keepdims=0)
    zoo.add("Flatten", none, axis=0)
    zoo.add("Gather", x, np.zeros((0,), np.int64), axis=0)
    zoo.add("Softmax", none, axis=1)
    zoo.check(isa)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_models_of_half_precision(isa: str) -> None:
    """ONNX Runtime rounds after every layer, calumma at the end: both are within a few units of float16."""
    zoo = Zoo(17)
    half = np.float16

    def small(*shape: int) -> np.ndarray:
        return zoo.random(*shape).astype(half)

    rows, image = zoo.feed(small(6, 32)), zoo.feed(small(1, 16, 9, 9))
    dense = zoo.add("Add", zoo.add("MatMul", rows, small(32, 20)), small(20))
    zoo.add("Softmax", dense, axis=-1)
    zoo.add("LayerNormalization", rows, small(32), small(32), axis=-1)
    convolved = zoo.add("Conv", image, small(24, 16, 3, 3), small(24), pads=[1] * 4)
    zoo.add("GlobalAveragePool", zoo.add("Relu", convolved))
    zoo.add("Cast", zoo.add("Mul", rows, half(3)), to=1)
    zoo.add("Cast", zoo.add("Cast", zoo.feed(zoo.random(40) * 1000), to=10), to=1)
    zoo.add("Clip", rows, half(-0.5), half(0.5))
    zoo.check(isa, tolerance=4e-3)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_layers_between_quantised_values(isa: str) -> None:
    zoo = Zoo(13)
    scale, zero = np.float32(0.02), np.int8(0)
    image = zoo.feed(zoo.random(1, 3, 8, 8))
    read = zoo.add("DequantizeLinear", zoo.add("QuantizeLinear", image, scale, zero), scale, zero)
    weights = zoo.rng.integers(-50, 50, (4, 3, 3, 3)).astype(np.int8)
    convolved = zoo.add("Conv", read, zoo.add("DequantizeLinear", weights, scale, zero))
    zoo.add("QuantizeLinear", zoo.add("Relu", convolved), np.float32(0.013), np.uint8(3))
    zoo.check(isa)


def test_chains_of_functions() -> None:
    """Each uses its argument often: fusion that copied it would not end."""
    zoo = Zoo(17)
    for operator in ("Tanh", "Sigmoid", "Erf", "Softplus"):
        x = zoo.feed(zoo.random(2, 4))
        for _ in range(8):
            x = zoo.add(operator, x)
    zoo.check(isas.NATIVE)


def test_opset_of_current_exporters() -> None:
    zoo = Zoo(22)
    zoo.add("Relu", zoo.feed(zoo.random(1, 2, 4, 8)))
    zoo.add("Sinh", zoo.feed(zoo.random(3, 40)))
    zoo.check(isas.NATIVE)
