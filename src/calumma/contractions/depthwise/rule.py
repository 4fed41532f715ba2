"""How a depthwise `nn.conv2d` is lowered: block by block, in the order that its input's channels have."""

from __future__ import annotations

from calumma.contractions.convolution.rule import refusal, window_of
from calumma.contractions.depthwise import expression
from calumma.graph.context import OUT_ELEMENTWISE_FUSABLE, Declined, LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import Node


def lower_depthwise(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `nn.conv2d` with as many groups as input and output channels."""
    declined = refusal(lo, node)
    if declined is not None:
        return declined
    data, weight = node.args[:2]
    groups = int(node.attrs.groups)
    if not groups == data.shape[1] == node.shape[1] or groups == 1:
        return Declined(f"{groups} groups of {data.shape[1]} inputs and {node.shape[1]} outputs are not depthwise")
    window = window_of(node)
    source = lo.to_blocked(lo.value(data))
    packed = lo.param(
        expression.pack_depthwise_weight(weight.value, source.slot_map, lo.lanes),
        ("depthwise", weight, source.slot_map.tobytes()),
    )
    expr = lo.emit(
        lambda x, w: expression.depthwise_conv2d(x, w, window),
        source.expr,
        packed,
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="depthwise_conv2d",
    )
    return Value(expr, node.shape, source.slots)
