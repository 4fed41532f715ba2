"""Moves between plain and blocked tensors, also where channels are in another order or slots are holes."""

import numpy as np
import pytest

from calumma.expressions import blocking
from tests import reference
from tests.prim_funcs import apply

LANES = 8
SHUFFLED = np.array([3, 0, -1, 9, 1, 8, -1, 2, 5, 4, -1, -1, 7, -1, 6, -1])
"""The channel in each slot, -1 for a hole."""


@pytest.mark.parametrize("channels", [16, 10])
def test_channels_in_order(channels):
    plain = reference.random(2, channels, 3, 5)
    blocked = reference.block(plain, reference.identity_slots(channels, LANES), LANES)
    np.testing.assert_array_equal(apply(lambda x: blocking.block_channels(x, LANES), plain), blocked)
    np.testing.assert_array_equal(apply(lambda x: blocking.unblock_channels(x, channels), blocked), plain)


def test_slots_are_gathered_from_channels():
    plain = reference.random(2, 10, 3, 5)
    actual = apply(lambda x, table: blocking.gather_slots(x, table, LANES), plain, SHUFFLED.astype("int32"))
    np.testing.assert_array_equal(actual, reference.block(plain, SHUFFLED, LANES))


def test_slots_are_gathered_from_slots():
    blocked = reference.random(2, 2, 3, 5, LANES)
    flat = blocked.transpose(0, 1, 4, 2, 3).reshape(2, -1, 3, 5)
    actual = apply(lambda x, table: blocking.gather_slots(x, table, LANES), blocked, SHUFFLED.astype("int32"))
    np.testing.assert_array_equal(actual, reference.block(flat, SHUFFLED, LANES))


def test_channels_are_gathered_from_slots():
    plain = reference.random(2, 10, 3, 5)
    places = np.array([np.flatnonzero(channel == SHUFFLED)[0] for channel in range(10)], dtype="int32")
    blocked = reference.block(plain, SHUFFLED, LANES, hole=7.0)
    np.testing.assert_array_equal(apply(blocking.gather_channels, blocked, places), plain)
