"""Convolutions over blocked tensors, as tensor expressions, and the packing of their weights.

Notation: L lanes of one vector (the block); a blocked tensor is [N, C/L, H, W, L]; OCB, ICB blocks of output and
input channels; KH, KW kernel; a *slot* is a physical channel position, `slots[s]` the logical channel it holds, or -1
for a hole. Holes carry finite values nobody reads: the weights that meet them are zero.

A grouped convolution is *banded*: output block o reads `band` consecutive input blocks from `start(o)` on, and
weights outside its group are zero. With one group the band is everything. Or it is *gathered*: a table names the slots
that output block o reads, in any order, and the output's slots are such that a block holds channels of few groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from calumma.core.contraction import contraction_reading
from calumma.expressions import casts
from calumma.expressions.integers import ints
from calumma.expressions.windows import Window, cropped, padded_to, tileable
from calumma.graph.layouts import Slots
from calumma.space.blocks import OPERATOR

_CHUNK = 64
"""Steps of a gathered convolution's table in one chunk of its packed weights, at most."""
_BLOCK_COST = 40
"""What one more block of channels costs the kernels around a convolution, per pixel, in its vector multiply-adds.

Both were set for ShuffleNet on the CPU of `target.costs`. They decide the shapes of packed weights and of
results, and so what a workload is (its hash): they are the same for every CPU.
"""


@dataclass(frozen=True)
class Band:
    """Which input blocks output block o reads: `width` of them from `o * L // out_channels * in_channels // L` on."""

    width: int
    out_channels: int = 0
    """Output channels per group; 0 when there is one group (the band starts at 0)."""
    in_channels: int = 0
    lanes: int = 0
    last: int | None = None
    """Input block beyond which no band may start; None where none would."""

    def start(self, block: tirx.Expr | int) -> tirx.Expr | int:
        """First input block of output block `block`; an int for an int, an expression for a loop variable."""
        if self.out_channels == 0:
            return 0
        first = block * self.lanes // self.out_channels * self.in_channels // self.lanes
        if self.last is None:
            return first
        return min(first, self.last) if isinstance(first, int) else tirx.min(first, self.last)


def band_of(out_channels: int, in_channels: int, groups: int, in_blocks: int, lanes: int) -> Band:
    """The band of a convolution over identity slots; counts are of the whole convolution."""
    if groups == 1:
        return Band(in_blocks)
    per_out, per_in = out_channels // groups, in_channels // groups
    band = Band(0, per_out, per_in, lanes)
    out_blocks = -(-out_channels // lanes)
    widest = 0
    for block in range(out_blocks):
        last_channel = min((block + 1) * lanes, out_channels) - 1
        last_input = (last_channel // per_out + 1) * per_in - 1
        widest = max(widest, last_input // lanes - band.start(block) + 1)
    last = in_blocks - widest
    return Band(widest, per_out, per_in, lanes, last if band.start(out_blocks - 1) > last else None)


@dataclass(frozen=True)
class Gathering:
    """Which input channels each output block of a grouped convolution reads, and where they are."""

    channels: Slots
    """(rows, R) logical input channels; -1 where a row has fewer. Row r is of output blocks r * share, ..."""
    table: NDArray[np.int32]
    """(rows, R) slot of each channel, less what `_expected` says."""
    share: int
    """Neighbouring output blocks that read the same channels."""


def gathering_of(
    out_slots: Slots, in_slots: Slots, out_channels: int, in_channels: int, groups: int, lanes: int
) -> Gathering:
    """The channels that output blocks in the order of `out_slots` read from an input in the order of `in_slots`."""
    wanted = _channels_read(out_slots, out_channels // groups, in_channels // groups, lanes)
    share = max(
        run
        for run in range(1, len(wanted) + 1)
        if len(wanted) % run == 0 and all(wanted[i] == wanted[i - i % run] for i in range(len(wanted)))
    )
    rows = wanted[::share]
    longest = max(map(len, rows))
    channels = np.array([[*row, *[-1] * (longest - len(row))] for row in rows], np.int64)
    place = np.zeros(in_channels, np.int64)
    place[in_slots[in_slots >= 0]] = np.nonzero(in_slots >= 0)[0]
    somewhere = np.where(channels >= 0, channels, channels[:, :1])
    row, step = np.indices(channels.shape)
    expected = _expected(row, step, channels.shape, len(in_slots))
    return Gathering(channels, (place[somewhere] - expected).astype(np.int32), share)


def _channels_read(out_slots: Slots, per_out: int, per_in: int, lanes: int) -> list[list[int]]:
    """Input channels that each output block reads: those of all groups it holds channels of."""
    return [
        [group * per_in + i for group in np.unique(block[block >= 0] // per_out) for i in range(per_in)]
        for block in out_slots.reshape(-1, lanes)
    ]


def _expected(row: Any, step: Any, shape: tuple[int, int], slots: int) -> Any:
    """The slot that step `step` of table row `row` would read if groups lay side by side: at most slots - 2.

    Tables hold the difference. Whatever small numbers they are measured with, the input is then read all over.
    """
    rows, steps = shape
    return row * ((slots - 1 - steps) // max(rows - 1, 1)) + step


def grouped_slots(out_channels: int, in_channels: int, groups: int, lanes: int, *, in_order: bool) -> Slots | None:
    """The output slots of a gathered 1x1 convolution, or None where a banded one is cheaper.

    Counted are multiply-adds, and the blocks that the kernels around it have to move.

    Args:
        in_order: whether the input's slots are in order; a band needs them to be, and would have to copy them.
    """
    if min(in_channels, out_channels) // groups == 1:
        return None
    blocks, in_blocks = -(-out_channels // lanes), -(-in_channels // lanes)
    width = band_of(out_channels, in_channels, groups, in_blocks, lanes).width
    least = blocks * (width * lanes + _BLOCK_COST) + (0 if in_order else in_blocks * _BLOCK_COST)
    best = None
    for slots in (_padded(out_channels, out_channels, lanes), _aligned(out_channels, groups, lanes)):
        read = _channels_read(slots, out_channels // groups, in_channels // groups, lanes)
        steps = max(map(len, read))
        cost = len(read) * (steps + _BLOCK_COST)
        if cost < least and steps < in_channels:
            best, least = slots, cost
    return best


def _aligned(channels: int, groups: int, lanes: int) -> Slots:
    """Slots whose blocks hold whole groups, or parts of a single one."""
    size = channels // groups
    return _padded(channels, size if size >= lanes else lanes // size * size, lanes)


def _padded(channels: int, run: int, lanes: int) -> Slots:
    """Slots in which every run of `run` channels starts a new block."""
    slots = []
    for start in range(0, channels, run):
        held = list(range(start, min(start + run, channels)))
        slots += held + [-1] * (-len(held) % lanes)
    return np.array(slots, np.int64)


def pack_gathered_weight(
    weight: NDArray[np.float32],  # (OC, IC / groups, KH, KW)
    out_slots: Slots,
    gathering: Gathering,
    groups: int,
    lanes: int,
) -> NDArray[np.float32]:
    """Pack in the order of the table: (OCB, R / chunk, KH, KW, chunk, L)."""
    oc, per_in, kh, kw = weight.shape
    channels = np.repeat(gathering.channels, gathering.share, axis=0)  # (OCB, R)
    blocks, steps = channels.shape
    packed = np.zeros((blocks, steps, lanes, kh, kw), np.float32)
    for slot, channel in enumerate(out_slots):
        if channel < 0:
            continue
        within = channels[slot // lanes] - channel // (oc // groups) * per_in
        read = (within >= 0) & (within < per_in) & (channels[slot // lanes] >= 0)
        packed[slot // lanes, read, slot % lanes] = weight[channel, within[read]]
    chunk = max(divisor for divisor in range(1, _CHUNK + 1) if steps % divisor == 0)
    chunked = packed.reshape(blocks, steps // chunk, chunk, lanes, kh, kw)
    return np.ascontiguousarray(chunked.transpose(0, 1, 4, 5, 2, 3))


def weight_at_slots(weight: NDArray[np.float32], out_slots: Slots) -> NDArray[np.float32]:
    """(OC, IC, KH, KW) -> one row for every output slot, 0 for a hole; as it is where the channels lie in order."""
    if np.array_equal(out_slots[: len(weight)], np.arange(len(weight))):
        return weight
    full = np.zeros((len(out_slots), *weight.shape[1:]), np.float32)
    full[out_slots >= 0] = weight[out_slots[out_slots >= 0]]
    return full


def pack_conv_weight(
    weight: NDArray[np.float32],  # (OC, IC / groups, KH, KW)
    slots: NDArray[np.int64],  # (in_blocks * L,) logical input channel of each slot, -1 for a hole
    groups: int,
    band: Band,
    lanes: int,
) -> NDArray[np.float32]:
    """Pack for blocked input: (OCB, band, KH, KW, L in, L out)."""
    oc, per_in, kh, kw = weight.shape
    out_blocks, in_blocks = -(-oc // lanes), len(slots) // lanes
    if groups == 1:
        full = np.zeros((out_blocks * lanes, in_blocks * lanes, kh, kw), np.float32)
        held = slots >= 0
        full[:oc, held] = weight[:, slots[held]]
        blocked = full.reshape(out_blocks, lanes, in_blocks, lanes, kh, kw)
        return np.ascontiguousarray(blocked.transpose(0, 2, 4, 5, 3, 1))
    packed = np.zeros((out_blocks, band.width, kh, kw, lanes, lanes), np.float32)
    per_out = oc // groups
    for channel in range(oc):
        block, lane = divmod(channel, lanes)
        group = channel // per_out
        where = np.arange(group * per_in, (group + 1) * per_in)
        packed[block, where // lanes - band.start(block), :, :, where % lanes, lane] = weight[channel]
    return packed


def pack_plain_conv_weight(weight: NDArray[np.float32], lanes: int) -> NDArray[np.float32]:
    """Pack for plain NCHW input: (OC, IC, KH, KW) -> (OCB, IC, KH, KW, L)."""
    oc, ic, kh, kw = weight.shape
    blocks = -(-oc // lanes)
    full = np.zeros((blocks * lanes, ic, kh, kw), np.float32)
    full[:oc] = weight
    return np.ascontiguousarray(full.reshape(blocks, lanes, ic, kh, kw).transpose(0, 2, 3, 4, 1))


def conv2d(data: te.Tensor, weight: te.Tensor, window: Window, band: Band) -> te.Tensor:
    """Blocked convolution: [N, ICB, H, W, L] x [OCB, band, KH, KW, L, L] -> [N, OCB, OH, OW, L].

    Where the data's contraction packs p elements, weights come as [OCB, band, KH, KW, L / p, p L] (`casts.packed`); the
    result is float32.
    """
    batch, _, height, width, lanes = ints(data.shape)
    out_blocks, _, kh, kw, _, _ = ints(weight.shape)
    out_h, out_w = window.output(height, width)
    tiled_w = tileable(out_w)
    padded = padded_to(data, window, out_h, tiled_w)
    icb = te.reduce_axis((0, band.width), "icb")
    ky = te.reduce_axis((0, kh), "kh")
    kx = te.reduce_axis((0, kw), "kw")
    (sy, sx), (dy, dx) = window.strides, window.dilation
    pack = contraction_reading(str(data.dtype)).pack
    channels = [te.reduce_axis((0, lanes // pack), "ici")]
    if pack > 1:
        channels.append(te.reduce_axis((0, pack), "part"))

    def product(n: tirx.Var, o: tirx.Var, y: tirx.Var, x: tirx.Var, lane: tirx.Var) -> tirx.Expr:
        source = (n, band.start(o) + icb, y * sy + ky * dy, x * sx + kx * dx)
        ici, *part = channels
        channel, slot = (ici * pack + part[0], lane * pack + part[0]) if part else (ici, lane)
        return casts.widened(padded(*source, channel)) * casts.widened(weight(o, icb, ky, kx, ici, slot))

    result = te.compute(
        (batch, out_blocks, out_h, tiled_w, lanes),
        lambda *i: te.sum(product(*i), axis=[icb, ky, kx, *channels]),
        name="conv2d",
        attrs={OPERATOR: "conv2d"},
    )
    return cropped(result, out_w)


def conv2d_gathered(data: te.Tensor, weight: te.Tensor, table: te.Tensor, window: Window) -> te.Tensor:
    """Blocked convolution without padding whose output block o reads the slots that row o // share of `table` names.

    [N, ICB, H, W, L] x [OCB, R / chunk, KH, KW, chunk, L] -> [N, OCB, OH, OW, L], table [OCB / share, R].
    """
    batch, in_blocks, height, width, lanes = ints(data.shape)
    out_blocks, chunks, kh, kw, chunk, _ = ints(weight.shape)
    rows, steps = ints(table.shape)
    out_h, out_w = window.output(height, width)
    icb = te.reduce_axis((0, chunks), "icb")
    ky = te.reduce_axis((0, kh), "kh")
    kx = te.reduce_axis((0, kw), "kw")
    ici = te.reduce_axis((0, chunk), "ici")
    (sy, sx), (dy, dx) = window.strides, window.dilation

    def product(n: tirx.Var, o: tirx.Var, y: tirx.Var, x: tirx.Var, lane: tirx.Var) -> tirx.Expr:
        row, step = o // (out_blocks // rows), icb * chunk + ici
        slot = table[row, step] + _expected(row, step, (rows, steps), in_blocks * lanes)
        source = data[n, slot // lanes, y * sy + ky * dy, x * sx + kx * dx, slot % lanes]
        return source * weight[o, icb, ky, kx, ici, lane]

    return te.compute(
        (batch, out_blocks, out_h, out_w, lanes),
        lambda *i: te.sum(product(*i), axis=[icb, ky, kx, ici]),
        name="conv2d_gathered",
        attrs={OPERATOR: "conv2d"},
    )


def conv2d_plain(data: te.Tensor, weight: te.Tensor, window: Window) -> te.Tensor:
    """First-layer convolution: plain [N, IC, H, W] x [OCB, IC, KH, KW, L] -> blocked [N, OCB, OH, OW, L]."""
    batch, channels, height, width = ints(data.shape)
    out_blocks, _, kh, kw, lanes = ints(weight.shape)
    out_h, out_w = window.output(height, width)
    tiled_w = tileable(out_w)
    padded = padded_to(data, window, out_h, tiled_w)
    ic = te.reduce_axis((0, channels), "ic")
    ky = te.reduce_axis((0, kh), "kh")
    kx = te.reduce_axis((0, kw), "kw")
    (sy, sx), (dy, dx) = window.strides, window.dilation
    result = te.compute(
        (batch, out_blocks, out_h, tiled_w, lanes),
        lambda n, o, y, x, l: te.sum(
            padded[n, ic, y * sy + ky * dy, x * sx + kx * dx] * weight[o, ic, ky, kx, l], axis=[ic, ky, kx]
        ),
        name="conv2d_plain",
        attrs={OPERATOR: "conv2d"},
    )
    return cropped(result, out_w)
