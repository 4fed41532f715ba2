"""Packed weights and bands of grouped convolutions: every weight lies where its inputs are read, nothing else does."""

import numpy as np
import pytest

from calumma.contractions.convolution import expression as conv
from calumma.contractions.depthwise import expression as depthwise
from calumma.contractions.matmul import expression as matmul
from calumma.expressions import windows
from tests import reference


def _geometries():
    """Grouped convolutions of all kinds: (output channels, input channels, groups)."""
    return [
        (out * groups, inputs * groups, groups)
        for groups in (2, 3, 4, 5, 8, 24)
        for inputs in (1, 2, 3, 8, 10, 16, 17, 20, 32, 33)
        for out in (1, 2, 3, 8, 10, 16, 20, 24, 48)
    ]


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_bands_stay_inside_the_input_and_hold_every_group(lanes):
    for out_channels, in_channels, groups in _geometries():
        in_blocks = -(-in_channels // lanes)
        band = conv.band_of(out_channels, in_channels, groups, in_blocks, lanes)
        assert 1 <= band.width <= in_blocks
        per_out, per_in = out_channels // groups, in_channels // groups
        for channel in range(out_channels):
            start = band.start(channel // lanes)
            group = channel // per_out
            first, last = group * per_in // lanes, ((group + 1) * per_in - 1) // lanes
            assert 0 <= start <= first
            assert last < start + band.width <= in_blocks


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("out_channels, in_channels, groups", [(40, 40, 2), (24, 12, 4), (40, 20, 20), (48, 24, 3)])
def test_grouped_weights_lie_where_their_inputs_are_read(out_channels, in_channels, groups, lanes):
    weight = reference.random(out_channels, in_channels // groups, 3, 2)
    slots = reference.identity_slots(in_channels, lanes)
    band = conv.band_of(out_channels, in_channels, groups, len(slots) // lanes, lanes)
    packed = conv.pack_conv_weight(weight, slots, groups, band, lanes)
    assert np.count_nonzero(packed) == np.count_nonzero(weight)
    per_out, per_in = out_channels // groups, in_channels // groups
    for channel in range(out_channels):
        block, lane = divmod(channel, lanes)
        for i in range(per_in):
            source = channel // per_out * per_in + i
            place = packed[block, source // lanes - band.start(block), :, :, source % lanes, lane]
            np.testing.assert_array_equal(place, weight[channel, i])


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_gathered_convolutions_hold_every_channel_once_and_stay_inside_the_input(lanes):
    gathered = 0
    for out_channels, in_channels, groups in _geometries():
        out_slots = conv.grouped_slots(out_channels, in_channels, groups, lanes, in_order=False)
        if out_slots is None:
            continue
        gathered += 1
        assert sorted(out_slots[out_slots >= 0]) == list(range(out_channels))
        in_slots = np.random.default_rng(0).permutation(reference.identity_slots(in_channels + lanes, lanes))
        in_slots[in_slots >= in_channels] = -1
        gathering = conv.gathering_of(out_slots, in_slots, out_channels, in_channels, groups, lanes)
        rows, steps = gathering.table.shape
        row, step = np.indices((rows, steps))
        expected = conv._expected(row, step, (rows, steps), len(in_slots))
        assert expected.min() >= 0
        assert expected.max() + 1 < len(in_slots)  # measurements read with tables of 0 and 1
        read = in_slots[gathering.table + expected]
        used = gathering.channels >= 0
        np.testing.assert_array_equal(read[used], gathering.channels[used])
        for slot, channel in enumerate(out_slots):
            if channel >= 0:
                group = channel // (out_channels // groups)
                wanted = set(range(group * in_channels // groups, (group + 1) * in_channels // groups))
                assert wanted <= set(gathering.channels[slot // lanes // gathering.share])
    assert gathered > 100


def test_groups_are_gathered_where_that_saves_work():
    def slots(channels: int, outputs: int, groups: int, in_order: bool = True) -> np.ndarray | None:
        return conv.grouped_slots(channels, outputs, groups, 16, in_order=in_order)

    assert slots(64, 64, 2) is None  # bands fit already
    assert slots(64, 64, 2, in_order=False) is not None
    assert slots(40, 20, 20, in_order=False) is None  # one input channel each
    assert len(slots(272, 272, 4)) == 4 * 80
    np.testing.assert_array_equal(slots(80, 80, 8), reference.identity_slots(80, 16))  # 10 channels: 16 would be 60 %


def test_weights_follow_the_order_of_the_slots_and_are_zero_in_holes():
    weight = reference.random(10, 5, 1, 1)
    slots = np.array([3, -1, 0, 1, -1, 4, 2, -1])
    packed = conv.pack_conv_weight(weight, slots, 1, conv.Band(2), 4)
    assert packed.shape == (3, 2, 1, 1, 4, 4)
    flat = packed[:, :, 0, 0].transpose(0, 3, 1, 2).reshape(12, 8)
    np.testing.assert_array_equal(flat[:10, slots >= 0], weight[:, slots[slots >= 0], 0, 0])
    assert not flat[10:].any()
    assert not flat[:, slots < 0].any()


def test_depthwise_weights_follow_the_order_of_the_slots():
    weight = reference.random(5, 1, 3, 2)
    slots = np.array([3, -1, 0, 1, -1, 4, 2, -1])
    packed = depthwise.pack_depthwise_weight(weight, slots, 4)
    assert packed.shape == (2, 3, 2, 4)
    for slot, channel in enumerate(slots):
        expected = weight[channel, 0] if channel >= 0 else np.zeros((3, 2))
        np.testing.assert_array_equal(packed[slot // 4, :, :, slot % 4], expected)


def test_first_layer_and_dense_weights_are_padded_with_zeros():
    weight = reference.random(10, 3, 2, 2)
    packed = conv.pack_plain_conv_weight(weight, 8)
    assert packed.shape == (2, 3, 2, 2, 8)
    np.testing.assert_array_equal(packed.transpose(0, 4, 1, 2, 3).reshape(16, 3, 2, 2)[:10], weight)
    assert not packed[1, ..., 2:].any()
    matrix = reference.random(6, 41)
    packed = matmul.pack_dense_weight(matrix, 8)
    assert packed.shape == (6, 6, 8)
    np.testing.assert_array_equal(packed.transpose(1, 0, 2).reshape(6, 48)[:, :41], matrix)
    assert not packed.transpose(1, 0, 2).reshape(6, 48)[:, 41:].any()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_padding_of_columns_and_rows_is_small(lanes):
    for extent in range(1, 2000):
        columns = matmul.column_blocks(extent, lanes)
        assert extent <= columns * lanes < extent + 3 * lanes
        assert columns <= 3 or any(columns % tile == 0 for tile in (2, 3, 4))
        tiled = windows.tileable(extent)
        assert extent <= tiled <= 1.15 * extent + 1
        assert tiled <= 14 or any(tiled % tile == 0 for tile in range(6, 15))
