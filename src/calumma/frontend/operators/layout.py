"""Between plain NCHW and blocked NCHWc tensors, written in the order of the output so that neighbours fuse."""

from __future__ import annotations

from tvm import te, tirx


def block_channels(x: te.Tensor, lanes: int) -> te.Tensor:
    """(n, c, h, w) -> (n, ceil(c / lanes), h, w, lanes); channels beyond c are 0."""
    n, channels, height, width = x.shape
    channels = int(channels)
    blocks = -(-channels // lanes)

    def element(n, block, h, w, lane):
        channel = block * lanes + lane
        if channels % lanes == 0:
            return x(n, channel, h, w)
        value = x(n, tirx.min(channel, channels - 1), h, w)
        return tirx.Select(channel < channels, value, tirx.const(0, x.dtype))

    return te.compute(
        (n, blocks, height, width, lanes), element, name="block_channels", attrs={"calumma.operator": "block_channels"}
    )


def unblock_channels(x: te.Tensor, channels: int) -> te.Tensor:
    """(n, blocks, h, w, lanes) -> (n, channels, h, w); what pads the last block is left out."""
    n, _, height, width, lanes = x.shape
    lanes = int(lanes)
    return te.compute(
        (n, channels, height, width),
        lambda n, c, h, w: x(n, c // lanes, h, w, c % lanes),
        name="unblock_channels",
        attrs={"calumma.operator": "unblock_channels"},
    )
