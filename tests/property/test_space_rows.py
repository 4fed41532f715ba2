"""Every sampled configuration of the rows template computes the right softmaxes and normalisations."""

import numpy as np
import pytest
from tvm import topi

from calumma.operators.extrema.expression import argmax
from calumma.operators.normalisation import expression as lrn
from calumma.operators.pooling.expression import AxisWindow, avg_pool2d, max_pool2d
from calumma.operators.rows import space as rows
from calumma.operators.rows.expression import layer_norm, softmax
from tests import isas
from tests.prim_funcs import apply, check_space, prim_func


def _array(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


def _softmax(x, axis=-1):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


IMAGE, W = _array(1, 5, 9, 12), AxisWindow(3, 2, 1, 1)
SCORES, RAGGED, HIDDEN = _array(1, 2, 9, 64), _array(3, 5, 37), _array(6, 96)
TIES = np.random.default_rng(0).choice(
    np.array([1, 2, -np.inf, np.inf, np.nan], "float32"), (64, 37), p=[0.48, 0.4, 0.1, 0.01, 0.01]
)

L = isas.lanes()

CASES = {
    "softmax": (lambda x: softmax(x, -1, L), [SCORES], _softmax(SCORES)),
    "ragged softmax": (lambda x: softmax(x, -1, L), [RAGGED], _softmax(RAGGED)),
    "softmax of a scaled sum": (
        lambda x, y: softmax(topi.multiply(topi.add(x, y), 0.5), -1, L),
        [SCORES, SCORES * 0.5],
        _softmax(0.75 * SCORES),
    ),
    "softmax over channels": (lambda x: softmax(x, 1, L), [SCORES], _softmax(SCORES, 1)),
    "one short row": (lambda x: softmax(x, -1, L), [_array(1, 7)], _softmax(_array(1, 7))),
    "layer norm, residual before, reshape after": (
        lambda x, y: topi.reshape(layer_norm(topi.add(x, y), None, None, 1, 1e-5, L), (6, 8, 12)),
        [HIDDEN, HIDDEN],
        _layer_norm(2 * HIDDEN).reshape(6, 8, 12),
    ),
    "softmax of TOPI": (topi.nn.softmax, [HIDDEN], _softmax(HIDDEN)),
    "lone row of TOPI": (topi.nn.softmax, [RAGGED[0, 0]], _softmax(RAGGED[0, 0])),
    "lone row of TOPI, whole vectors": (topi.nn.log_softmax, [SCORES[0, 0, 0]], np.log(_softmax(SCORES[0, 0, 0]))),
    "first of the largest": (lambda x: argmax(x, 1).astype("float32"), [TIES], TIES.argmax(1).astype("float32")),
    "max pooling, plain": (lambda x: max_pool2d(x, W, W), [IMAGE], None),
    "average pooling, plain, narrow": (lambda x: avg_pool2d(x, W, W), [IMAGE[..., :9].copy()], None),
    "response norm": (lambda x: lrn.local_response_norm(x, 5, 0.1, 0.75, 1.0), [_array(1, 2, 3, 4, L)], None),
}


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    operator, inputs, expected = CASES[name]
    func = prim_func(operator, *(i.shape for i in inputs))
    assert rows.matches(func)
    expected = apply(operator, *inputs) if expected is None else expected
    check_space(rows.RowsSpace, func, inputs, expected, isas.target(), n=6)


@pytest.mark.parametrize("isa", isas.NARROWER)
def test_narrow_vectors(isa):
    lanes = isas.lanes(isa)
    func = prim_func(lambda x: softmax(x, -1, lanes), RAGGED.shape)
    check_space(rows.RowsSpace, func, [RAGGED], _softmax(RAGGED), isas.target(isa), n=6)


@pytest.mark.parametrize("isa", isas.NARROWER)
def test_narrow_vectors_normalise(isa):
    lanes = isas.lanes(isa)
    func = prim_func(lambda x: layer_norm(x, None, None, 1, 1e-5, lanes), HIDDEN.shape)
    check_space(rows.RowsSpace, func, [HIDDEN], _layer_norm(HIDDEN), isas.target(isa), n=4)
