"""How softmax and layer normalisation are lowered: over plain rows."""

from __future__ import annotations

from tvm import te

from calumma.expressions.integers import ints
from calumma.graph.context import OUT_ELEMENTWISE_FUSABLE, Declined, LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import Node
from calumma.operators.rows import expression


def lower_softmax(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `nn.softmax` and `nn.log_softmax`."""
    if not lo.computes(node):
        return Declined(f"it computes in {node.dtype}")
    axis = int(node.attrs.axis) % len(node.shape)
    source = lo.value(node.args[0])
    function = expression.softmax if node.op == "nn.softmax" else expression.log_softmax
    if axis == 1 and len(node.shape) == 4 and node.shape[2:] == (1, 1):
        flat = lo.reshaped(source, node.shape[:2])
        expr = lo.emit(lambda x: function(x, 1, lo.lanes), flat.expr, kind=OUT_ELEMENTWISE_FUSABLE, name="softmax")
        return lo.reshaped(Value(expr, node.shape[:2]), node.shape)
    expr = lo.emit(
        lambda x: function(x, axis, lo.lanes), lo.to_plain(source).expr, kind=OUT_ELEMENTWISE_FUSABLE, name="softmax"
    )
    return Value(expr, node.shape)


def lower_layer_norm(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `nn.layer_norm`."""
    data, gamma, beta = node.args[:3]
    rank = len(data.shape)
    axes = [a % rank for a in ints(node.attrs.axes)]
    if axes != list(range(rank - len(axes), rank)):
        return Declined(f"it is over axes {axes} of {rank}, not the last ones")
    operands = [data, *([gamma] if node.attrs.scale else []), *([beta] if node.attrs.center else [])]
    epsilon = float(node.attrs.epsilon)

    def normalised(x: te.Tensor, *given: te.Tensor) -> te.Tensor:
        g = given[0] if node.attrs.scale else None
        b = given[-1] if node.attrs.center else None
        return expression.layer_norm(x, g, b, len(axes), epsilon, lo.lanes)

    expr = lo.emit(normalised, *(lo.plain(n).expr for n in operands), kind=OUT_ELEMENTWISE_FUSABLE, name="layer_norm")
    return Value(expr, node.shape)
