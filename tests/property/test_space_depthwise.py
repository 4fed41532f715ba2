"""Every sampled configuration of the depthwise template computes the right convolution."""

import numpy as np
import pytest
from tvm import topi

from calumma import tvm_compat
from calumma.operators.convolution import expression as conv
from calumma.operators.depthwise.space import DepthwiseSpace
from calumma.operators.windows import Window
from tests import reference
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


def _check(name, lanes, mcpu, n, shuffled=False):
    channels, size, window, batch = CASES[name]
    data, weight = reference.random(batch, channels, *size), reference.random(channels, 1, *window.kernel)
    slots = reference.identity_slots(channels, lanes)
    if shuffled:
        slots = np.random.default_rng(0).permutation(slots)
    packed = conv.pack_depthwise_weight(weight, slots, lanes)
    blocked = reference.block(data, slots, lanes, hole=7.0)
    bias = reference.random(1, packed.shape[0], 1, 1, lanes)
    product = reference.block(reference.conv2d(data, weight, window, channels), slots, lanes)

    def layer(x, w, b):
        return topi.nn.relu(topi.add(conv.depthwise_conv2d(x, w, window), b))

    func = prim_func(layer, blocked.shape, packed.shape, bias.shape)
    expected = np.maximum(product + bias, 0)
    check_space(DepthwiseSpace, func, [blocked, packed, bias], expected, tvm_compat.target_for(mcpu), n)


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    _check(name, 16, None, n=10)


@pytest.mark.parametrize("name", ["stride 2", "5x5, asymmetric"])
def test_narrow_vectors(name):
    _check(name, 8, "x86-64-v3", n=6)


def test_channels_in_any_order_with_holes_anywhere():
    _check("stride 2", 16, None, n=4, shuffled=True)


def test_without_an_epilogue():
    window = _window(3, padding=(1, 1, 1, 1))
    data, weight = reference.random(1, 16, 5, 5), reference.random(16, 1, 3, 3)
    slots = reference.identity_slots(16, 16)
    packed = conv.pack_depthwise_weight(weight, slots, 16)
    expected = reference.block(reference.conv2d(data, weight, window, 16), slots, 16)
    func = prim_func(lambda x, w: conv.depthwise_conv2d(x, w, window), (1, 1, 5, 5, 16), packed.shape)
    inputs = [reference.block(data, slots, 16), packed]
    check_space(DepthwiseSpace, func, inputs, expected, tvm_compat.target_for(), n=8)


@pytest.mark.parametrize(("size", "threads", "fused"), [(14, 2, 3), (14, 1, 1), (7, 2, 1)])
def test_in_a_model_threads_share_rows_where_these_are_equal_shares(size, threads, fused):
    window = _window(3, padding=(1, 1, 1, 1))
    func = prim_func(lambda x, w: conv.depthwise_conv2d(x, w, window), (1, 4, size, size, 16), (4, 3, 3, 16))
    space = DepthwiseSpace(func, tvm_compat.target_for(), threads)
    assert space.decode(space.default_in_model())["fused"] == fused
    assert space.decode(space.default())["fused"] == 1


@pytest.mark.parametrize(("size", "oh_tile", "threads"), [(8, 2, 2), (9, 1, 2), (7, 7, 2), (12, 2, 4)])
def test_bands_of_rows(size, oh_tile, threads):
    """Nine rows make no two equal bands, and seven at a time none at all: what is left is one band."""
    window = _window(3, padding=(1, 1, 1, 1))
    data, weight = reference.random(1, 32, size, size), reference.random(32, 1, 3, 3)
    slots = reference.identity_slots(32, 16)
    packed, blocked = conv.pack_depthwise_weight(weight, slots, 16), reference.block(data, slots, 16)
    func = prim_func(lambda x, w: conv.depthwise_conv2d(x, w, window), blocked.shape, packed.shape)
    space = DepthwiseSpace(func, tvm_compat.target_for(), threads)
    config = space.decode(space.default()) | {"fused": 3, "oh_tile": oh_tile, "ow_tile": 1, "pad": "inline"}
    expected = reference.block(reference.conv2d(data, weight, window, 32), slots, 16)
    np.testing.assert_allclose(
        run(space.schedule(config).mod, [blocked, packed], expected.shape, space.target),
        expected,
        rtol=2e-5,
        atol=2e-5,
    )
