"""The vectorised elementary functions against double precision, extremes included."""

import math as reference
import time

import numpy as np
import pytest

from calumma.expressions import math
from tests.prim_funcs import apply

_ERF = np.vectorize(reference.erf)
LARGE = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 3.4e38, -3.4e38, 1e-45, 1e-20, 88.7, -103.0], "float32"
)

# function, reference, lowest and highest argument, relative error
RANGES = [
    (math.exp, np.exp, -87.0, 88.7, 1.2e-7),
    (math.log, np.log, 1e-3, 1e4, 1.2e-7),
    (math.log, np.log, 0.6, 1.6, 1.2e-7),
    (math.tanh, np.tanh, -10.0, 10.0, 4e-7),
    (math.tanh, np.tanh, -0.01, 0.01, 4e-7),
    (math.erf, _ERF, -5.0, 5.0, 4e-7),
    (math.erf, _ERF, -0.01, 0.01, 4e-7),
    (math.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0, 3e-7),
    (math.silu, lambda x: x / (1 + np.exp(-x)), -80.0, 80.0, 3e-7),
]


def _apply(function, x):
    return apply(lambda t: math.elementwise(function, t, function.__name__), x)


@pytest.mark.parametrize(("function", "expected", "low", "high", "error"), RANGES)
def test_relative_error(function, expected, low, high, error):
    x = np.linspace(low, high, 1 << 14).astype("float32")
    np.testing.assert_allclose(_apply(function, x), expected(x.astype("float64")), rtol=error, atol=1e-44)


def test_exp_reaches_zero_infinity_and_subnormals():
    x = np.linspace(-110, 95, 1 << 12).astype("float32")
    with np.errstate(over="ignore", under="ignore"):
        expected = np.exp(x.astype("float64")).astype("float32")
    np.testing.assert_allclose(_apply(math.exp, x), expected, rtol=2e-7, atol=2e-45)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (math.exp, np.exp),
        (math.log, np.log),
        (math.tanh, np.tanh),
        (math.erf, _ERF),
        (math.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_extremes(function, expected):
    with np.errstate(all="ignore"):
        wanted = expected(LARGE.astype("float64")).astype("float32")
    np.testing.assert_allclose(_apply(function, LARGE), wanted, rtol=4e-7, atol=1e-44)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: math.tanh(math.log(math.sigmoid(x))), lambda x: np.tanh(-np.logaddexp(0.0, -x))),
        (lambda x: math.exp(math.exp(math.exp(x))), lambda x: np.exp(np.exp(np.exp(x)))),
        (lambda x: math.exp(-math.log(math.sigmoid(x))), lambda x: 1 + np.exp(-x)),
    ],
)
def test_nested_functions_compile_in_little_time(function, expected):
    """TVM's analyzer would take minutes for these if the functions tested their intermediate values."""
    x = np.linspace(-4, 1, 64).astype("float32")
    start = time.monotonic()
    np.testing.assert_allclose(_apply(function, x), expected(x.astype("float64")), rtol=2e-5)
    assert time.monotonic() - start < 10


def test_gelu_vanishes_far_below_zero():
    x = np.array([-1e30, -100.0, -6.0, 0.0, 6.0, 100.0, 1e30], "float32")
    np.testing.assert_allclose(_apply(math.gelu, x), np.where(x > 0, x, 0), rtol=1e-6, atol=1e-6)
    near = np.linspace(-5, 5, 999).astype("float32")
    exact = 0.5 * near * (1 + _ERF(near.astype("float64") * reference.sqrt(0.5)))
    np.testing.assert_allclose(_apply(math.gelu, near), exact, atol=2e-6)
    tanh = (
        0.5 * near * (1 + np.tanh(reference.sqrt(2 / reference.pi) * (near + 0.044715 * near.astype("float64") ** 3)))
    )
    np.testing.assert_allclose(_apply(math.gelu_tanh, near), tanh, atol=2e-6)
