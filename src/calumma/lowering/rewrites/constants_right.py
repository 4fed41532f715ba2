"""Constants as second operands."""

from __future__ import annotations

from calumma.graph.nodes import CONSTANT, Graph


def put_constants_right(graph: Graph) -> None:
    """c + x becomes x + c, and c * x becomes x * c: every rewrite looks for constants on the right."""
    for node in graph.nodes():
        if node.op in ("add", "multiply") and node.args[0].op == CONSTANT and node.args[1].op != CONSTANT:
            node.args = node.args[::-1]
