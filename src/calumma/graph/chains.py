"""Chains of elementwise operators in a graph."""

from __future__ import annotations

from calumma.expressions.elementwise import BINARY, UNARY
from calumma.graph.nodes import CONSTANT, Node

BINARY_NAMES = frozenset(BINARY)
"""Graph operators that join two values element by element."""


def is_map(node: Node) -> bool:
    """Whether a node applies an elementwise operator to one value, with constants at most beside it."""
    variables = [source for source in node.inputs if source.op != CONSTANT]
    return node.op in (*UNARY, *BINARY) and len(variables) == 1


def origin(node: Node) -> Node:
    """The value that elementwise operators with constants are applied to."""
    while is_map(node):
        (node,) = (source for source in node.inputs if source.op != CONSTANT)
    return node
