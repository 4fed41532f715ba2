"""Operators of constants, computed with NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calumma.core.errors import ModelError
from calumma.graph.nodes import CONSTANT, Graph, Node, constant
from calumma.lowering.rewrites.reading import axes_of

_MAX_FOLDED_BYTES = 1 << 30
_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "negative": np.negative,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "tanh": np.tanh,
    "nn.relu": lambda x: np.maximum(x, 0),
    "logical_not": np.logical_not,
    "isnan": np.isnan,
    "shape_to_tensor": lambda x: x,
}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": lambda a, b: (
        np.divide(a, b) if np.issubdtype(a.dtype, np.floating) else (np.trunc(a / b)).astype(a.dtype)
    ),
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
}


def fold_constants(graph: Graph) -> None:
    """Replace operators whose inputs are all constants by their value."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        node.replace_inputs(mapping)
        if node.op == "shape_of":
            mapping[node] = constant(np.array(node.args[0].shape, dtype=np.int64), node.name)
            continue
        if not (node.inputs or node.op == "arange") or not all(source.op == CONSTANT for source in node.inputs):
            continue
        if node.dtype and np.prod(node.shape, dtype=np.int64) * 4 > _MAX_FOLDED_BYTES:
            continue
        try:
            value = _evaluate(node)
        except (ArithmeticError, IndexError, ValueError) as error:
            raise ModelError(
                f"node {node.name}: operator {node.op} of constants cannot be computed ({error})"
            ) from error
        if value is not None and value.shape != node.shape:
            raise ModelError(
                f"node {node.name}: operator {node.op} was imported with shape {node.shape}, its value has "
                f"{value.shape}; write it with other operators"
            )
        if value is not None:
            mapping[node] = constant(np.asarray(value, dtype=node.dtype), node.name)
    graph.replace(mapping)


def _evaluate(node: Node) -> np.ndarray | None:
    """Compute a node of constants with NumPy; None for an operator that is not worth it or not known here."""
    values = [arg.value for arg in node.args if isinstance(arg, Node)]
    if node.op in _UNARY:
        return _UNARY[node.op](values[0])
    if node.op in _BINARY:
        return _BINARY[node.op](values[0], values[1])
    match node.op:
        case "arange":  # start, end, step
            return np.arange(*(arg.value for arg in node.args))
        case "full" if np.prod(node.shape) == 1:
            return np.full(node.shape, values[0])
        case "gather_elements":
            return np.take_along_axis(values[0], values[1], axis=int(node.attrs.axis))
        case "strided_slice":
            axes, begin, end, *rest = ([int(item.value) for item in arg] for arg in node.args[1:5])
            strides = rest[0] if rest else [1] * len(axes)
            ranges = dict(zip(axes, map(slice, begin, end, strides), strict=True))
            return values[0][tuple(ranges.get(axis, slice(None)) for axis in range(values[0].ndim))]
        case "reshape" | "squeeze" | "expand_dims" | "flatten" if node.shape or values[0].size == 1:
            return values[0].reshape(node.shape)
        case "broadcast_to":
            return np.broadcast_to(values[0], node.shape)
        case "permute_dims":
            return np.transpose(values[0], axes_of(node.attrs.axes))
        case "astype":
            return values[0].astype(node.dtype)
        case "where":
            return np.where(values[0], values[1], values[2])
        case "concat":
            return np.concatenate([x.value for x in node.args[0]], axis=int(node.attrs.axis or 0))
        case "stack":
            return np.stack([x.value for x in node.args[0]], axis=int(node.attrs.axis or 0))
        case "take" if len(values) == 2 and node.attrs.axis is not None:
            return np.take(values[0], values[1], axis=int(node.attrs.axis))
        case _:
            return None
