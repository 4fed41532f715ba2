"""Every template keeps what a design space promises, for wide and narrow vectors, at many shapes."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import tirx, topi

from calumma import tvm_compat
from calumma.contractions.convolution import expression as conv
from calumma.contractions.depthwise import expression as depthwise
from calumma.contractions.matmul import expression as matmul
from calumma.contractions.recurrent.expression import recurrent
from calumma.expressions.windows import Window
from calumma.operators import design_space
from calumma.operators.pooling.expression import global_avg_pool2d
from calumma.operators.rows.expression import softmax
from calumma.testing import check_space
from tests import isas
from tests.prim_funcs import prim_func
from tests.recurrent_layers import layer


def _conv2d(lanes, channels, out_channels, size, kernel, stride=1, groups=1):
    window = Window((kernel, kernel), (stride, stride), (1, 1), (kernel // 2,) * 4)
    blocks = -(-channels // lanes)
    band = conv.band_of(out_channels, channels, groups, blocks, lanes)
    weight = (-(-out_channels // lanes), band.width, kernel, kernel, lanes, lanes)
    return prim_func(lambda x, w: conv.conv2d(x, w, window, band), (1, blocks, size, size, lanes), weight)


def _first(lanes, out_channels, size, kernel, stride):
    window = Window((kernel, kernel), (stride, stride), (1, 1), (kernel // 2,) * 4)
    weight = (-(-out_channels // lanes), 3, kernel, kernel, lanes)
    return prim_func(lambda x, w: conv.conv2d_plain(x, w, window), (1, 3, size, size), weight)


def _depthwise(lanes, channels, size, kernel, stride):
    window = Window((kernel, kernel), (stride, stride), (1, 1), (kernel // 2,) * 4)
    blocks = -(-channels // lanes)
    weight = (blocks, kernel, kernel, lanes)
    return prim_func(lambda x, w: depthwise.depthwise_conv2d(x, w, window), (1, blocks, size, size, lanes), weight)


def _dense(lanes, rows, depth, columns):
    weight = (matmul.column_blocks(columns, lanes), depth, lanes)
    return prim_func(lambda x, w: matmul.dense(x, w, columns), (rows, depth), weight)


def _batched(lanes, batch, rows, depth, columns):
    return prim_func(lambda x, y: matmul.batch_matmul(x, y, lanes), (*batch, rows, depth), (*batch, depth, columns))


FUNCTIONS = {
    "conv2d": [
        lambda n: _conv2d(n, 64, 64, 56, 3),
        lambda n: _conv2d(n, 256, 512, 28, 1, stride=2),
        lambda n: _conv2d(n, 512, 176, 1, 1),
        lambda n: _conv2d(n, 96, 208, 17, 5),
        lambda n: _conv2d(n, 24, 24, 35, 3, groups=3),
        lambda n: _conv2d(n, 16, 16, 13, 1),
        lambda n: _conv2d(n, 16, 16, 5, 3),
        lambda n: _first(n, 64, 224, 7, 2),
        lambda n: _first(n, 24, 31, 3, 1),
    ],
    "depthwise_conv2d": [
        lambda n: _depthwise(n, 32, 112, 3, 1),
        lambda n: _depthwise(n, 40, 29, 5, 2),
        lambda n: _depthwise(n, 17, 1, 3, 1),
    ],
    "matmul": [
        lambda n: _dense(n, 1, 2048, 1000),
        lambda n: _dense(n, 197, 768, 3072),
        lambda n: _dense(n, 128, 512, 22 * n),
        lambda n: _dense(n, 1, 64, 33 * n),
        lambda n: _dense(n, 5, 7, 3),
        lambda n: _batched(n, (1, 12), 197, 64, 197),
        lambda n: _batched(n, (2, 3), 1, 64, 50),
        lambda n: _batched(n, (), 64, 64, 64),
    ],
    "recurrent": [
        lambda n: recurrent(layer("lstm", 100, 1, 512, n)),
        lambda n: recurrent(layer("gru", 16, 1, 200, n, inputs=40)),
        lambda n: recurrent(layer("gru", 50, 8, 13 * n, n)),
        lambda n: recurrent(layer("rnn", 3, 2, 5, n)),
    ],
    "reduction": [
        lambda n: prim_func(global_avg_pool2d, (1, 8, 7, 7, n)),
        lambda n: prim_func(lambda x: topi.sum(x, axis=[1]), (64, 300)),
    ],
    "rows": [
        lambda n: prim_func(lambda x: softmax(x, -1, n), (1, 12, 197, 197)),
        lambda n: prim_func(lambda x: softmax(x, -1, n), (1, 1000)),
    ],
    "injective": [
        lambda n: prim_func(lambda x: topi.transpose(x, [0, 2, 1, 3]), (1, 197, 12, 64)),
        lambda n: prim_func(lambda x, y: topi.concatenate([x, y], 1), (1, 3, 9, 9, n), (1, 5, 9, 9, n)),
        lambda n: prim_func(lambda x: topi.maximum(x, 0.0), (7,)),
    ],
}
CASES = [(template, i) for template, functions in FUNCTIONS.items() for i in range(len(functions))]


def _space(func: tirx.PrimFunc, mcpu: str | None, threads: int = 2):
    return design_space(func, tvm_compat.target_for(mcpu), threads)


@pytest.mark.parametrize("level, lanes", isas.LEVELS.items())
@pytest.mark.parametrize("template, number", CASES)
def test_the_contract_is_kept(template, number, level, lanes):
    space = _space(FUNCTIONS[template][number](lanes), level)
    assert space.template == template
    check_space(space)


def test_what_has_no_template_is_left_to_one_that_takes_everything():
    space = _space(prim_func(lambda x: topi.cumsum(x, 1), (12, 40)), None)
    assert space.template not in FUNCTIONS
    check_space(space)


@pytest.mark.parametrize("template", FUNCTIONS)
def test_only_defaults_and_features_depend_on_the_threads(template):
    func = FUNCTIONS[template][0](isas.lanes())
    one, many = _space(func, None, 1), _space(func, None, 16)
    assert one.knobs == many.knobs
    assert (one.version, one.feature_names) == (many.version, many.feature_names)


def test_narrow_vectors_have_fewer_registers():
    for level, registers in (("x86-64-v4", 32), ("x86-64-v3", 16), ("x86-64-v2", 16)):
        space = _space(_conv2d(isas.LEVELS[level], 64, 64, 56, 3), level)
        tiles = space.columns(space.sample(np.random.default_rng(0), 2000))
        used = tiles["oc_tile"] * tiles["oh_tile"] * tiles["ow_tile"] + tiles["oc_tile"]
        assert registers - 4 <= used.max() <= registers
