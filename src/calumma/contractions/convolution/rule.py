"""How `nn.conv2d` is lowered: as a first layer over plain channels, over gathered slots, or over whole blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calumma.contractions.convolution import expression
from calumma.core.contraction import Contraction
from calumma.expressions.integers import ints, pair, sides
from calumma.expressions.windows import Window
from calumma.graph.chains import BINARY_NAMES, is_map, origin
from calumma.graph.context import OUT_ELEMENTWISE_FUSABLE, Declined, LoweringContext
from calumma.graph.layouts import Slots, Value, phase_slots
from calumma.graph.nodes import CONSTANT, INTERLEAVE, Graph, Node

_PART_OF_SLOTS = 0.875
"""Share of held slots below which an input with holes is better gathered: measured on channel splits of ShuffleNet V2,
whose halves hold 0.5 of the slots, on the CPU of `target.costs`. It decides which kernel a layer becomes, and
so what a workload is (its hash): the same for every CPU."""


def refusal(lo: LoweringContext, node: Node) -> Declined | None:
    """Why a convolution is none that our expressions cover; None where they do."""
    weight, attrs = node.args[1], node.attrs
    if weight.op != CONSTANT:
        return Declined("its weights are computed by the model")
    if (attrs.data_layout, attrs.kernel_layout) != ("NCHW", "OIHW"):
        return Declined(f"its layout is {attrs.data_layout} with weights {attrs.kernel_layout}, not NCHW with OIHW")
    return None if lo.computes(node) else Declined(f"it computes in {node.dtype}")


def window_of(node: Node) -> Window:
    """The sliding window of a convolution in NCHW."""
    attrs, weight = node.attrs, node.args[1]
    return Window(pair(weight.shape[2:]), pair(attrs.strides), pair(attrs.dilation), sides(attrs.padding))


def lower_conv2d(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `nn.conv2d`."""
    declined = refusal(lo, node)
    if declined is not None:
        return declined
    data, weight = node.args[:2]
    window, groups, lanes = window_of(node), int(node.attrs.groups), lo.lanes
    source = lo.narrowed(data) if lo.contracts_narrow(node) else lo.value(data)
    channels, out_channels = data.shape[1], node.shape[1]
    out_slots = _result_slots(lo, node)
    rows = expression.weight_at_slots(weight.value, out_slots)
    if source.slots is None and groups == 1 and channels < lanes:
        packed = lo.param(expression.pack_plain_conv_weight(rows, lanes), ("first", weight, out_slots.tobytes()))
        expr = lo.emit(
            lambda x, w: expression.conv2d_plain(x, w, window),
            source.expr,
            packed,
            kind=OUT_ELEMENTWISE_FUSABLE,
            name="conv2d",
        )
        return Value(expr, node.shape, out_slots)
    gathered = _gathered(lo, node, source, window)
    if gathered is not None:
        return gathered
    source = lo.to_blocked(source, lo.identity_slots(channels) if groups > 1 else None)
    band = expression.band_of(out_channels, channels, groups, len(source.slot_map) // lanes, lanes)
    packed = lo.packed_weight(
        node,
        expression.pack_conv_weight(rows, source.slot_map, groups, band, lanes),
        ("conv", weight, source.slot_map.tobytes(), out_slots.tobytes()),
    )
    expr = lo.emit(
        lambda x, w: expression.conv2d(x, w, window, band),
        source.expr,
        packed,
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="conv2d",
    )
    return Value(expr, node.shape, out_slots)


def _gathered(lo: LoweringContext, node: Node, source: Value, window: Window) -> Value | None:
    """A 1x1 convolution that reads its channels wherever they are, or None where it better reads whole blocks."""
    data, weight = node.args[:2]
    source = lo.to_blocked(source)
    groups = int(node.attrs.groups)
    if groups == 1:
        out_slots = _result_slots(lo, node) if reads_part(lo, node, source.slot_map) else None
    else:
        in_order = np.array_equal(source.slot_map, lo.identity_slots(data.shape[1]))
        out_slots = _grouped_slots(node, lo.lanes, in_order=in_order)
    if out_slots is None:
        return None
    gathering = expression.gathering_of(out_slots, source.slot_map, node.shape[1], data.shape[1], groups, lo.lanes)
    expr = lo.emit(
        lambda x, w, where: expression.conv2d_gathered(x, w, where, window),
        source.expr,
        lo.param(
            expression.pack_gathered_weight(weight.value, out_slots, gathering, groups, lo.lanes),
            ("gathered", weight, out_slots.tobytes()),
        ),
        lo.param(gathering.table, ("table", gathering.table.tobytes(), gathering.table.shape)),
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="conv2d",
    )
    return Value(expr, node.shape, out_slots)


def _result_slots(lo: LoweringContext, node: Node) -> Slots:
    """Where a convolution that writes its channels in order puts them: phases are padded for who interleaves them."""
    readers = lo.users[node]
    if int(node.attrs.groups) == 1 and all(reader.op == INTERLEAVE for reader in readers):
        return phase_slots(node.shape[1], readers[0].shape[1], lo.lanes)
    return lo.identity_slots(node.shape[1])


def _grouped_slots(node: Node, lanes: int, *, in_order: bool) -> Slots | None:
    """The output slots of a grouped convolution that gathers its input; None for any other."""
    groups = int(node.attrs.groups)
    if groups == 1 or not _may_gather(node):
        return None
    return expression.grouped_slots(node.shape[1], node.args[0].shape[1], groups, lanes, in_order=in_order)


def _may_gather(node: Node) -> bool:
    """Whether a convolution's window and padding let it read single slots."""
    attrs, weight = node.attrs, node.args[1]
    blocked = weight.op == CONSTANT and (attrs.data_layout, attrs.kernel_layout) == ("NCHW", "OIHW")
    return blocked and node.dtype == "float32" and weight.shape[2:] == (1, 1) and not any(ints(attrs.padding))


def reads_part(lo: LoweringContext, node: Node, slots: Slots) -> bool:
    """Whether a convolution in one group had better leave out the holes of its input: a part of the channels."""
    channels = node.args[0].shape[1]
    few = len(slots) - channels >= lo.lanes and channels <= _PART_OF_SLOTS * len(slots)
    return few and int(node.attrs.groups) == 1 and not lo.contracts_narrow(node) and _may_gather(node)


def contracts(node: Node, contraction: Contraction, lanes: int) -> bool:
    """Whether a convolution has a form for narrow types: those in one group over blocks of channels."""
    if node.op != "nn.conv2d":
        return False
    data, weight = node.args[:2]
    blocked = node.attrs.data_layout == "NCHW" and node.attrs.kernel_layout == "OIHW"
    whole = lanes % contraction.pack == 0
    return blocked and weight.op == CONSTANT and int(node.attrs.groups) == 1 and data.shape[1] >= lanes and whole


def channel_orders(
    graph: Graph, users: Mapping[Node, list[Node]], lanes: int, joins: frozenset[str]
) -> dict[Node, Slots]:
    """The slots in which to store what is added to the result of a gathered convolution: that convolution's.

    Only for values that are brought into order anyway, or whose channels lie as their parts' did (the results of
    `joins`): one kernel then applies activations and reorders for all readers. The chain of residual sums behind keeps
    the order.
    """
    found: dict[Node, Slots] = {}
    for node in graph.nodes():
        slots = _grouped_slots(node, lanes, in_order=True) if node.op == "nn.conv2d" else None
        if slots is None:
            continue
        while len(users[node]) == 1:
            (reader,) = users[node]
            others = [source for source in reader.inputs if source is not node]
            if reader.op in BINARY_NAMES and len(others) == 1 and others[0].op != CONSTANT:
                if others[0].shape == node.shape and origin(others[0]).op in joins:
                    found.setdefault(others[0], slots)
                break
            if reader is node or not is_map(reader):
                break
            node = reader
    return found
