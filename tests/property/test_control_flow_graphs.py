"""Random graphs of branches and loops, nested, against NumPy: what is kept, shared and overwritten in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tvm import relax

from calumma.core import hardware as host
from calumma.graph import control_flow
from calumma.graph.build import operator, scalar
from calumma.graph.imported_model import ImportedModel
from calumma.graph.nodes import INPUT, Graph, Node, constant
from calumma.pipeline import CompileOptions
from calumma.pipeline.compiled import compile_model
from calumma.pipeline.preparation import prepare

OP = relax.op
SHAPE = (1, 64)
Known = dict[int, Any]
"""id of a value -> what it is in one run of its graph."""


@dataclass(frozen=True, eq=False)
class Value:
    """A node, and what it computes from the values of its graph that are known."""

    node: Node
    compute: Callable[[Known], Any]

    def of(self, known: Known) -> Any:
        if id(self) not in known:
            known[id(self)] = self.compute(known)
        return known[id(self)]


def port(like: Node) -> Value:
    return Value(Node(INPUT, shape=like.shape, dtype=like.dtype, name="p"), lambda known: None)


def graph(inputs: Sequence[Value], outputs: Sequence[Value]) -> Graph:
    return Graph(
        [value.node for value in inputs], [value.node for value in outputs], [str(i) for i, _ in enumerate(outputs)]
    )


def bound(ports: Sequence[Value], given: Sequence[Any]) -> Known:
    return {id(port): value for port, value in zip(ports, given, strict=True)}


class Author:
    """Writes random graphs over tensors of one shape and integers."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, values: Sequence[Value], count: int) -> list[Value]:
        return [values[i] for i in self.rng.permutation(len(values))[:count]]

    def weight(self, rows: int) -> Node:
        return constant((self.rng.standard_normal((rows, 64)) * 0.1).astype(np.float32))

    def write(self, tensors: list[Value], integers: list[Value], count: int, depth: int) -> None:
        """Add `count` operators or regions to the tensors of a graph."""
        for _ in range(count):
            kind = int(self.rng.integers(8 if depth < 3 else 5))
            a, b = (tensors[self.rng.integers(len(tensors))] for _ in range(2))
            if kind < 5:
                tensors.append(self.simple(kind, a, b))
            elif kind == 5:
                tensors += self.branch(tensors, integers, depth)
            else:
                tensors += self.loop(tensors, integers, depth)

    def simple(self, kind: int, a: Value, b: Value) -> Value:
        if kind == 0:
            return Value(operator(OP.tanh, operator(OP.add, a.node, b.node)), lambda k: np.tanh(a.of(k) + b.of(k)))
        if kind == 1:
            w = self.weight(64)
            return Value(operator(OP.tanh, operator(OP.matmul, a.node, w)), lambda k: np.tanh(a.of(k) @ w.value))
        if kind == 2:  # parts that lie side by side
            w = self.weight(128)
            parts = [operator(OP.nn.relu, a.node), operator(OP.negative, b.node)]
            return Value(
                operator(OP.matmul, operator(OP.concat, parts, axis=1), w),
                lambda k: np.concatenate([np.maximum(a.of(k), 0), -b.of(k)], 1) @ w.value,
            )
        if kind == 3:  # the same bytes
            return Value(operator(OP.reshape, operator(OP.reshape, a.node, (8, 8)), SHAPE), a.of)
        total = operator(OP.sum, a.node, axis=1, keepdims=True)
        return Value(
            operator(OP.tanh, operator(OP.add, total, b.node)),
            lambda k: np.tanh(a.of(k).sum(1, keepdims=True) + b.of(k)),
        )

    def branch(self, tensors: list[Value], integers: list[Value], depth: int) -> list[Value]:
        outer = [*self.pick(tensors, 3), *self.pick(integers, 1)]
        chooser, most = integers[self.rng.integers(len(integers))], int(self.rng.integers(4))
        condition = operator(OP.less, operator(OP.mod, chooser.node, scalar(3, "int64")), scalar(most, "int64"))
        sides = []
        for _ in range(2):
            ports = [port(value.node) for value in outer]
            inner = ports[:-1]
            self.write(inner, ports[-1:], int(self.rng.integers(4)), depth + 1)
            sides.append((ports, [inner[self.rng.integers(len(inner))] for _ in range(2)]))
        then, otherwise = (graph(*side) for side in sides)
        items = control_flow.branch(condition, [value.node for value in outer], then, otherwise)

        def run(known: Known) -> list[Any]:
            ports, results = sides[0 if chooser.of(known) % 3 < most else 1]
            inner = bound(ports, [value.of(known) for value in outer])
            return [result.of(inner) for result in results]

        return shared(items, run)

    def loop(self, tensors: list[Value], integers: list[Value], depth: int) -> list[Value]:
        carried = [tensors[self.rng.integers(len(tensors))] for _ in range(self.rng.integers(1, 4))]
        outer = [*self.pick(tensors, 2), *self.pick(integers, 1)]
        chooser, fixed = integers[self.rng.integers(len(integers))], int(self.rng.integers(5))
        trips = scalar(fixed, "int64") if fixed else operator(OP.mod, chooser.node, scalar(4, "int64"))
        iteration = port(scalar(0, "int64"))
        ports = [port(value.node) for value in (*carried, *outer)]
        inner = ports[:-1]
        self.write(inner, [iteration, ports[-1]], int(self.rng.integers(1, 5)), depth + 1)
        results = [inner[self.rng.integers(len(inner))] for _ in carried]
        early = bool(self.rng.integers(2)) and not fixed
        rows = [inner[self.rng.integers(len(inner))]] if fixed else []
        goes_on = operator(OP.less, iteration.node, ports[-1].node) if early else scalar(True, "bool")
        body = graph([iteration, *ports], [Value(goes_on, lambda k: None), *results, *rows])
        _, last, piled = control_flow.loop(
            trips, None, [v.node for v in carried], [v.node for v in outer], body, rows=fixed
        )

        def run(known: Known) -> list[Any]:
            state, captured = [v.of(known) for v in carried], [v.of(known) for v in outer]
            made, total, count = 0, 0, fixed or chooser.of(known) % 4
            while made < count:
                now = bound([iteration, *ports], [made, *state, *captured])
                state = [result.of(now) for result in results]
                total = total + rows[0].of(now) if rows else total
                made += 1
                if early and made - 1 >= captured[-1]:
                    break
            return [*state, total]

        return shared([*last, *(operator(OP.sum, pile, axis=0) for pile in piled)], run)


def shared(nodes: Sequence[Node], run: Callable[[Known], list[Any]]) -> list[Value]:
    """Several results of one computation."""
    whole = Value(nodes[0], run)

    def result(index: int) -> Callable[[Known], Any]:
        return lambda known: whole.of(known)[index]

    return [Value(node, result(i)) for i, node in enumerate(nodes)]


@pytest.mark.parametrize("seed", range(5))
def test_random_control_flow_computes_what_numpy_says(seed: int) -> None:
    author = Author(seed)
    inputs = [port(Node(INPUT, shape=SHAPE, dtype="float32")) for _ in range(2)]
    inputs += [port(scalar(0, "int64")) for _ in range(2)]
    for index, value in enumerate(inputs):
        value.node.name = f"x{index}"
    tensors = inputs[:2]
    author.write(tensors, inputs[2:], 4, 0)
    tensors += author.branch(tensors, inputs[2:], 0) + author.loop(tensors, inputs[2:], 0)
    outputs = tensors[-6:]
    imported = ImportedModel(graph(inputs, outputs), "random", "0", {})
    prepared = prepare(imported, CompileOptions(threads=min(2, host.physical_cores())))
    artifact = compile_model(prepared, {}).artifact
    rng = np.random.default_rng(seed)
    for n in range(4):
        for m in range(3):
            given = [*rng.standard_normal((2, *SHAPE), np.float32), np.array(n), np.array(m)]
            known = bound(inputs, given)
            for found, value in zip(artifact(*given), outputs, strict=True):
                np.testing.assert_allclose(found, value.of(known), rtol=1e-3, atol=1e-3)
