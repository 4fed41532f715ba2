"""Every sampled configuration of the reduction template computes the right sums and maxima."""

import numpy as np
import pytest
from tvm import topi

from calumma.operators.pooling.expression import AxisWindow, avg_pool2d, global_avg_pool2d, max_pool2d
from calumma.operators.rows import space as rows
from calumma.space import reduction
from tests import isas
from tests.prim_funcs import apply, check_space, prim_func


def _array(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


def _special(*shape):
    """An eighth of it NaN or infinite, and the first row -inf throughout."""
    x, rng = _array(*shape), np.random.default_rng(1)
    x.flat[rng.choice(x.size, x.size // 8, replace=False)] = rng.choice([np.nan, np.inf, -np.inf], x.size // 8)
    x[0] = -np.inf
    return x


BLOCKED, PLAIN = _array(1, 3, 9, 12, 16), _array(1, 5, 9, 12)
W, PAIR = AxisWindow(3, 2, 1, 1), AxisWindow(2, 2)
SPECIAL, WINDOWS = _special(24, 256), _special(2, 2, 8, 6, 16)
WINDOWS_HIGHEST = WINDOWS.reshape(2, 2, 4, 2, 3, 2, 16).max((3, 5))

CASES = {
    "max pooling, blocked": (lambda x: max_pool2d(x, W, W), BLOCKED, None),
    "average pooling and relu": (lambda x: topi.maximum(avg_pool2d(topi.add(x, x), W, W), 0.0), BLOCKED, None),
    "global average, blocked": (global_avg_pool2d, BLOCKED, BLOCKED.mean((2, 3), keepdims=True)),
    "global average, plain": (global_avg_pool2d, PLAIN, PLAIN.mean((2, 3), keepdims=True)),
    "global average, flat": (
        lambda x: topi.reshape(global_avg_pool2d(x), (1, 48)),
        BLOCKED,
        BLOCKED.mean((2, 3)).reshape(1, 48),
    ),
    "maximum along memory": (lambda x: topi.max(x, axis=[1]), SPECIAL, SPECIAL.max(1)),
    "minimum across memory": (lambda x: topi.min(x, axis=[0]), SPECIAL, SPECIAL.min(0)),
    "max pooling of special values": (lambda x: max_pool2d(x, PAIR, PAIR), WINDOWS, WINDOWS_HIGHEST),
    "sum along memory": (lambda x: topi.sum(x, axis=[1]), _array(24, 256), _array(24, 256).sum(1)),
    "sum across memory": (lambda x: topi.sum(x, axis=[1]), _array(4, 11, 40), _array(4, 11, 40).sum(1)),
    "sum of everything": (lambda x: topi.sum(x, axis=[0, 1], keepdims=True), _array(8, 32), None),
}


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    operator, x, expected = CASES[name]
    func = prim_func(operator, x.shape)
    assert reduction.matches(func)
    assert not rows.matches(func)
    expected = apply(operator, x) if expected is None else expected
    check_space(reduction.ReductionSpace, func, [x], expected, isas.target(), n=6)


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize(
    "name", ["sum along memory", "maximum along memory", "max pooling of special values", "global average, plain"]
)
def test_narrow_vectors(name, isa):
    operator, x, expected = CASES[name]
    expected = apply(operator, x) if expected is None else expected
    func = prim_func(operator, x.shape)
    check_space(reduction.ReductionSpace, func, [x], expected, isas.target(isa), n=4)
