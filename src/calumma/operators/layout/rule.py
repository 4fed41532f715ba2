"""How operators that only move elements are lowered: by other slot maps where that will do, else by copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, tirx, topi

from calumma.contractions.convolution.rule import reads_part
from calumma.expressions.integers import ints
from calumma.graph.context import INJECTIVE, Declined, LoweringContext
from calumma.graph.layouts import ChannelParts, Slots, Value, phase_slots
from calumma.graph.nodes import CONSTANT, Node
from calumma.operators.layout import expression


def lower_reshape(lo: LoweringContext, node: Node) -> Value:
    """The rule of `reshape`."""
    return lo.reshaped(lo.stored(node.args[0]), node.shape)


def lower_concat(lo: LoweringContext, node: Node) -> Value:
    """The rule of `concat`: side by side in memory where the parts can be written there, else a copy."""
    parts = list(node.args[0])
    axis = int(node.attrs.axis or 0) % max(len(node.shape), 1)
    narrow = lo.stores_narrow(node) or all(lo.is_narrow(lo.stored(part)) for part in parts)
    sources = [lo.narrowed(part) if narrow else lo.value(part) for part in parts]
    slots = None
    if axis == 1 and len(node.shape) == 4 and any(s.slots is not None for s in sources):
        sources = [lo.to_blocked(s) for s in sources]
        offsets = np.cumsum([0, *(part.shape[1] for part in parts[:-1])])
        maps = [source.slot_map for source in sources]
        slots = np.concatenate([np.where(m >= 0, m + offset, -1) for m, offset in zip(maps, offsets, strict=True)])
    else:
        sources = [lo.to_plain(s) for s in sources]
    exprs = [s.expr for s in sources]
    if lo.adjacent(exprs, axis):
        return Value(lo.place_side_by_side(exprs, axis), node.shape, slots)
    joined = lo.emit(lambda *x: expression.concat(x, axis), *exprs, kind=INJECTIVE, name="concat")
    return Value(joined, node.shape, slots)


def lower_shuffle(lo: LoweringContext, node: Node) -> Value:
    """The rule of a channel shuffle: output channel c is input channel source[c]. A plain value is blocked first."""
    value = lo.to_blocked(lo.stored(node.args[0]))
    inverse = np.argsort(node.attrs.source)
    slots = np.where(value.slot_map >= 0, inverse[np.maximum(value.slot_map, 0)], -1)
    return Value(value.expr, node.shape, slots)


def lower_interleave(lo: LoweringContext, node: Node) -> Value:
    """The rule of `calumma.interleave`."""
    attrs = node.attrs
    data, channels = node.args[0], node.shape[1]
    value = lo.to_blocked(lo.value(data), phase_slots(data.shape[1], channels, lo.lanes))
    plain = channels <= lo.lanes // 2
    phase = channels if plain else len(lo.identity_slots(channels))
    expr = lo.emit(
        lambda x: expression.interleave(x, phase, attrs.strides, attrs.starts, node.shape, plain=plain),
        value.expr,
        kind=INJECTIVE,
        name="interleave",
    )
    return Value(expr, node.shape, None if plain else lo.identity_slots(channels))


def lower_permute(lo: LoweringContext, node: Node) -> Value:
    """The rule of `permute_dims`."""
    axes = None if node.attrs.axes is None else ints(node.attrs.axes)
    expr = lo.emit(lambda x: topi.transpose(x, axes), lo.to_plain(lo.stored(node.args[0])).expr, name="transpose")
    return Value(expr, node.shape)


def lower_take(lo: LoweringContext, node: Node) -> Value | Declined:
    """Gather along one axis; an index outside is clamped, where TVM's own lowering would read foreign memory."""
    data, indices = node.args[:2]
    if node.attrs.axis is None:
        return Declined("it gathers from the flattened tensor")
    axis = int(node.attrs.axis)
    expr = lo.emit(
        lambda x, i: topi.take(x, i, axis, mode="clip"),
        lo.plain(data).expr,
        lo.plain(indices).expr,
        kind=INJECTIVE,
        name="take",
    )
    return Value(expr, node.shape)


def lower_split(lo: LoweringContext, node: Node) -> ChannelParts | Declined:
    """The rule of `split` of blocked channels: nothing is computed, parts are read where they are."""
    data, attrs = node.args[0], node.attrs
    refused = _no_channels(lo, data)
    if refused is not None or int(attrs.axis) % 4 != 1:
        return refused or Declined(f"it splits axis {int(attrs.axis)}, not channels")
    source = lo.stored(data)
    where = attrs.indices_or_sections
    if isinstance(where, (int, tirx.IntImm)):
        size = -(-data.shape[1] // int(where))
        return ChannelParts(source, tuple(range(0, data.shape[1], size)))
    starts = (0, *ints(where))
    has_empty = any(start >= end for start, end in zip(starts, (*starts[1:], data.shape[1]), strict=True))
    return Declined("a part of it is empty") if has_empty else ChannelParts(source, starts)


def lower_slice(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `strided_slice` of consecutive blocked channels."""
    data, *bounds = node.args
    refused = _no_channels(lo, data)
    if refused is not None:
        return refused
    axes, begin, _, *strides = ([int(item.value) for item in bound] for bound in bounds)
    if axes != [1] or strides not in ([], [[1]]) or node.shape[1] == 0:
        return Declined("it does not cut out consecutive channels")
    start = begin[0] + data.shape[1] if begin[0] < 0 else begin[0]
    return _part(lo, node, lo.stored(data), max(start, 0))


def lower_tuple_item(lo: LoweringContext, node: Node) -> Value:
    """A part of a split, or an item of whatever TVM lowers to several tensors."""
    source: Any = lo.values[node.args[0]]
    if isinstance(source, ChannelParts):
        return _part(lo, node, source.source, source.starts[node.attrs.index])
    return Value(lo.builder.emit(relax.TupleGetItem(source.expr, node.attrs.index)), node.shape)


def _no_channels(lo: LoweringContext, data: Node) -> Declined | None:
    """Why a value has no blocked channels to take parts of; None where it has."""
    if data.op == CONSTANT or len(data.shape) != 4 or not lo.computes(data):
        return Declined(f"it reads {data.dtype}{list(data.shape)}, not images that the model computes")
    return None if lo.stored(data).slots is not None else Declined("its input is not in blocks of channels")


def _part(lo: LoweringContext, node: Node, source: Value, start: int) -> Value:
    """Some channels of a blocked value: itself with more holes where that is all its readers want, else a copy."""
    within = source.slot_map - start
    slots: Slots = np.where((source.slot_map >= start) & (within < node.shape[1]), within, -1)
    part = Value(source.expr, node.shape, slots)
    if all(reader.op == "nn.conv2d" and reads_part(lo, reader, slots) for reader in lo.users[node]):
        return part
    held = slots[slots >= 0]
    return lo.to_blocked(part, np.concatenate([held, np.full(-len(held) % lo.lanes, -1, np.int64)]))
