"""Convolutions and matrix products of bfloat16 operands: every sampled configuration is right, and uses the dot product
where the CPU has it."""

import ml_dtypes
import numpy as np
import pytest
from tvm import topi

from calumma import tvm_compat
from calumma.contractions.convolution import expression as conv
from calumma.contractions.convolution.space import Conv2dSpace
from calumma.contractions.convolution.winograd import WinogradSpace
from calumma.contractions.matmul import expression as matmul
from calumma.contractions.matmul.space import MatmulSpace
from calumma.core.contraction import BFLOAT16
from calumma.expressions import blocking, casts
from calumma.expressions.windows import Window
from calumma.operators import design_space
from calumma.tvm_compat import codegen
from tests import isas, reference
from tests.prim_funcs import apply, check_space, prim_func

NARROW = ("bfloat16", "bfloat16")
narrow = casts.narrowing("bfloat16")
SAME = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
WINDOWS = {
    "1x1": Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    "1x1, stride 2": Window((1, 1), (2, 2), (1, 1), (0, 0, 0, 0)),
    "3x3, padded": SAME,
    "rectangular": Window((1, 5), (1, 2), (1, 1), (0, 2, 0, 2)),
}
needs_dot_products = pytest.mark.skipif(
    isas.target().dot_product(BFLOAT16) is None, reason="this CPU has no AVX512_BF16"
)


def rounded(array):
    """The nearest bfloat16 values."""
    return array.astype(ml_dtypes.bfloat16)


def convolution(channels, out_channels, size, window):
    """Blocked data and paired weights, and the result of exactly these rounded values, blocked."""
    data = rounded(reference.random(1, channels, *size))
    weight = rounded(reference.random(out_channels, channels, *window.kernel))
    slots, out_slots = (reference.identity_slots(c, 16) for c in (channels, out_channels))
    band = conv.Band(len(slots) // 16)
    packed = casts.packed(conv.pack_conv_weight(weight.astype("float32"), slots, 1, band, 16), BFLOAT16)
    product = reference.conv2d(data.astype("float32"), weight.astype("float32"), window)
    return reference.block(data, slots, 16, hole=7), packed, reference.block(product, out_slots, 16), band


@needs_dot_products
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("channels", [32, 24])
def test_convolutions(name, channels):
    window = WINDOWS[name]
    data, packed, expected, band = convolution(channels, 48, (7, 9), window)
    func = prim_func(lambda x, w: conv.conv2d(x, w, window, band), data.shape, packed.shape, dtypes=NARROW)
    check_space(Conv2dSpace, func, [data, packed], expected, isas.target(), n=8, tolerance=1e-4)


@needs_dot_products
def test_epilogues_read_and_write_bfloat16():
    data, packed, product, band = convolution(32, 32, (5, 6), SAME)
    residual = rounded(reference.random(*product.shape))

    def layer(x, w, r):
        return casts.widen(narrow(topi.nn.relu(topi.add(conv.conv2d(x, w, SAME, band), casts.widen(r)))))

    inputs = [data, packed, residual]
    func = prim_func(layer, *(i.shape for i in inputs), dtypes=(*NARROW, "bfloat16"))
    expected = rounded(np.maximum(product + residual.astype("float32"), 0)).astype("float32")
    check_space(Conv2dSpace, func, inputs, expected, isas.target(), n=6, tolerance=1e-2)


@needs_dot_products
@pytest.mark.parametrize("m, tolerance", [(2, 2e-4), (4, 2e-3)])
def test_winograd(m, tolerance):
    data, packed, expected, band = convolution(32, 32, (9, 10), SAME)
    func = prim_func(lambda x, w: conv.conv2d(x, w, SAME, band), data.shape, packed.shape, dtypes=NARROW)
    assert WinogradSpace.matches(func)

    def make(func, target, threads):
        return WinogradSpace(func, target, threads, m)

    check_space(make, func, [data, packed], expected, isas.target(), n=4, tolerance=tolerance)


@needs_dot_products
@pytest.mark.parametrize("rows, k, columns", [(12, 64, 96), (1, 32, 50), (17, 10, 33)])
def test_dense(rows, k, columns):
    data, weight = rounded(reference.random(rows, k)), rounded(reference.random(k, columns))
    packed = casts.packed(matmul.pack_dense_weight(weight.astype("float32"), 16), BFLOAT16)
    func = prim_func(lambda x, w: matmul.dense(x, w, columns), data.shape, packed.shape, dtypes=NARROW)
    expected = data.astype("float32") @ weight.astype("float32")
    check_space(MatmulSpace, func, [data, packed], expected, isas.target(), n=8, tolerance=1e-4)


def test_rounding_is_to_the_nearest_and_of_two_to_the_even():
    halfway = np.arange(0x3F80, 0x3F88, dtype=np.uint32) << 16 | 0x8000
    near = np.concatenate([halfway - 1, halfway, halfway + 1]).view(np.float32)
    others = np.array([0.0, -0.0, np.inf, -np.inf, 3.4e38, -1e-30, 65535.0, -1.00390625], np.float32)
    values = np.concatenate([near, others])
    expected = rounded(values).astype(np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(apply(lambda x: casts.widen(narrow(x)), values), expected)
    func = prim_func(lambda x: casts.widen(narrow(x)), values.shape)
    check_space(design_space, func, [values], expected, isas.target(), n=4, tolerance=0)


def test_what_is_narrow_between_two_operators_of_a_function():
    """As in an unscheduled function, where every operator has a buffer of its own."""
    values = reference.random(1, 20, 3, 2)
    expected = reference.block(rounded(values).astype(np.float32), reference.identity_slots(20, 16), 16)
    actual = apply(lambda x: casts.widen(blocking.block_channels(narrow(x), 16)), values)
    np.testing.assert_array_equal(actual, expected)


def test_instructions_are_used():
    target = isas.target("znver5")
    data, packed, _, band = convolution(32, 32, (4, 4), SAME)

    def layer(x, w):
        return narrow(conv.conv2d(x, w, SAME, band))

    space = Conv2dSpace(prim_func(layer, data.shape, packed.shape, dtypes=NARROW), target, 2)
    library = codegen.build(space.schedule(space.decode(space.default())).mod, tvm_compat.tvm_target(target, 2))
    code = library.inspect_source("asm")
    assert "vdpbf16ps" in code
    assert "vcvtneps2bf16" in code


@pytest.mark.parametrize("level", isas.RUNNABLE)
def test_without_the_instructions_the_same_comes_out(level):
    """The schedule stays right where nothing is put in its place; AVX-512 without bfloat16 rounds by arithmetic."""
    values = reference.random(4, 64)
    target = isas.target(level)
    assert target.dot_product(BFLOAT16) is None
    func = prim_func(lambda x: casts.widen(narrow(x)), values.shape)
    expected = rounded(values).astype(np.float32)
    check_space(design_space, func, [values], expected, target, n=2, tolerance=0)


def test_pairs_lie_side_by_side():
    weight = np.arange(8, dtype=np.float32).reshape(4, 2)  # 4 steps of the reduction, 2 lanes
    pairs = casts.packed(weight, BFLOAT16)
    np.testing.assert_array_equal(pairs.astype("float32"), [[0, 2, 1, 3], [4, 6, 5, 7]])
    np.testing.assert_array_equal(casts.unpacked(pairs), weight)
