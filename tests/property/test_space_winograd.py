"""Every sampled configuration of the Winograd templates computes the right convolution, epilogue included."""

import functools
from typing import Any

import numpy as np
import pytest
from tvm import topi

from calumma.contractions.convolution import expression as conv
from calumma.contractions.convolution.winograd import WinogradSpace
from calumma.contractions.convolution.winograd_loops import transform_weights
from calumma.core.errors import InputError
from calumma.expressions.windows import Window
from calumma.operators import design_space
from calumma.space.alternatives import AlternativesSpace
from tests import isas, reference
from tests.prim_funcs import check_space, prim_func, run

TOLERANCE = 2e-4
"""The transforms of F(4x4, 3x3) cost about a decimal digit."""

CASES = {  # channels, output channels, height and width, padding, batch
    "tiles fit": (16, 32, (8, 12), (1, 1, 1, 1), 1),
    "rows and columns left over": (32, 16, (9, 7), (1, 1, 1, 1), 1),
    "no padding": (16, 16, (10, 10), (0, 0, 0, 0), 1),
    "asymmetric padding": (16, 16, (7, 6), (0, 1, 2, 0), 1),
    "batch 2, odd channels": (24, 17, (5, 6), (1, 1, 1, 1), 2),
    "one pixel": (16, 48, (1, 1), (1, 1, 1, 1), 1),
    "a width without divisors": (16, 16, (3, 17), (1, 1, 1, 1), 1),
}


def _layer(case, lanes):
    channels, out_channels, size, padding, batch = CASES[case]
    window = Window((3, 3), (1, 1), (1, 1), padding)
    data, weight = reference.random(batch, channels, *size), reference.random(out_channels, channels, 3, 3)
    slots, out_slots = (reference.identity_slots(c, lanes) for c in (channels, out_channels))
    band = conv.band_of(out_channels, channels, 1, len(slots) // lanes, lanes)
    inputs = [reference.block(data, slots, lanes), conv.pack_conv_weight(weight, slots, 1, band, lanes)]
    expected = reference.block(reference.conv2d(data, weight, window, 1), out_slots, lanes)
    return lambda x, w: conv.conv2d(x, w, window, band), inputs, expected


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_every_configuration_is_right(case, m):
    layer, inputs, expected = _layer(case, isas.lanes())
    func = prim_func(layer, *(i.shape for i in inputs))
    space = functools.partial(WinogradSpace, m=m)
    check_space(space, func, inputs, expected, isas.target(), n=5, tolerance=TOLERANCE)


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize("m", [2, 4])
def test_narrow_vectors(m, isa):
    layer, inputs, expected = _layer("rows and columns left over", isas.lanes(isa))
    func = prim_func(layer, *(i.shape for i in inputs))
    space = functools.partial(WinogradSpace, m=m)
    check_space(space, func, inputs, expected, isas.target(isa), n=4, tolerance=TOLERANCE)


@pytest.mark.parametrize("m", [2, 4])
def test_bias_residual_and_relu_are_fused(m):
    lanes = isas.lanes()
    layer, inputs, product = _layer("a width without divisors", lanes)
    bias, residual = reference.random(1, 16 // lanes, 1, 1, lanes), reference.random(*product.shape)
    inputs += [bias, residual]
    func = prim_func(lambda x, w, b, r: topi.nn.relu(topi.add(topi.add(layer(x, w), b), r)), *(i.shape for i in inputs))
    expected = np.maximum(product + bias + residual, 0)
    space = functools.partial(WinogradSpace, m=m)
    check_space(space, func, inputs, expected, isas.target(), n=5, tolerance=TOLERANCE)


def test_all_algorithms_are_one_space():
    layer, inputs, expected = _layer("tiles fit", isas.lanes())
    func = prim_func(layer, *(i.shape for i in inputs))
    target = isas.target()
    check_space(design_space, func, inputs, expected, target, n=12, tolerance=TOLERANCE)
    space = design_space(func, target, 2)
    assert isinstance(space, AlternativesSpace)
    drawn = space.sample(np.random.default_rng(0), 12)
    algorithms = {space.decode(row).get("algorithm", "direct") for row in drawn}
    assert algorithms == {"direct", "winograd2", "winograd4"}


@pytest.mark.parametrize("m", [2, 4])
def test_the_error_that_is_claimed_is_the_error_there_is(m):
    window, channels, lanes = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), 256, isas.lanes()
    band = conv.band_of(32, channels, 1, channels // lanes, lanes)
    slots, out_slots = reference.identity_slots(channels, lanes), reference.identity_slots(32, lanes)
    data, weight = reference.random(1, channels, 14, 14), reference.random(32, channels, 3, 3)
    inputs = [reference.block(data, slots, lanes), conv.pack_conv_weight(weight, slots, 1, band, lanes)]
    expected = reference.block(reference.conv2d(data, weight, window, 1), out_slots, lanes)
    target = isas.target()
    space = WinogradSpace(
        prim_func(lambda x, w: conv.conv2d(x, w, window, band), *(i.shape for i in inputs)), target, 2, m
    )
    config = space.decode(space.default())
    inputs[1] = space.repacking(config)[1].apply(inputs[1])
    actual = run(space.schedule(config).mod, inputs, expected.shape, target)
    error = np.abs(actual.astype("float64") - expected).max() / np.abs(expected).max()
    assert space.error / 8 < error < space.error


def test_a_tolerance_leaves_out_what_is_less_exact():
    layer, inputs, _ = _layer("tiles fit", isas.lanes())
    space = design_space(prim_func(layer, *(i.shape for i in inputs)), isas.target(), 2)
    assert isinstance(space, AlternativesSpace)

    def algorithms(tolerance):
        left = space.within(tolerance)
        drawn = left.sample(np.random.default_rng(0), 12)
        assert (left.template, left.version) == (space.template, space.version)
        assert left.valid(left.default()[None, :]).all()
        return {left.decode(row).get("algorithm", "direct") for row in drawn}

    assert algorithms(1e-3) == {"direct", "winograd2", "winograd4"}
    assert algorithms(1e-6) == {"direct", "winograd2"}
    assert algorithms(0.0) == {"direct"}
    winograd = {"algorithm": "winograd4"} | space.decode(space.default_of("winograd4"))
    for tolerance in (1e-6, 0.0):
        with pytest.raises(InputError, match=r"algorithm|winograd4\.\w+"):
            space.within(tolerance).encode(winograd)


def test_a_configuration_from_before_the_algorithms_is_direct():
    layer, inputs, _ = _layer("tiles fit", isas.lanes())
    space = design_space(prim_func(layer, *(i.shape for i in inputs)), isas.target(), 2)
    assert isinstance(space, AlternativesSpace)
    old: dict[str, Any] = {"oc_tile": 1, "oh_tile": 2, "ow_tile": 6, "order": "kh,ic,kw"}
    today = space.decode(space.encode(old))
    assert today | old == today
    assert "algorithm" not in today
    np.testing.assert_array_equal(space.encode({"algorithm": "direct", **old}), space.encode(old))


def test_an_epilogue_larger_than_the_convolution_is_left_to_the_direct_algorithm():
    layer, inputs, _ = _layer("tiles fit", isas.lanes())
    images = (4, 2, 8, 12, 16)
    func = prim_func(lambda x, w, r: topi.add(layer(x, w), r), *(i.shape for i in inputs), images)
    assert not WinogradSpace.matches(func)


@pytest.mark.parametrize(
    "kernel, strides, dilation, groups",
    [
        (1, (1, 1), (1, 1), 1),
        (5, (1, 1), (1, 1), 1),
        (3, (2, 2), (1, 1), 1),
        (3, (1, 1), (2, 2), 1),
        (3, (1, 1), (1, 1), 2),
    ],
)
def test_other_convolutions_are_direct(kernel, strides, dilation, groups):
    window = Window((kernel, kernel), strides, dilation, (kernel // 2,) * 4)
    band = conv.band_of(32, 32, groups, 2, 16)
    weight = (2, band.width, kernel, kernel, 16, 16)
    func = prim_func(lambda x, w: conv.conv2d(x, w, window, band), (1, 2, 12, 12, 16), weight)
    assert not WinogradSpace.matches(func)


@pytest.mark.parametrize("m", [2, 4])
def test_transformed_weights_give_the_convolution_of_one_tile(m):
    """U against the definition: the transform of a kernel is linear and sees one pair of channels at a time."""
    rng = np.random.default_rng(0)
    packed = rng.random((2, 3, 3, 3, 4, 4), dtype=np.float32)
    u = transform_weights(packed, m)
    assert u.shape == ((m + 2) ** 2, 2, 3, 4, 4)
    alone = np.zeros_like(packed)
    alone[1, 2, :, :, 3, 0] = packed[1, 2, :, :, 3, 0]
    part = transform_weights(alone, m)
    np.testing.assert_allclose(part[:, 1, 2, 3, 0], u[:, 1, 2, 3, 0], rtol=1e-6)
    assert np.count_nonzero(part) == np.count_nonzero(part[:, 1, 2, 3, 0])
