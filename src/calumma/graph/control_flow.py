"""Control flow in a graph: nodes that hold graphs of their own.

`calumma.branch`: args (condition, captured); attrs `then` and `otherwise`, graphs of the captured values, and
`refusals`. Its results are theirs, which have the same shapes and types.

`calumma.loop`: args (trips, condition, carried, captured); attrs `body`, `carried` (how many) and `rows`. The body's
inputs are the number of the iteration, from 0, the carried values and the captured ones. Its outputs are whether to go
on, the next carried values, and what is stacked over the iterations. An iteration is made as long as there were fewer
than `trips` (int64; None: no limit), `condition` held before the first (None: it does), and the last one said to go on.
The results are whether to go on, which is of no use any more, the number of iterations made (int64), the carried
values, and the stacked ones with `rows` rows.

A captured value is one that a graph reads from outside: nodes of one graph never read those of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

from calumma.graph.nodes import BRANCH, CONSTANT, LOOP, TUPLE_ITEM, Graph, Node


def branch(
    condition: Node,
    captured: Sequence[Node],
    then: Graph,
    otherwise: Graph,
    name: str = "",
    refusals: tuple[str, str] = ("", ""),
) -> list[Node]:
    """The results of one of two graphs.

    Args:
        condition: boolean scalar.
        captured: what both graphs read, in the order of their inputs.
        then, otherwise: what is computed where the condition holds, and where it does not.
        name: of the node, for people.
        refusals: for each graph, the message of the error with which a run ends that comes there; empty for none.
    """
    attrs = SimpleNamespace(then=then, otherwise=otherwise, refusals=refusals)
    node = Node(BRANCH, (condition, tuple(captured)), attrs, name=name)
    return [_item(node, i, result.shape, result.dtype) for i, result in enumerate(then.outputs)]


def loop(
    trips: Node | None,
    condition: Node | None,
    carried: Sequence[Node],
    captured: Sequence[Node],
    body: Graph,
    rows: int = 0,
    name: str = "",
) -> tuple[Node, list[Node], list[Node]]:
    """A graph that is repeated.

    Args:
        trips: int64 scalar, the most iterations; None for no limit.
        condition: boolean scalar, whether to begin; None if so.
        carried: the initial values of what the body replaces, which keep shape and type.
        captured: what else it reads.
        body: the graph.
        rows: rows of what is stacked: at least as many as there can be iterations. Rows of iterations that were not
            made hold anything: with fewer, the results have to be cropped to the first result.
        name: of the node, for people.

    Returns:
        The number of iterations made, the carried values after the last, and the stacked values.
    """
    attrs = SimpleNamespace(body=body, carried=len(carried), rows=rows)
    node = Node(LOOP, (trips, condition, tuple(carried), tuple(captured)), attrs, name=name)
    made = _item(node, 1, (), "int64")
    last = [_item(node, 2 + i, value.shape, value.dtype) for i, value in enumerate(carried)]
    stacked = [
        _item(node, 2 + len(carried) + i, (rows, *row.shape), row.dtype)
        for i, row in enumerate(body.outputs[1 + len(carried) :])
    ]
    return made, last, stacked


def _item(node: Node, index: int, shape: tuple[int, ...], dtype: str) -> Node:
    return Node(TUPLE_ITEM, (node,), SimpleNamespace(index=index), shape, dtype, node.name)


def graphs_of(node: Node) -> tuple[Graph, ...]:
    """The graphs that a node holds."""
    match node.op:
        case "calumma.branch":
            return node.attrs.then, node.attrs.otherwise
        case "calumma.loop":
            return (node.attrs.body,)
    return ()


def subgraphs(graph: Graph) -> Iterator[Graph]:
    """The graphs inside a graph, and those inside of them."""
    for node in graph.nodes():
        for inner in graphs_of(node):
            yield inner
            yield from subgraphs(inner)


def push_constants_inside(graph: Graph) -> list[Graph]:
    """Let the graphs directly inside a graph read the constants among their captured values as their own.

    Returns those graphs.
    """
    found: list[Graph] = []
    for node in graph.nodes():
        inside = graphs_of(node)
        found += inside
        if not inside:
            continue
        *others, captured = node.args
        for inner in inside:
            own = inner.inputs[len(inner.inputs) - len(captured) :]
            known = {port: value for port, value in zip(own, captured, strict=True) if value.op == CONSTANT}
            inner.replace(known)
            inner.inputs = [port for port in inner.inputs if port not in known]
        node.args = (*others, tuple(value for value in captured if value.op != CONSTANT))
    return found
