"""Every sampled configuration of the depthwise template computes the right convolution."""

import numpy as np
import pytest
from tvm import topi

from calumma.contractions.depthwise import expression as depthwise
from calumma.contractions.depthwise.space import DepthwiseSpace
from calumma.expressions.windows import Window
from tests import isas, reference
from tests.prim_funcs import check_space, prim_func, run


def _window(kernel, stride=1, dilation=1, padding=(0, 0, 0, 0)):
    return Window((kernel, kernel), (stride, stride), (dilation, dilation), padding)


CASES = {
    "3x3": (32, (8, 8), _window(3, padding=(1, 1, 1, 1)), 1),
    "stride 2": (40, (9, 14), _window(3, 2, padding=(1, 1, 1, 1)), 1),
    "unpadded": (16, (7, 7), _window(3), 1),
    "5x5, asymmetric": (17, (7, 6), _window(5, padding=(2, 1, 2, 3)), 1),
    "dilated": (16, (9, 9), _window(3, dilation=2, padding=(2, 2, 2, 2)), 1),
    "rectangular": (24, (6, 11), Window((3, 1), (2, 1), (1, 1), (1, 0, 1, 0)), 1),
    "batch 2": (24, (6, 5), _window(3, padding=(1, 1, 1, 1)), 2),
    "global": (32, (7, 7), _window(7), 1),
}


def _check(name, isa, n, shuffled=False):
    lanes = isas.lanes(isa)
    channels, size, window, batch = CASES[name]
    data, weight = reference.random(batch, channels, *size), reference.random(channels, 1, *window.kernel)
    slots = reference.identity_slots(channels, lanes)
    if shuffled:
        slots = np.random.default_rng(0).permutation(slots)
    packed = depthwise.pack_depthwise_weight(weight, slots, lanes)
    blocked = reference.block(data, slots, lanes, hole=7.0)
    bias = reference.random(1, packed.shape[0], 1, 1, lanes)
    product = reference.block(reference.conv2d(data, weight, window, channels), slots, lanes)

    def layer(x, w, b):
        return topi.nn.relu(topi.add(depthwise.depthwise_conv2d(x, w, window), b))

    func = prim_func(layer, blocked.shape, packed.shape, bias.shape)
    expected = np.maximum(product + bias, 0)
    check_space(DepthwiseSpace, func, [blocked, packed, bias], expected, isas.target(isa), n)


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    _check(name, isas.NATIVE, n=10)


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize("name", ["stride 2", "5x5, asymmetric"])
def test_narrow_vectors(name, isa):
    _check(name, isa, n=5)


def test_channels_in_any_order_with_holes_anywhere():
    _check("stride 2", isas.NATIVE, n=4, shuffled=True)


def test_without_an_epilogue():
    lanes = isas.lanes()
    window = _window(3, padding=(1, 1, 1, 1))
    data, weight = reference.random(1, 16, 5, 5), reference.random(16, 1, 3, 3)
    slots = reference.identity_slots(16, lanes)
    packed = depthwise.pack_depthwise_weight(weight, slots, lanes)
    expected = reference.block(reference.conv2d(data, weight, window, 16), slots, lanes)
    inputs = [reference.block(data, slots, lanes), packed]
    func = prim_func(lambda x, w: depthwise.depthwise_conv2d(x, w, window), *(i.shape for i in inputs))
    check_space(DepthwiseSpace, func, inputs, expected, isas.target(), n=8)


@pytest.mark.parametrize(
    ("level", "size", "threads", "fused"),
    [
        *((level, 14, 2, 3) for level in isas.LEVELS),  # 14 tiles of one row: 7 for each thread
        *((level, 28, 2, 3) for level in isas.LEVELS),
        *((level, 14, 1, 1) for level in isas.LEVELS),
        *((level, 7, 2, 1) for level in isas.LEVELS),
    ],
)
def test_in_a_model_threads_share_rows_where_these_are_equal_shares(level, size, threads, fused):
    window, lanes = _window(3, padding=(1, 1, 1, 1)), isas.LEVELS[level]
    shapes = (1, 64 // lanes, size, size, lanes), (64 // lanes, 3, 3, lanes)
    func = prim_func(lambda x, w: depthwise.depthwise_conv2d(x, w, window), *shapes)
    space = DepthwiseSpace(func, isas.target(level), threads)
    assert space.decode(space.default_in_model())["fused"] == fused
    assert space.decode(space.default())["fused"] == 1


@pytest.mark.parametrize(("size", "oh_tile", "threads"), [(8, 2, 2), (9, 1, 2), (7, 7, 2), (12, 2, 4)])
def test_bands_of_rows(size, oh_tile, threads):
    """Nine rows make no two equal bands, and seven at a time none at all: what is left is one band."""
    window, lanes = _window(3, padding=(1, 1, 1, 1)), isas.lanes()
    data, weight = reference.random(1, 32, size, size), reference.random(32, 1, 3, 3)
    slots = reference.identity_slots(32, lanes)
    packed, blocked = depthwise.pack_depthwise_weight(weight, slots, lanes), reference.block(data, slots, lanes)
    func = prim_func(lambda x, w: depthwise.depthwise_conv2d(x, w, window), blocked.shape, packed.shape)
    space = DepthwiseSpace(func, isas.target(), threads)
    config = space.decode(space.default()) | {"fused": 3, "oh_tile": oh_tile, "ow_tile": 1, "pad": "inline"}
    expected = reference.block(reference.conv2d(data, weight, window, 32), slots, lanes)
    np.testing.assert_allclose(
        run(space.schedule(config).mod, [blocked, packed], expected.shape, space.target),
        expected,
        rtol=2e-5,
        atol=2e-5,
    )
