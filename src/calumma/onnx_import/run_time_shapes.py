"""Shapes that a model computes from run-time extents: followed through its arithmetic, used where shapes are wanted.

`Shape` of a value with run-time extents gives numbers of which each is known, or known to be an extent. What Gather,
Concat, Add and the like make of them is noted at their results (`Node.sizes`), so that Reshape, Expand,
ConstantOfShape and Range know which axis has which extent, and how large it can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from calumma.extents import run_time_extents as extents
from calumma.extents.run_time_extents import refuse
from calumma.extents.run_time_sizes import Size, Sizes, larger, largest, quotient, sizes_in, smaller
from calumma.graph.build import check_size, reshape, scalar
from calumma.graph.nodes import CONSTANT, Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.semantics import movement

_MOST_NUMBERS = 64
"""What has more is no shape."""


def followed(node: OnnxNode, results: Sequence[Node | None]) -> list[Node | None]:
    """The results of a node, with the numbers in the first noted where they follow from extents: all known is a
    constant."""
    first = results[0] if results else None
    if first is None or first.op == CONSTANT or not _reads_sizes(node) or node.op not in _ARITHMETIC:
        return list(results)
    if first.dtype not in ("int32", "int64") or math.prod(first.shape) > _MOST_NUMBERS:
        return list(results)
    operands = [None if given is None else sizes_in(given) for given in node.operands]
    try:
        with node.looked_at():
            found = _ARITHMETIC[node.op](node, operands)
    except (IndexError, TypeError, ValueError):  # not all is known
        return list(results)
    sizes = np.broadcast_to(np.array(found, dtype=object), first.shape)
    if not any(isinstance(size, Size) for size in sizes.reshape(-1)):
        return [constant(sizes.astype(first.dtype), node.name), *results[1:]]
    first.sizes = sizes
    return list(results)


def _reads_sizes(node: OnnxNode) -> bool:
    return any(given is not None and given.sizes is not None for given in node.operands)


def _sliced(node: OnnxNode, operands: Sequence[Any]) -> Any:
    data, starts, ends, *rest = operands
    if data.ndim != 1 or (len(rest) > 1 and rest[1] is not None and list(rest[1]) != [1]):
        raise ValueError("not a part of a vector")
    return data[int(starts[0]) : int(ends[0])]


def _reshaped_like(node: OnnxNode, operands: Sequence[Any]) -> Any:
    return operands[0].reshape(-1) if node.op == "Reshape" else _one_rank(node, operands[0])


def _one_rank(node: OnnxNode, data: Any) -> Any:
    """Squeeze of a vector of one number, Unsqueeze of a scalar."""
    if node.op == "Squeeze" and data.shape == (1,):
        return data.reshape(())
    if node.op == "Unsqueeze" and data.ndim == 0:
        return data.reshape(1)
    raise ValueError("neither a number nor a vector of one")


_minimum, _maximum, _quotient = (np.frompyfunc(function, 2, 1) for function in (smaller, larger, quotient))
_ARITHMETIC: dict[str, Callable[[OnnxNode, Sequence[Any]], Any]] = {
    "Add": lambda node, x: x[0] + x[1],
    "Cast": lambda node, x: x[0],
    "Concat": lambda node, x: np.concatenate(x),
    "Div": lambda node, x: _quotient(*x),
    "Gather": lambda node, x: np.take(x[0], np.asarray(x[1], np.int64)),
    "Identity": lambda node, x: x[0],
    "Max": lambda node, x: _maximum(*x),
    "Min": lambda node, x: _minimum(*x),
    "Mul": lambda node, x: x[0] * x[1],
    "Reshape": _reshaped_like,
    "Slice": _sliced,
    "Squeeze": _reshaped_like,
    "Sub": lambda node, x: x[0] - x[1],
    "Unsqueeze": _reshaped_like,
}


# -- where shapes are wanted ------------------------------------------------------------------------


def shaped(node: OnnxNode) -> Node | None:
    """What a node makes of a shape that follows from extents; None where it is not given one."""
    if node.op not in _SHAPED or not _reads_sizes(node):
        return None
    return _SHAPED[node.op](node)


def _numbers(node: OnnxNode, index: int) -> Sizes | None:
    """The numbers of an input that follow from extents."""
    given = node.operands[index]
    return None if given is None else given.sizes


def _reshape(node: OnnxNode) -> Node | None:
    data, target = (node.operands[0], _numbers(node, 1))
    if data is None or target is None or len(data.extents) != 1:
        return None
    node.inputs()
    node.attribute("allowzero", 0)
    ((axis, extent),) = data.extents.items()
    places = [place for place, size in enumerate(target) if isinstance(size, Size)]
    if len(places) != 1:
        raise refuse(axis, "the shape has several that are known at run time only")
    (place,) = places
    shape = [int(size) if own != place else -1 for own, size in enumerate(target)]
    if shape.count(-1) > 1:
        if target[place].node is not extent:
            raise refuse(axis, "the shape leaves open what becomes of it")
        shape[place] = data.shape[axis]
        shape[shape.index(-1)] = math.prod(data.shape) // max(-math.prod(shape), 1)
    else:
        shape[place] = math.prod(data.shape) // max(-math.prod(shape), 1)
    if 0 in shape or math.prod(shape) != math.prod(data.shape):
        raise refuse(axis, f"the shape {list(shape)} does not keep it")
    found = extents.reshaped(data, shape, place)
    if shape != list(data.shape):
        return extents.bounded(reshape(data, shape), found)
    return data


def _expand(node: OnnxNode) -> Node | None:
    target = _numbers(node, 1)
    if target is None:
        return None
    data, _ = node.inputs()
    asked_for = largest(target)
    for own, size in enumerate(reversed(data.shape), 1):  # of another extent than 1, it is that of the result
        if own <= len(target) and isinstance(target[-own], Size) and size != 1:
            asked_for[-own] = size
    shape = np.broadcast_shapes(data.shape, tuple(asked_for))
    found: dict[int, Node] = {}
    for axis, size in enumerate(shape):
        own, asked = axis - len(shape) + len(data.shape), axis - len(shape) + len(target)
        wanted = target[asked] if asked >= 0 else 1
        held = data.extents.get(own)
        same = wanted.node is held if isinstance(wanted, Size) else wanted == 1
        if held is not None and not same:
            raise refuse(own, "it is broadcast to another extent")
        if held is not None:
            found[axis] = held
        elif isinstance(wanted, Size) and (own < 0 or data.shape[own] == 1) and size != 0:
            found[axis] = wanted.node
    expanded = movement.broadcast(data, shape)
    return extents.bounded(extents.fresh(expanded) if expanded is data else expanded, found)


def _constant_of_shape(node: OnnxNode) -> Node | None:
    target = _numbers(node, 0)
    if target is None:
        return None
    node.input(0)
    value = node.attribute("value", None)
    value = np.zeros(1, np.float32) if value is None else value
    if value.size != 1:
        raise node.refused(f"its value has {value.size} elements", "give one")
    shape = largest(target)
    check_size(node.name, node.output_dtype(), shape)
    full = movement.broadcast(scalar(value.reshape(()), node.output_dtype()), shape)
    return extents.bounded(full, {a: size.node for a, size in enumerate(target) if isinstance(size, Size)})


def _range(node: OnnxNode) -> Node | None:
    given = [None if operand is None else sizes_in(operand) for operand in node.operands]
    if any(numbers is None or numbers.size != 1 for numbers in given):
        return None
    start, limit, delta = (_only(numbers) for numbers in given)
    if isinstance(delta, Size) or delta <= 0:
        return None
    distance = limit - start
    if not isinstance(distance, Size):
        return None
    most = max(-(-distance.most // delta), 0)
    count = extents.scalar_of(
        lambda length: tirx.indexdiv(tirx.max(length, tirx.const(0, "int64")) + (delta - 1), delta), distance.node
    )
    check_size(node.name, node.output_dtype(), (most,))
    node.inputs()
    node.ignore("stash_type")
    return extents.bounded(movement.counted(node.input(0), node.input(2), most), {0: count})


def _only(numbers: Sizes | None) -> Any:
    assert numbers is not None
    number = numbers.reshape(-1)[0]
    return number if isinstance(number, Size) else int(number)


_SHAPED: dict[str, Callable[[OnnxNode], Node | None]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Range": _range,
    "Reshape": _reshape,
}
