"""How importers make nodes: from Relax operators and from tensor expressions, with shape and type found at once.

    y = operator(relax.op.nn.relu, x)
    y = expression(lambda x: te.compute(x.shape, lambda *i: x(*i) + 1), x)

Both return a node, or a tuple of nodes where the function gives several tensors. A result with an extent of 0 is a
constant: there is nothing to compute.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tvm import ir, relax, te, tirx

from calumma.core import hardware as host
from calumma.core.errors import ModelError
from calumma.graph.nodes import CONSTANT, EXPRESSION, MAP, TUPLE_ITEM, Node, constant

_name: ContextVar[str] = ContextVar("name", default="")
_builder = relax.BlockBuilder()
"""Finds the types of calls; nothing is emitted into it."""


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Give all nodes made inside the name of what they come from, for messages."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def operator(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a function of Relax expressions makes of nodes.

    Args:
        function: an operator of Relax, or any function that composes them.
        args: nodes, sequences of nodes, and whatever else the function takes.
        options: keyword arguments of the function.

    Raises:
        ModelError: a result is larger than this machine's memory, or its shape is not fixed.
    """
    nodes: dict[Any, Node] = {}

    def argument(arg: Any) -> Any:
        if isinstance(arg, Node):
            return _variable(arg, nodes)
        if isinstance(arg, (list, tuple)) and any(isinstance(item, Node) for item in arg):
            return relax.Tuple([argument(item) for item in arg])
        return arg

    return _read(function(*map(argument, args), **options), nodes)


def expression(function: Callable[..., Any], *nodes: Node, name: str = "expression", kind: int | None = None) -> Any:
    """What a function of TE tensors makes of nodes.

    Args:
        function: tensors to a tensor or a list of them. It is called again when the graph is lowered.
        nodes: its arguments, on plain layouts.
        name: of the kernel.
        kind: TVM's fusion kind, where it is not to be derived from the expression.

    Raises:
        ModelError: a result is larger than this machine's memory.
    """
    tensors = function(*(te.placeholder(node.shape, node.dtype, f"p{i}") for i, node in enumerate(nodes)))
    several = isinstance(tensors, (list, tuple))
    results = [(tuple(int(d) for d in t.shape), str(t.dtype)) for t in (tensors if several else [tensors])]
    for shape, dtype in results:
        check_size(_name.get() or name, dtype, shape)
    attrs = SimpleNamespace(function=function, name=name, kind=kind)
    if not several:
        return _or_empty(Node(EXPRESSION, nodes, attrs, *results[0], name=_name.get()))
    source = Node(EXPRESSION, nodes, attrs, name=_name.get())
    return tuple(_item(source, i, *result) for i, result in enumerate(results))


def mapped(function: Callable[[tirx.Expr], tirx.Expr], node: Node, name: str, finite: bool = True) -> Node:
    """A function of one element applied to each of a node's, in whatever layout these have.

    Args:
        function: an element to an element, of any type.
        name: of the kernel.
        finite: whether finite elements give finite results.
    """
    if node.dtype != "float32" or str(function(tirx.Var("x", node.dtype)).ty) != "float32":
        return expression(lambda x: te.compute(x.shape, lambda *i: function(x(*i)), name=name), node, name=name)
    attrs = SimpleNamespace(function=function, name=name, finite=finite)
    return _or_empty(Node(MAP, (node,), attrs, node.shape, node.dtype, name=_name.get()))


def combined(function: Callable[..., tirx.Expr], *nodes: Node, name: str) -> Node:
    """A function of one element of each node applied to all, which are broadcast as NumPy does.

    Raises:
        ModelError: the shapes cannot be broadcast.
    """
    shapes = [node.shape for node in nodes]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ModelError(f"shapes {', '.join(map(str, shapes))} cannot be broadcast") from error

    def element(tensor: te.Tensor, index: Sequence[tirx.Expr]) -> tirx.Expr:
        own = index[len(index) - tensor.ndim :]
        return tensor(*(0 if int(size) == 1 else i for size, i in zip(tensor.shape, own, strict=True)))

    def body(*tensors: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *i: function(*(element(t, i) for t in tensors)), name=name)

    return expression(body, *nodes, name=name)


def scalar(value: ArrayLike, dtype: str) -> Node:
    """A constant without dimensions."""
    return constant(np.asarray(value, dtype), _name.get())


def cast(node: Node, dtype: str) -> Node:
    """A node's values in another type; the node itself where it has it."""
    if node.dtype == dtype:
        return node
    return operator(relax.op.astype, node, dtype=dtype)


def reshape(node: Node, shape: Sequence[int]) -> Node:
    """A node's elements in another shape; the node itself where it has it."""
    shape = tuple(int(size) for size in shape)
    if node.shape == shape:
        return node
    if node.op == CONSTANT:
        return constant(node.value.reshape(shape), node.name)
    return operator(relax.op.reshape, node, shape)


def transpose(node: Node, axes: Sequence[int]) -> Node:
    """A node with its axes in another order: axis i of the result is axis `axes[i]`."""
    if list(axes) == list(range(len(node.shape))):
        return node
    return operator(relax.op.permute_dims, node, [int(axis) for axis in axes])


def own_operator(
    op: str, args: Sequence[Any], attrs: Any, results: Sequence[tuple[Sequence[int], str]]
) -> tuple[Node, ...]:
    """The results of an operator of ours (`graph.nodes`) that gives several, with their shapes and types.

    Raises:
        ModelError: a result is larger than this machine's memory.
    """
    for shape, dtype in results:
        check_size(_name.get() or op, dtype, shape)
    source = Node(op, tuple(args), attrs, name=_name.get())
    return tuple(_item(source, i, tuple(shape), dtype) for i, (shape, dtype) in enumerate(results))


def check_size(name: str, dtype: str, shape: Sequence[int]) -> None:
    """Refuse a tensor that no run of the model could hold, before anything of its size is computed.

    Raises:
        ModelError: it is larger than this machine's memory.
    """
    bits = re.search(r"\d+", dtype)  # NumPy does not know all types; bool has no number
    size_bytes = math.prod(shape) * (int(bits[0]) if bits else 8) // 8
    if size_bytes > host.memory_bytes():
        raise ModelError(
            f"{name}: {dtype}{list(shape)} takes {size_bytes / 1e9:,.0f} GB, this machine has "
            f"{host.memory_bytes() / 1e9:,.0f} GB; check the model's shapes, or give smaller ones"
        )


def _variable(node: Node, nodes: dict[Any, Node]) -> relax.Var:
    var = relax.Var("v", relax.TensorType(node.shape, node.dtype))
    nodes[var] = node
    return var


def _read(expr: Any, nodes: dict[Any, Node]) -> Any:
    """The nodes of an expression whose variables stand for nodes; nested calls become nodes of their own."""
    if isinstance(expr, relax.Var):
        return nodes[expr]
    if isinstance(expr, ir.GenericConst):
        return constant(expr.value.numpy())
    if isinstance(expr, relax.Tuple):
        return tuple(_read(field, nodes) for field in expr.fields)
    if isinstance(expr, relax.TupleGetItem):
        return _read(expr.tuple_value, nodes)[expr.index]
    if not isinstance(expr, relax.Call):
        return expr
    args = tuple(_read(arg, nodes) for arg in expr.args)

    def flat(arg: Any, original: Any) -> Any:
        if isinstance(arg, tuple):
            return relax.Tuple([flat(*pair) for pair in zip(arg, original.fields, strict=True)])
        return _variable(arg, nodes) if isinstance(arg, Node) and not isinstance(original, relax.Var) else original

    flattened = [flat(arg, original) for arg, original in zip(args, expr.args, strict=True)]
    call = _builder.normalize(ir.Call(expr.op, flattened, expr.attrs, expr.ty_args))
    name = str(call.op.name).removeprefix("relax.")
    if isinstance(call.ty, relax.TensorType):
        return _or_empty(Node(name, args, call.attrs, *_static(call.ty, name), name=_name.get(), call=call))
    source = Node(name, args, call.attrs, name=_name.get(), call=call)
    return tuple(_item(source, i, *_static(field, name)) for i, field in enumerate(call.ty.fields))


def _static(kind: relax.TensorType, operator_name: str) -> tuple[tuple[int, ...], str]:
    sizes = getattr(kind.shape, "values", None)
    if sizes is None or not all(hasattr(size, "value") for size in sizes):
        raise ModelError(f"the result of {operator_name} has shape {kind.shape}, which is only known at run time")
    shape, dtype = tuple(int(size.value) for size in sizes), str(kind.dtype)
    check_size(_name.get() or operator_name, dtype, shape)
    return shape, dtype


def _item(source: Node, index: int, shape: tuple[int, ...], dtype: str) -> Node:
    return _or_empty(Node(TUPLE_ITEM, (source,), SimpleNamespace(index=index), shape, dtype, name=source.name))


def _or_empty(node: Node) -> Node:
    return constant(np.zeros(node.shape, node.dtype), node.name) if 0 in node.shape else node
