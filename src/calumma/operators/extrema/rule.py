"""How the indices of extrema are lowered, on plain values."""

from __future__ import annotations

from tvm import te, topi

from calumma.graph.context import LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import Node
from calumma.operators.extrema import expression


def lower_index_of_extremum(lo: LoweringContext, node: Node) -> Value:
    """The rule of `argmax` and `argmin`, along one axis or of the flattened tensor."""
    function = expression.argmax if node.op == "argmax" else expression.argmin
    axis, keepdims = node.attrs.axis, bool(node.attrs.keepdims)

    def indices(x: te.Tensor) -> te.Tensor:
        if axis is not None:
            return function(x, int(axis), keepdims)
        return topi.reshape(function(topi.reshape(x, [-1]), 0), node.shape)

    return Value(lo.emit(indices, lo.plain(node.args[0]).expr, name=node.op), node.shape)
