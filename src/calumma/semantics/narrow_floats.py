"""float16 and bfloat16 at the edges of a model whose values are computed in float32."""

from __future__ import annotations

from tvm import te, tirx

from calumma.expressions import casts
from calumma.graph.build import expression
from calumma.graph.nodes import Node
from calumma.tvm_compat.bfloat16 import nearest


def widened(node: Node) -> Node:
    """The values of a float16 or bfloat16 node in float32, exactly."""

    def wide(value: tirx.Expr) -> tirx.Expr:
        return value.astype("float32") if node.dtype == "float16" else casts.widened(value)

    return expression(lambda x: te.compute(x.shape, lambda *i: wide(x(*i)), name="widen"), node, name="widen")


def narrowed(node: Node, dtype: str) -> Node:
    """The values of a float32 node rounded to the nearest in `dtype`, ties to even."""

    def narrow(value: tirx.Expr) -> tirx.Expr:
        return value.astype("float16") if dtype == "float16" else nearest(value)

    return expression(lambda x: te.compute(x.shape, lambda *i: narrow(x(*i)), name="narrow"), node, name="narrow")
