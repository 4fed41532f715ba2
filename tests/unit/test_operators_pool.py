"""Pooling against windows cut out one by one."""

import numpy as np
import pytest

from calumma.expressions.blocking import block_channels, unblock_channels
from calumma.operators.normalisation.expression import local_response_norm
from calumma.operators.pooling.expression import (
    AxisWindow,
    adaptive_avg_pool2d,
    avg_pool2d,
    global_avg_pool2d,
    max_pool2d,
)
from tests.prim_funcs import apply


def _array(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


def _windows(x, height, width, ceil_mode, include_pad):
    """Yield ((row, column), the window's elements (n, c, taps), how many taps count)."""
    sizes = x.shape[2:4]
    counts = [w.outputs(s, ceil_mode) for w, s in zip((height, width), sizes, strict=True)]
    for oh in range(counts[0]):
        for ow in range(counts[1]):
            taps, padded = [], 0
            for kh in range(height.kernel):
                for kw in range(width.kernel):
                    h = oh * height.stride + kh * height.dilation - height.before
                    w = ow * width.stride + kw * width.dilation - width.before
                    padded += h < sizes[0] + height.after and w < sizes[1] + width.after
                    if 0 <= h < sizes[0] and 0 <= w < sizes[1]:
                        taps.append(x[:, :, h, w])
            yield (oh, ow), np.stack(taps), padded if include_pad else len(taps)


CASES = [
    (AxisWindow(2, 2), AxisWindow(2, 2), False),
    (AxisWindow(3, 2, 1, 1), AxisWindow(3, 2, 1, 1), False),
    (AxisWindow(3, 2), AxisWindow(3, 2), True),
    (AxisWindow(3, 1, 0, 1), AxisWindow(2, 3, 1, 0), False),
    (AxisWindow(3, 1, 2, 2, 2), AxisWindow(3, 2, 2, 2, 2), False),
    (AxisWindow(3, 2, 1, 1), AxisWindow(5, 3, 2, 2), True),
]


@pytest.mark.parametrize(("height", "width", "ceil_mode"), CASES)
@pytest.mark.parametrize("blocked", [False, True])
def test_pooling(height, width, ceil_mode, blocked):
    x = _array(2, 3, 8, 10, 4) if blocked else _array(2, 3, 8, 10)
    highest = apply(lambda t: max_pool2d(t, height, width, ceil_mode), x)
    means = {pad: apply(lambda t, p=pad: avg_pool2d(t, height, width, ceil_mode, p), x) for pad in (False, True)}
    for (h, w), taps, _ in _windows(x, height, width, ceil_mode, False):
        np.testing.assert_array_equal(highest[:, :, h, w], taps.max(0))
    for include_pad, mean in means.items():
        for (h, w), taps, count in _windows(x, height, width, ceil_mode, include_pad):
            np.testing.assert_allclose(mean[:, :, h, w], taps.sum(0) / count, rtol=1e-5, atol=1e-6)


def test_pooling_keeps_infinities_out_of_other_windows():
    x = np.zeros((1, 1, 4, 4), "float32")
    x[0, 0, 0, 0] = np.inf
    mean = apply(lambda t: avg_pool2d(t, AxisWindow(2, 2, 1, 1), AxisWindow(2, 2, 1, 1)), x)
    assert np.isinf(mean[0, 0, 0, 0])
    assert np.isfinite(mean[0, 0].ravel()[1:]).all()


def test_global_and_adaptive_average():
    x = _array(1, 3, 6, 8, 16)
    np.testing.assert_allclose(apply(global_avg_pool2d, x), x.mean((2, 3), keepdims=True), rtol=1e-4, atol=1e-6)
    expected = x.reshape(1, 3, 3, 2, 2, 4, 16).mean((3, 5))
    np.testing.assert_allclose(apply(lambda t: adaptive_avg_pool2d(t, 3, 2), x), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="6 x 8 is not divisible by 4 x 4"):
        apply(lambda t: adaptive_avg_pool2d(t, 4, 4), x)


@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (4, 0.5), (3, 1.0), (2, 0.6)])
def test_local_response_norm(size, beta):
    x = _array(2, 24, 3, 4)
    expected = np.empty_like(x)
    for c in range(24):
        window = x[:, max(c - (size - 1) // 2, 0) : c + size // 2 + 1]
        expected[:, c] = x[:, c] / (1.5 + 0.2 / size * (window**2).sum(1)) ** beta
    np.testing.assert_allclose(apply(lambda t: local_response_norm(t, size, 0.2, beta, 1.5), x), expected, rtol=2e-5)
    blocked = x.reshape(2, 3, 8, 3, 4).transpose(0, 1, 3, 4, 2).copy()
    wanted = expected.reshape(2, 3, 8, 3, 4).transpose(0, 1, 3, 4, 2)
    np.testing.assert_allclose(
        apply(lambda t: local_response_norm(t, size, 0.2, beta, 1.5), blocked), wanted, rtol=2e-5
    )


def test_blocking_channels_and_back():
    x = _array(1, 11, 3, 5)
    blocked = apply(lambda t: block_channels(t, 4), x)
    assert blocked.shape == (1, 3, 3, 5, 4)
    np.testing.assert_array_equal(blocked[:, 2, :, :, 3], 0)
    np.testing.assert_array_equal(apply(lambda t: unblock_channels(t, 11), blocked), x)
