"""Tensors of a module under construction, and in which order they hold their channels.

Every value is either *plain* (the model's own layout) or *blocked*: [N, C/L, H, W, L], L lanes, where a slot map tells
which logical channel each physical channel slot holds (-1: a hole).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import relax

Slots = NDArray[np.int64]
"""(blocks * L,) logical channel of each slot, or -1."""


@dataclass(frozen=True)
class Value:
    """A tensor in the module under construction."""

    expr: relax.Expr
    shape: tuple[int, ...]
    """Logical shape, as in the model."""
    slots: Slots | None = None
    """Slot map of a blocked tensor; None for a plain one."""

    @property
    def slot_map(self) -> Slots:
        """The slot map of a tensor known to be blocked."""
        assert self.slots is not None, "a plain tensor has no slot map"
        return self.slots

    @property
    def stored_dtype(self) -> str:
        """The element type in memory."""
        return str(self.expr.ty.dtype)


@dataclass(frozen=True)
class ChannelParts:
    """A blocked value that a split takes apart, and the channels at which its parts begin."""

    source: Value
    starts: tuple[int, ...]


def identity_slots(channels: int, lanes: int) -> Slots:
    """Channels in order, holes after the last one up to a whole block."""
    slots = np.full(-(-channels // lanes) * lanes, -1, np.int64)
    slots[:channels] = np.arange(channels)
    return slots


def phase_slots(total: int, channels: int, lanes: int) -> Slots:
    """Slots of `total / channels` phases that are to be interleaved (`graph.nodes.INTERLEAVE`).

    Every phase fills whole blocks, unless that would leave half of one empty.
    """
    run = channels if channels <= lanes // 2 else -(-channels // lanes) * lanes
    slots = np.full((total // channels, run), -1, np.int64)
    slots[:, :channels] = np.arange(total).reshape(-1, channels)
    return np.concatenate([slots.reshape(-1), np.full(-slots.size % lanes, -1, np.int64)])


def places(slots: Slots, channels: int) -> Slots:
    """The slot that holds each of `channels` channels."""
    found = np.full(channels, -1, np.int64)
    held = slots >= 0
    found[slots[held]] = np.nonzero(held)[0]
    return found
