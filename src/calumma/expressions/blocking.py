"""Between plain NCHW and blocked NCHWc tensors, written in the order of the output so that neighbours fuse.

A *slot* is a physical channel position of a blocked tensor: block * lanes + lane. Where channels do not lie in order, a
table tells which slot or channel to read. Tensors are float32.

What lies beyond the channels is masked, not selected: TVM's simplifier takes the condition of a `Select` for granted in
its branch and drops the clamp of the index there, yet vector code evaluates both sides and would read foreign memory.
"""

from __future__ import annotations

from tvm import te, tirx

from calumma.expressions import math
from calumma.space.blocks import OPERATOR


def block_channels(x: te.Tensor, lanes: int) -> te.Tensor:
    """(n, c, h, w) -> (n, ceil(c / lanes), h, w, lanes); channels beyond c are 0."""
    n, channels, height, width = x.shape
    channels = int(channels)
    blocks = -(-channels // lanes)

    def element(n, block, h, w, lane):
        channel = block * lanes + lane
        if channels % lanes == 0:
            return x(n, channel, h, w)
        return math.masked(x(n, tirx.min(channel, channels - 1), h, w), channels - 1 - channel)

    return te.compute(
        (n, blocks, height, width, lanes), element, name="block_channels", attrs={OPERATOR: "block_channels"}
    )


def unblock_channels(x: te.Tensor, channels: int) -> te.Tensor:
    """(n, blocks, h, w, lanes) -> (n, channels, h, w); what pads the last block is left out."""
    n, _, height, width, lanes = x.shape
    lanes = int(lanes)
    return te.compute(
        (n, channels, height, width),
        lambda n, c, h, w: x(n, c // lanes, h, w, c % lanes),
        name="unblock_channels",
        attrs={OPERATOR: "unblock_channels"},
    )


def gather_slots(x: te.Tensor, table: te.Tensor, lanes: int) -> te.Tensor:
    """Blocked tensor (n, len(table) / lanes, h, w, lanes) whose slot s is channel, or slot, table[s] of `x`.

    Args:
        x: plain (n, c, h, w), read by channel, or blocked (n, blocks, h, w, lanes), read by slot.
        table: int32; a negative entry makes a hole, which holds 0.
        lanes: of the result and of a blocked `x`.
    """
    n, _, height, width, *blocked = x.shape

    def element(b, block, h, w, lane):
        source = table[block * lanes + lane]
        inside = tirx.max(source, 0)
        value = x(b, inside // lanes, h, w, inside % lanes) if blocked else x(b, inside, h, w)
        return math.masked(value, source)

    return te.compute((n, int(table.shape[0]) // lanes, height, width, lanes), element, name="gather_slots")


def gather_channels(x: te.Tensor, table: te.Tensor) -> te.Tensor:
    """(n, blocks, h, w, lanes) -> (n, len(table), h, w); channel c is read from slot table[c]."""
    n, _, height, width, lanes = x.shape
    lanes = int(lanes)
    return te.compute(
        (n, table.shape[0], height, width),
        lambda n, c, h, w: x(n, table[c] // lanes, h, w, table[c] % lanes),
        name="gather_channels",
    )
