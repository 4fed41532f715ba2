"""A model as a list of operator nodes: what the graph passes read and rewrite before anything is lowered.

Built from the one dataflow block of an imported Relax function. Constants are NumPy arrays, so folding them never
compiles anything. A node keeps the Relax call it came from; an operator without a rule of ours goes back to Relax
and TVM's own legalisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from calumma.core.errors import ModelError
from calumma.frontend.importer import check_size

INPUT = "input"
CONSTANT = "constant"
TUPLE_ITEM = "tuple_item"


@dataclass(eq=False)
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
    """Inputs, outputs, and everything between, reachable from the outputs."""

    inputs: list[Node]
    outputs: list[Node]
    output_names: list[str]

    def nodes(self) -> list[Node]:
        """All nodes that the outputs need, each after its inputs."""
        order: list[Node] = []
        state: dict[Node, bool] = {}
        stack: list[tuple[Node, Iterator[Node]]] = []
        for root in self.outputs:
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
        """Node -> the nodes that read it; a graph output counts as one more reader (itself)."""
        result: dict[Node, list[Node]] = {}
        for node in self.nodes():
            for source in node.inputs:
                result.setdefault(source, []).append(node)
        for node in self.outputs:
            result.setdefault(node, []).append(node)
        return result

    def replace(self, mapping: dict[Node, Node]) -> None:
        """Let every reader of a key read its value instead; chains of replacements are followed."""
        resolved: dict[Node, Node] = {}
        for key in mapping:
            target = mapping[key]
            while target in mapping:
                target = mapping[target]
            resolved[key] = target
        keep = set(resolved.values())
        for node in self.nodes():
            if node not in resolved or node in keep:
                node.replace_inputs(resolved)
        for node in keep:
            node.replace_inputs({k: v for k, v in resolved.items() if v is not node})
        self.outputs = [resolved.get(node, node) for node in self.outputs]


def from_relax(mod: Any, output_names: list[str]) -> Graph:
    """Read the `main` function of an imported Relax module.

    Raises:
        ModelError: control flow, a call that is not an operator, or a shape that is not static.
    """
    func = mod["main"]
    known: dict[Any, Node] = {}
    inputs: list[Node] = []
    for param in func.params:
        node = Node(INPUT, shape=_static_shape(param, param.name), dtype=_dtype(param), name=param.name)
        known[param] = node
        inputs.append(node)

    def read(expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return known[expr]
        if isinstance(expr, GenericConst):
            return constant(expr.value.numpy())
        if isinstance(expr, relax.Tuple):
            return tuple(read(field) for field in expr.fields)
        return expr

    body = func.body
    for block in body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.MatchCast):
                raise ModelError(
                    f"{binding.var.name}: its shape is only known at run time; "
                    "give shape NAME=DIM,DIM,... of the inputs"
                )
            known[binding.var] = _node(binding.var, binding.value, read)
    result = read(body.body)
    outputs = list(result) if isinstance(result, tuple) else [result]
    if len(outputs) == 1 and isinstance(outputs[0].args, tuple) and outputs[0].op == "tuple":
        outputs = list(outputs[0].args)
    for output, name in zip(outputs, output_names, strict=False):
        if not isinstance(output, Node):
            raise ModelError(f"output {name}: a {type(output).__name__}, expected a tensor; leave this output out")
    names = output_names if len(output_names) == len(outputs) else [f"output_{i}" for i in range(len(outputs))]
    return Graph(inputs, outputs, names)


def _node(var: relax.Var, value: Any, read: Any) -> Any:
    if isinstance(value, (relax.Var, GenericConst)):
        return read(value)
    if isinstance(value, relax.Tuple):
        return Node("tuple", args=read(value), name=var.name)
    if isinstance(value, relax.TupleGetItem):
        source = read(value.tuple_value)
        if isinstance(source, tuple):
            return source[value.index]
        if source.op == "tuple":
            return source.args[value.index]
        return Node(
            TUPLE_ITEM,
            args=(source,),
            attrs=SimpleNamespace(index=value.index),
            shape=_static_shape(var, var.name),
            dtype=_dtype(var),
            name=var.name,
        )
    if not isinstance(value, relax.Call) or not hasattr(value.op, "name"):
        raise ModelError(f"{var.name}: {type(value).__name__} is not supported; only plain operators are")
    name = str(value.op.name).removeprefix("relax.")
    is_tensor = isinstance(var.ty, relax.TensorType)
    return Node(
        name,
        args=tuple(read(arg) for arg in value.args),
        attrs=value.attrs,
        shape=_static_shape(var, f"{var.name} ({name})") if is_tensor else (),
        dtype=_dtype(var) if is_tensor else "",
        name=var.name,
        call=value,
    )


def _static_shape(var: relax.Var, where: str) -> tuple[int, ...]:
    shape = getattr(var.ty, "shape", None)
    values = getattr(shape, "values", None)
    if values is None or not all(hasattr(v, "value") for v in values):
        raise ModelError(f"{where}: shape {shape} is not fixed; give every dimension: shape NAME=DIM,DIM,...")
    static = tuple(int(v.value) for v in values)
    check_size(where, _dtype(var), static)
    return static


def _dtype(var: relax.Var) -> str:
    return str(var.ty.dtype)
