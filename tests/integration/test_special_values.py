"""NaN, infinities, zeros and subnormals through ONNX and torch models: what NumPy and torch make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.frontend.importer import import_model
from tests import isas
from tests.compiled_model import compiled
from tests.onnx_models import Model

torch = pytest.importorskip("torch", reason="torch is an extra")
functional = torch.nn.functional

NAN, INF = np.nan, np.inf
VALUES = np.array(
    [NAN, -NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 2.5, 88.8, -110.0, 0.5], np.float32
)
A, B = (np.ascontiguousarray(grid) for grid in np.meshgrid(VALUES, VALUES))
ROWS = np.stack(
    [np.roll(np.r_[value, np.arange(36, dtype=np.float32)], place) for value in VALUES[:4] for place in (0, 7, 36)]
    + [np.full(37, value, np.float32) for value in VALUES]
)


def image(channels: int) -> NDArray[np.float32]:
    """Random pixels (1, channels, 9, 11), some of them NaN or infinite, two channels throughout."""
    x = np.random.default_rng(0).standard_normal((1, channels, 9, 11), dtype=np.float32)
    x[0, 1, 2, 3] = x[0, 5, 0, 0] = x[0, 7, 8, 10] = NAN
    x[0, 2, 4, 4], x[0, 3] = INF, -INF
    return x


def pooled(x: NDArray, kernel: int, stride: int, padding: int, dilation: int = 1) -> NDArray:
    """Maximum of each window."""
    around = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    padded = np.pad(x, around, constant_values=-INF)
    span = (kernel - 1) * dilation + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (span, span), (2, 3))
    return windows[:, :, ::stride, ::stride, ::dilation, ::dilation].max((4, 5))


def same(found: NDArray, expected: NDArray, tolerance: float = 1e-5) -> bool:
    """Equal where not finite, close where finite; subnormal differences do not count."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    finite = np.isfinite(expected)
    near = np.abs(found[finite] - expected[finite]) <= tolerance * np.abs(expected[finite]) + 1e-37
    return bool(np.array_equal(found[~finite], expected[~finite], equal_nan=True) and near.all())


def softmax(x: NDArray) -> NDArray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def expected_of_onnx(m: Model, a: str, b: str, rows: str) -> dict[str, NDArray]:
    """Nodes over two grids and some rows -> what NumPy gives."""
    one, zero, two = (np.float32(value) for value in (1, 0, 2))
    less = m.op("Not", m.op("Less", a, b))
    either = m.op("Or", m.op("Less", a, b), m.op("Less", b, a))
    return {
        m.op("Relu", a): np.maximum(A, 0),
        m.op("Clip", a, -one, two): np.clip(A, -1, 2),
        m.op("Clip", a, m.input(), m.input()): np.clip(A, -1, 2),  # bounds given at run time
        m.op("Max", a, b): np.maximum(A, B),
        m.op("Min", a, b): np.minimum(A, B),
        m.op("Relu", m.op("Max", a, b, m.op("Neg", a))): np.maximum(np.maximum(np.maximum(A, B), -A), 0),
        m.op("LeakyRelu", a, alpha=0.1): np.where(A >= 0, A, np.float32(0.1) * A),
        m.op("Mul", a, zero): A * 0,
        m.op("Div", zero, a): zero / A,
        m.op("Sub", m.op("Add", a, one), a): (A + one) - A,
        m.op("Equal", m.op("Abs", a), m.op("Abs", a)): np.abs(A) == np.abs(A),
        m.op("Where", less, a, b): np.where(~(A < B), A, B),
        m.op("Where", either, one, two): np.where((A < B) | (B < A), one, two),
        m.op("IsNaN", a): np.isnan(A),
        m.op("Pow", a, np.float32(0.5)): np.power(A, np.float32(0.5)),
        m.op("Exp", a): np.exp(A),
        m.op("Log", a): np.log(A),
        m.op("Sqrt", a): np.sqrt(A),
        m.op("Tanh", a): np.tanh(A),
        m.op("ReduceMax", rows, axes=[1]): ROWS.max(1, keepdims=True),
        m.op("ReduceMin", rows, axes=[0], keepdims=0): ROWS.min(0),
        m.op("ArgMax", rows, axis=1): ROWS.argmax(1, keepdims=True),
        m.op("ArgMax", rows, axis=0, keepdims=0): ROWS.argmax(0),
        m.op("ArgMin", rows, axis=1, keepdims=0): ROWS.argmin(1),
        m.op("Softmax", rows, axis=1): softmax(ROWS),
    }


@pytest.mark.parametrize("isa", isas.ISAS)
def test_onnx_operators_give_what_numpy_gives(isa: str) -> None:
    m = Model()
    with np.errstate(all="ignore"):
        expected = expected_of_onnx(m, m.input(*A.shape), m.input(*B.shape), m.input(*ROWS.shape))
    values = [A, B, ROWS, np.array(-1, np.float32), np.array(2, np.float32)]
    artifact = compiled(import_model(m.bytes(*expected)), isa)
    found = artifact.run(dict(zip(m.inputs, values, strict=True)))
    assert [
        n for n, ours, numpys in zip(expected, found, expected.values(), strict=True) if not same(ours, numpys)
    ] == []


@pytest.mark.parametrize("isa", isas.ISAS)
def test_what_is_fused_behind_products_lets_nan_through(isa: str) -> None:
    m, x = Model(), image(20)
    image_in, bound_in = m.input(*x.shape), m.input(20, 1, 1)
    weight, bound = m.random(20, 20, 1, 1), m.random(20, 1, 1)
    matrix, columns = x[0, :, 0], m.random(11, 24)
    with np.errstate(all="ignore"):
        conv = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x)
        product = matrix @ columns
    convolved = [m.op("Conv", image_in, weight) for _ in range(4)]
    expected = {
        m.op("Relu", convolved[0]): np.maximum(conv, 0),
        m.op("Clip", convolved[1], np.float32(0), np.float32(6)): np.clip(conv, 0, 6),
        m.op("Min", m.op("Max", convolved[2], bound_in), image_in): np.minimum(np.maximum(conv, bound), x),
        m.op("MaxPool", convolved[3], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4): pooled(conv, 3, 2, 1),
        m.op("MaxPool", image_in, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4): pooled(x, 3, 2, 1),
        m.op("MaxPool", image_in, kernel_shape=[2, 2], dilations=[2, 2], pads=[1] * 4): pooled(x, 2, 1, 1, 2),
        m.op("GlobalMaxPool", image_in): x.max((2, 3), keepdims=True),
        m.op("Relu", m.op("MatMul", m.op("Squeeze", m.op("Slice", image_in, *map(np.array, ([0], [1], [2]))),
             np.array([0, 2])), columns)): np.maximum(product, 0),
    }  # fmt: skip
    found = compiled(import_model(m.bytes(*expected)), isa).run({image_in: x, bound_in: bound})
    wrong = [
        n for n, ours, numpys in zip(expected, found, expected.values(), strict=True) if not same(ours, numpys, 1e-3)
    ]
    assert wrong == []


class Special(torch.nn.Module):
    """Operators that TVM's simplifier would take for those of real numbers, extrema, and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(20, 20, 1)

    def forward(self, a: Any, b: Any, rows: Any, x: Any) -> dict[str, Any]:
        activations = (functional.relu6, functional.hardswish, functional.hardsigmoid, functional.elu, torch.sigmoid)
        return {
            **{function.__name__: function(a) for function in activations},
            "clamp": a.clamp(-1, 2),
            "clamp by tensors": a.clamp(b, b + 1),
            "maximum": torch.maximum(a, b),
            "minimum": torch.minimum(a, b).relu(),
            "is finite": torch.isfinite(a),
            "unequal to itself": (a + 1) != (a + 1),
            "self where equal": torch.where(a == a, a, torch.zeros_like(a)),
            "difference": (a + 1) - a,
            "nothing": functional.relu(a + 1) - functional.relu(a + 1),
            "times nothing": a * 0,
            "not less": torch.where(~(a < b), a, b),
            "amax": rows.amax(1),
            "amin": rows.amin(0),
            "argmax": rows.argmax(1),
            "argmin of all": rows.argmin(),
            "log softmax": rows.log_softmax(1),
            "pool": functional.max_pool2d(self.conv(x).relu(), 3, 2, 1),
            "ceil pool": functional.max_pool2d(x, 2, 2, ceil_mode=True),
        }


def test_torch_operators_give_what_torch_gives() -> None:
    torch.manual_seed(0)
    model, arrays = Special().eval(), [A, B, ROWS, image(20)]
    tensors = [torch.from_numpy(array) for array in arrays]
    artifact = compiled(import_model(model, example_inputs=tensors))
    found = artifact.run({spec.name: array for spec, array in zip(artifact.inputs, arrays, strict=True)})
    with torch.no_grad():
        expected = model(*tensors)
    pairs = zip(expected, found, expected.values(), strict=True)
    assert [name for name, ours, torchs in pairs if not same(ours, torchs.numpy(), 1e-3)] == []
