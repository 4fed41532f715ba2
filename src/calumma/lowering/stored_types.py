"""Which operators of a graph contract in a narrow type, and whose results are stored in it for them."""

from __future__ import annotations

from calumma import operators
from calumma.core.contraction import Contraction
from calumma.graph.chains import BINARY_NAMES, origin
from calumma.graph.context import StoredTypes
from calumma.graph.nodes import CONSTANT, INPUT, TUPLE_ITEM, Graph, Node


def stored_types(graph: Graph, contraction: Contraction, lanes: int) -> StoredTypes:
    """What a contraction means for the operators of a graph; nothing where its types are wide."""
    if not contraction.is_narrow:
        return StoredTypes()
    forms = [family.contracts for family in operators.families() if family.contracts is not None]
    contracting = frozenset(
        node
        for node in graph.nodes()
        if node.dtype == contraction.accumulate and any(has_form(node, contraction, lanes) for has_form in forms)
    )
    return StoredTypes(contracting, _sources(contracting) | _joined(graph, contracting))


def _sources(contracting: frozenset[Node]) -> frozenset[Node]:
    """The operators whose results contractions read, possibly moved."""
    found: set[Node] = set()
    pending = [node.args[0] for node in contracting]
    while pending:
        node = pending.pop()
        if node in found or node.op in (INPUT, CONSTANT, TUPLE_ITEM):
            continue
        found.add(node)
        if operators.moves(node.op):
            pending += node.inputs
    return frozenset(found)


def _joined(graph: Graph, contracting: frozenset[Node]) -> frozenset[Node]:
    """Where an operator joins two contractions element by element, what the first of them gives.

    Only one can be computed in the operator's kernel: the other's result is stored, and read there.
    """

    def contraction_behind(node: Node) -> Node | None:
        node = origin(node)
        return node if node in contracting else None

    found = set()
    for node in graph.nodes():
        if node.op in BINARY_NAMES and all(source.shape == node.shape for source in node.args):
            left, right = map(contraction_behind, node.args)
            if left is not None and right is not None and left is not right:
                found.add(node.args[0])
    return frozenset(found)
