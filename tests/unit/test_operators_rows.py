"""Row-wise operators against NumPy, for rows the vector divides and rows it does not."""

import numpy as np
import pytest

from calumma.operators.rows.expression import layer_norm, log_softmax, softmax
from tests.prim_funcs import apply


def _array(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


def _log_softmax(x, axis):
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 64), -1), ((3, 37), 1), ((2, 5), 1), ((2, 7, 3), 1), ((50,), 0), ((4, 16), 0)]
)
def test_softmax(shape, axis):
    x = _array(*shape) * 10
    expected = _log_softmax(x.astype("float64"), axis)
    np.testing.assert_allclose(apply(lambda t: softmax(t, axis, 16), x), np.exp(expected), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(apply(lambda t: log_softmax(t, axis, 16), x), expected, rtol=1e-5, atol=1e-5)


def test_softmax_of_large_scores_does_not_overflow():
    x = np.array([[1e4, 1e4 - 1, -1e4] * 7], "float32")
    result = apply(lambda t: softmax(t, -1, 8), x)
    np.testing.assert_allclose(result.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(result[0, :3], np.exp([0, -1, -np.inf]) / (7 * (1 + np.exp(-1))), rtol=1e-5)


@pytest.mark.parametrize(("shape", "axes"), [((3, 64), 1), ((3, 37), 1), ((2, 5), 1), ((4, 3, 33), 2), ((80,), 1)])
def test_layer_norm(shape, axes):
    x, gamma, beta = _array(*shape) + 3, _array(*shape[-axes:]) + 1, _array(*shape[-axes:])
    over = tuple(range(len(shape) - axes, len(shape)))
    centred = x - x.mean(over, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(over, keepdims=True) + 1e-5) * gamma + beta
    actual = apply(lambda t, g, b: layer_norm(t, g, b, axes, 1e-5, 16), x, gamma, beta)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
