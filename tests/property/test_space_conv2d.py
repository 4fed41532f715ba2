"""Every sampled configuration of the convolution template computes the right convolution."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from tvm import topi

from calumma.contractions.convolution import expression as conv
from calumma.contractions.convolution.space import Conv2dSpace
from calumma.expressions.windows import Window
from calumma.tvm_compat import prefetch
from tests import isas, reference
from tests.prim_funcs import check_space, prim_func


@dataclass(frozen=True)
class Case:
    channels: int
    out_channels: int
    size: tuple[int, int]
    window: Window
    groups: int = 1
    batch: int = 1


def _window(kernel, stride=1, dilation=1, padding=(0, 0, 0, 0)):
    return Window((kernel, kernel), (stride, stride), (dilation, dilation), padding)


ONE = _window(1)
SAME = _window(3, padding=(1, 1, 1, 1))

CASES = {
    "1x1": Case(32, 48, (7, 7), ONE),
    "1x1, stride 2": Case(16, 32, (9, 9), _window(1, stride=2)),
    "3x3, padded": Case(16, 32, (8, 12), SAME),
    "3x3, a width without divisors": Case(16, 16, (3, 17), SAME),
    "asymmetric padding and stride": Case(32, 16, (9, 11), _window(3, 2, padding=(0, 1, 2, 0))),
    "dilated": Case(16, 16, (11, 11), _window(3, dilation=2, padding=(2, 2, 2, 2))),
    "rectangular": Case(16, 32, (6, 10), Window((1, 5), (1, 2), (1, 1), (0, 2, 0, 2))),
    "channels that no block divides": Case(40, 24, (6, 6), SAME),
    "batch 2": Case(24, 17, (5, 6), SAME, batch=2),
    "2 groups": Case(40, 40, (6, 6), SAME, groups=2),
    "4 groups, 1x1": Case(24, 48, (7, 7), ONE, groups=4),
    "3 channels a group": Case(12, 24, (6, 6), SAME, groups=4),
    "two outputs a channel": Case(20, 40, (6, 6), SAME, groups=20),
    "one pixel, a prime number of blocks": Case(16, 176, (1, 1), ONE),
    "one pixel, one channel": Case(17, 1, (1, 1), ONE),
}


def _check(case: Case, isa: str, n: int) -> None:
    lanes = isas.lanes(isa)
    data = reference.random(case.batch, case.channels, *case.size)
    weight = reference.random(case.out_channels, case.channels // case.groups, *case.window.kernel)
    slots, out_slots = (reference.identity_slots(c, lanes) for c in (case.channels, case.out_channels))
    band = conv.band_of(case.out_channels, case.channels, case.groups, len(slots) // lanes, lanes)
    packed = conv.pack_conv_weight(weight, slots, case.groups, band, lanes)
    expected = reference.block(reference.conv2d(data, weight, case.window, case.groups), out_slots, lanes)
    # What a hole of the input holds must not matter.
    blocked = reference.block(data, slots, lanes, hole=7.0)
    func = prim_func(lambda x, w: conv.conv2d(x, w, case.window, band), blocked.shape, packed.shape)
    check_space(Conv2dSpace, func, [blocked, packed], expected, isas.target(isa), n)


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    _check(CASES[name], isas.NATIVE, n=10)


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize("name", ["3x3, a width without divisors", "2 groups", "one pixel, a prime number of blocks"])
def test_narrow_vectors(name, isa):
    _check(CASES[name], isa, n=4)


GATHERED = {
    "groups of 34 channels": Case(136, 136, (4, 7), ONE, groups=4),
    "a block holds several groups": Case(15, 30, (5, 6), ONE, groups=5),
    "more outputs than inputs, batch 2": Case(12, 104, (3, 9), ONE, groups=2, batch=2),
    "stride 2, a prime width": Case(51, 72, (5, 37), _window(1, 2), groups=3),
    "groups of 67 channels": Case(134, 34, (1, 14), ONE, groups=2),
}


@pytest.mark.parametrize("isa", isas.ISAS)
@pytest.mark.parametrize("name", GATHERED)
def test_gathered_groups(name, isa):
    """The input lies in any order with holes anywhere; the output's order is any too."""
    case, lanes = GATHERED[name], isas.lanes(isa)
    rng = np.random.default_rng(0)
    data = reference.random(case.batch, case.channels, *case.size)
    weight = reference.random(case.out_channels, case.channels // case.groups, *case.window.kernel)
    slots = rng.permutation(reference.identity_slots(case.channels + lanes, lanes))
    slots[slots >= case.channels] = -1
    blocked = reference.block(data, slots, lanes, hole=7.0)
    aligned = conv.grouped_slots(case.out_channels, case.channels, case.groups, lanes, in_order=False)
    for out_slots in (aligned, rng.permutation(aligned)):
        gathering = conv.gathering_of(out_slots, slots, case.out_channels, case.channels, case.groups, lanes)
        packed = conv.pack_gathered_weight(weight, out_slots, gathering, case.groups, lanes)
        expected = reference.block(reference.conv2d(data, weight, case.window, case.groups), out_slots, lanes)
        func = prim_func(
            lambda x, w, t: conv.conv2d_gathered(x, w, t, case.window),
            blocked.shape,
            packed.shape,
            gathering.table.shape,
            dtypes=["float32", "float32", "int32"],
        )
        inputs = [blocked, packed, gathering.table]
        check_space(Conv2dSpace, func, inputs, expected, isas.target(isa), n=3)


@pytest.mark.parametrize("isa", isas.ISAS)
@pytest.mark.parametrize("kernel, stride", [(7, 2), (1, 1)])
def test_first_layer(isa, kernel, stride):
    lanes = isas.lanes(isa)
    window = _window(kernel, stride, padding=(kernel // 2,) * 4)
    data, weight = reference.random(1, 3, 15, 17), reference.random(24, 3, kernel, kernel)
    packed = conv.pack_plain_conv_weight(weight, lanes)
    slots = reference.identity_slots(24, lanes)
    expected = reference.block(reference.conv2d(data, weight, window), slots, lanes)
    func = prim_func(lambda x, w: conv.conv2d_plain(x, w, window), data.shape, packed.shape)
    check_space(Conv2dSpace, func, [data, packed], expected, isas.target(isa), n=8)


@pytest.mark.parametrize("isa", isas.ISAS)
@pytest.mark.parametrize("width", [6, 17])
def test_bias_residual_and_relu_are_fused(width, isa):
    lanes = isas.lanes(isa)
    data, weight = reference.random(1, 16, 5, width), reference.random(32, 16, 3, 3)
    bias, residual = reference.random(1, 32 // lanes, 1, 1, lanes), reference.random(1, 32 // lanes, 5, width, lanes)
    slots, out_slots = reference.identity_slots(16, lanes), reference.identity_slots(32, lanes)
    band = conv.band_of(32, 16, 1, 16 // lanes, lanes)
    packed = conv.pack_conv_weight(weight, slots, 1, band, lanes)
    blocked = reference.block(data, slots, lanes)
    product = reference.block(reference.conv2d(data, weight, SAME), out_slots, lanes)

    def layer(x, w, b, r):
        return topi.nn.relu(topi.add(topi.add(conv.conv2d(x, w, SAME, band), b), r))

    inputs = [blocked, packed, bias, residual]
    func = prim_func(layer, *(i.shape for i in inputs))
    expected = np.maximum(product + bias + residual, 0)
    check_space(Conv2dSpace, func, inputs, expected, isas.target(isa), n=12 if isa == isas.NATIVE else 4)


@pytest.mark.parametrize("changes", [{}, {"order": "ic,kh,lane,kw"}, {"accumulate": "plane"}])
@pytest.mark.parametrize("kernel, tile, chunk", [(3, (4, 4), 2), (3, (8, 8), 1), (1, (4, 2), 4)])
def test_weights_are_prefetched_once_or_more_before_they_are_used(kernel, tile, chunk, changes):
    """Every cache line of the next channels, or of a plane's next chunk; the first of a plane alone is not."""
    window = _window(kernel, padding=(kernel // 2,) * 4)
    weight = (6, 4, kernel, kernel, 16, 16)
    func = prim_func(lambda x, w: conv.conv2d(x, w, window, conv.Band(4)), (1, 4, 8, 8, 16), weight)
    space = Conv2dSpace(func, isas.target("x86-64-v4"), 1)
    config = space.decode(space.default()) | {
        "oc_tile": 2,
        "oh_tile": tile[0],
        "ow_tile": tile[1],
        "ic_chunk": chunk,
        "order": "ic,kh,kw",
        "outer": "oc,oh,ow",
        "fused": 2,
        "accumulate": "tile",
        "prefetch": True,
    }
    if kernel > 1:
        config |= changes
    ahead, depth = space._ahead(1, config)
    plane = config["accumulate"] == "plane"
    inner = [kernel, kernel][:depth] + [1] * (2 - depth)
    prefetched = set()
    for oc, oh, ow, ic, kh, kw in np.ndindex(3, 8 // tile[0], 8 // tile[1], 4 // chunk, *inner):
        at = [0, 2 * oc, tile[0] * oh, tile[1] * ow, 0, ic * chunk, kh, kw]
        turn = sum(at[i] // divisor * factor for i, divisor, factor in ahead.turn)
        assert 0 <= turn < ahead.turns
        start = [(0 if i is None else at[i]) + offset for i, offset in ahead.place]
        for line in prefetch.share(turn, ahead.turns, ahead.lines):
            for row in range(ahead.rows):
                index = [start[0] + row, *start[1:]]
                element = np.dot(index, [math.prod(weight[axis + 1 :]) for axis in range(6)])
                prefetched.add(int(element) // 16 + int(line))
    lines_per_block = 4 * kernel * kernel * 16
    for block in range(6):
        lines = set(range(block * lines_per_block, (block + 1) * lines_per_block))
        first_chunk = set(sorted(lines)[: chunk * kernel * kernel * 16])
        if plane:
            assert lines - first_chunk <= prefetched
        elif block >= 2:
            assert lines <= prefetched


def test_what_is_added_is_prefetched_a_tile_ahead():
    shape, weight = (1, 2, 6, 8, 16), (2, 2, 1, 1, 16, 16)

    def layer(x, w, bias, shortcut):
        return topi.add(topi.add(conv.conv2d(x, w, ONE, conv.Band(2)), bias), shortcut)

    func = prim_func(layer, shape, weight, (1, 2, 1, 1, 16), shape)
    space = Conv2dSpace(func, isas.target("x86-64-v4"), 1)
    assert space.addends == [3], "neither the input of the same shape, nor the bias"
    config = space.decode(space.default()) | {"oc_tile": 2, "oh_tile": 2, "ow_tile": 4, "ic_chunk": 1}
    prefetched = set()
    for ahead in space._addends(config):
        for channels in range(2):
            at = [0, 0, 2, 0, 0, channels, 0, 0]
            start = [(0 if i is None else at[i]) + offset for i, offset in ahead.place]
            turn = sum(at[i] // divisor * factor for i, divisor, factor in ahead.turn)
            for line in prefetch.share(turn, ahead.turns, ahead.lines):
                prefetched |= {(start[1] + row, start[2], start[3] + int(line)) for row in range(ahead.rows)}
    assert {(oc, oh, ow) for oc in (0, 1) for oh in (2, 3) for ow in (4, 5, 6, 7)} <= prefetched


@pytest.mark.parametrize("level, least", [("x86-64-v2", 8), ("x86-64-v3", 8), ("x86-64-v4", 10)])
def test_the_default_fills_the_registers_and_the_threads(level, least):
    """Two multiply-adds a cycle of four cycles each are 8 accumulators; 16 registers hold not many more."""
    lanes = isas.LEVELS[level]
    blocks = 64 // lanes
    data, weight = (1, blocks, 56, 56, lanes), (blocks, blocks, 3, 3, lanes, lanes)
    func = prim_func(lambda x, w: conv.conv2d(x, w, SAME, conv.Band(blocks)), data, weight)
    space = Conv2dSpace(func, isas.target(level), 2)
    config = space.decode(space.default())
    accumulators = math.prod(int(config[tile]) for tile in ("oc_tile", "oh_tile", "ow_tile"))
    assert least <= accumulators < space.registers
    names = space.feature_names
    assert space.features(space.default()[None])[0, names.index("balance")] == 1


@pytest.mark.parametrize("level, lanes", isas.LEVELS.items())
def test_in_a_model_threads_share_the_rows_of_a_layer_with_few_weights(level, lanes):
    def space(channels, size, threads):
        blocks = channels // lanes
        data, weight = (1, blocks, size, size, lanes), (blocks, blocks, 1, 1, lanes, lanes)
        func = prim_func(lambda x, w: conv.conv2d(x, w, ONE, conv.Band(blocks)), data, weight)
        return Conv2dSpace(func, isas.target(level), threads)

    wide, deep = space(128, 28, 2), space(512, 7, 2)
    for some in (wide, deep):
        assert some.valid(some.default_in_model()[None, :])[0]
    assert wide.decode(wide.default())["outer"] == "oc,oh,ow"
    assert wide.decode(wide.default_in_model())["outer"] != "oc,oh,ow"
    assert deep.decode(deep.default_in_model())["outer"] == "oc,oh,ow"
    alone = space(128, 28, 1)
    np.testing.assert_array_equal(alone.default_in_model(), alone.default())
