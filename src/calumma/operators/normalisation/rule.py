"""How local response normalisation is lowered, in whatever layout its input has."""

from __future__ import annotations

import numpy as np

from calumma.graph.context import OUT_ELEMENTWISE_FUSABLE, LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import Node
from calumma.operators.normalisation import expression


def lower_lrn(lo: LoweringContext, node: Node) -> Value:
    """The rule of `calumma.lrn`."""
    value = lo.value(node.args[0])
    if value.slots is not None and not np.array_equal(value.slots, np.arange(node.shape[1])):
        value = lo.to_plain(value)  # the window runs over neighbouring channels: no holes, no other order
    a = node.attrs
    expr = lo.emit(
        lambda x: expression.local_response_norm(x, size=a.size, alpha=a.alpha, beta=a.beta, bias=a.bias),
        value.expr,
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="lrn",
    )
    return Value(expr, node.shape, value.slots)
