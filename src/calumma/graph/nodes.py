"""A model as a list of operator nodes: what the graph passes read and rewrite before anything is lowered.

Constants are NumPy arrays, so folding them never compiles anything. A node keeps the Relax call it came from; an
operator without a rule of ours goes back to Relax and TVM's own legalisation.

Shapes are static. A value whose extent along an axis depends on values is a tensor of the largest shape it can have,
valid in a prefix of that axis; what lies behind is anything. A scalar node holds how long the prefix is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

INPUT = "input"
CONSTANT = "constant"
TUPLE_ITEM = "tuple_item"

EXPRESSION = "calumma.expression"
"""A function of TE tensors (attrs function, name, kind) applied to plain values: see `graph.build.expression`."""
MAP = "calumma.map"
"""A function of one element (attrs function, name, finite) applied to each, in whatever layout: see
`graph.build.mapped`."""
CHANNEL_SHUFFLE = "calumma.channel_shuffle"
INTERLEAVE = "calumma.interleave"
"""Phases woven into a finer plane (attrs strides (sy, sx), starts (oy, ox)); C channels from sy * sx * C:
out[n, c, y, x] = in[n, ((y + oy) % sy * sx + (x + ox) % sx) * C + c, (y + oy) // sy, (x + ox) // sx]."""
LRN = "calumma.lrn"
MATMUL = "calumma.matmul"
"""matmul with transposes of operands and result absorbed (attrs left_axes, right_axes, out_axes)."""
BRANCH = "calumma.branch"
LOOP = "calumma.loop"
"""Control flow (`graph.control_flow`)."""
RECURRENT = "calumma.recurrent"
"""A recurrent layer in one direction, over T steps, N rows of a batch, H hidden units, G gates; attrs: a `Recurrence`.

    args    x, input weights, input bias: gate inputs x W + b [T, N, G H], None, None; or the layer's input [T, N, I], a
            constant [G H, I], and a constant [G H] or None, for a layer that computes them itself;
            recurrent weights [G H, H]; and where the layer has them, else None: the recurrent bias [H] of a GRU's
            candidate (with `linear_before_reset`; other biases are in the gate inputs), peepholes [3, H] of the gates
            i, o, f, initial h [N, H], initial c [N, H], steps of each row int32 [N]
    result  a tuple: h of every step [T, N, H], h after the last step [N, H], for an LSTM c after the last step [N, H]

A row that ends before step T keeps its state from there on, and its h of those steps is zero; in reverse it starts at
its own last step. The final state of a row without any step is zero, as in ONNX Runtime."""


@dataclass(eq=False, repr=False)
class Node:
    """One operator application, model input or constant."""

    op: str
    """Relax operator name ("nn.conv2d"), or one of INPUT, CONSTANT, TUPLE_ITEM, or an operator of ours."""
    args: tuple[Any, ...] = ()
    """Nodes, tuples of nodes, or Relax leaves (shapes, primitive values), in the call's order."""
    attrs: Any = None
    """Relax's attributes of the call, or a namespace for an operator of ours."""
    shape: tuple[int, ...] = ()
    """Static shape; () also for a tuple-valued node."""
    dtype: str = ""
    name: str = ""
    value: Any = None
    """The array (np.ndarray) of a CONSTANT."""
    call: relax.Call | None = None
    extents: Mapping[int, Node] = field(default_factory=dict)
    """Axis -> int64 scalar with the extent at run time, for axes where that depends on values. Importers alone read
    it, to refuse what would take the rest of the tensor for values; a graph keeps those of its outputs."""
    sizes: NDArray[Any] | None = None
    """The numbers of a small integer tensor that importers follow from run-time extents (`extents.run_time_sizes`)."""

    def __repr__(self) -> str:
        return f"<{self.op} {self.name}: {self.dtype}{list(self.shape)}>"

    @property
    def inputs(self) -> list[Node]:
        """The nodes among the arguments, tuples flattened."""
        return [
            leaf for arg in self.args for leaf in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(leaf, Node)
        ]

    def replace_inputs(self, mapping: dict[Node, Node]) -> None:
        self.args = tuple(
            tuple(mapping.get(x, x) for x in arg)
            if isinstance(arg, tuple)
            else mapping.get(arg, arg)
            if isinstance(arg, Node)
            else arg
            for arg in self.args
        )


def constant(value: np.ndarray | np.generic, name: str = "") -> Node:
    """Make a constant node."""
    value = np.asarray(value)
    return Node(CONSTANT, shape=value.shape, dtype=str(value.dtype), name=name, value=value)


@dataclass
class Graph:
    """Inputs, outputs, and everything between, reachable from the roots."""

    inputs: list[Node]
    outputs: list[Node]
    output_names: list[str]
    extents: dict[tuple[int, int], Node] = field(init=False)
    """(Output, axis) -> the extent at run time, int64 scalar: those of the outputs, in order."""

    def __post_init__(self) -> None:
        self.extents = {
            (index, axis): output.extents[axis]
            for index, output in enumerate(self.outputs)
            for axis in sorted(output.extents)
        }

    @property
    def roots(self) -> list[Node]:
        """What a run returns: the outputs and the extents that belong to them."""
        return [*self.outputs, *self.extents.values()]

    def nodes(self) -> list[Node]:
        """All nodes that the roots need, each after its inputs."""
        order: list[Node] = []
        state: dict[Node, bool] = {}
        stack: list[tuple[Node, Iterator[Node]]] = []
        for root in self.roots:
            if root in state:
                continue
            state[root] = False
            stack.append((root, iter(root.inputs)))
            while stack:
                node, rest = stack[-1]
                for child in rest:
                    if child not in state:
                        state[child] = False
                        stack.append((child, iter(child.inputs)))
                        break
                else:
                    stack.pop()
                    state[node] = True
                    order.append(node)
        return order

    def users(self) -> dict[Node, list[Node]]:
        """Node -> the nodes that read it; a root counts as one more reader (itself)."""
        result: dict[Node, list[Node]] = {}
        for node in self.nodes():
            for source in node.inputs:
                result.setdefault(source, []).append(node)
        for node in self.roots:
            result.setdefault(node, []).append(node)
        return result

    def replace(self, mapping: dict[Node, Node]) -> None:
        """Let every reader of a key read its value instead; chains of replacements are followed."""
        resolved: dict[Node, Node] = {}
        for key in mapping:
            target = mapping[key]
            while target in mapping:
                target = resolved.get(target, mapping[target])
            resolved[key] = target
        keep = set(resolved.values())
        for node in self.nodes():
            if node not in resolved or node in keep:
                node.replace_inputs(resolved)
        for node in keep:
            read = {source: resolved[source] for source in node.inputs if source in resolved}
            node.replace_inputs({source: new for source, new in read.items() if new is not node})
        self.outputs = [resolved.get(node, node) for node in self.outputs]
        self.extents = {place: resolved.get(node, node) for place, node in self.extents.items()}
