"""Values of which the extent along some axes is known at run time only: bounds, masks, and what becomes of extents.

Such a value is a tensor of its largest shape, valid in a prefix of those axes (`graph.nodes`). An operator is safe on
it if every valid element of its result is made of valid elements alone. Importers refuse all operators but those of
which they know that, and what the extents of the result are: the functions here that say so get shapes and extents,
and raise ModelError where the result would depend on what lies behind a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from tvm import te, tirx

from calumma.core.errors import ModelError
from calumma.graph.build import cast, expression, reshape
from calumma.graph.context import INJECTIVE
from calumma.graph.nodes import CONSTANT, Node, constant

Extents = Mapping[int, Node]
"""Axis -> int64 scalar node."""


def bounded(node: Node, extents: Extents) -> Node:
    """A node with the extents that it has at run time.

    Raises:
        ModelError: it is a constant, which has no others than those of its shape: 0 where it has no elements.
    """
    if node.op == CONSTANT:
        return empty(node, extents)
    node.extents = dict(extents)
    return node


def empty(node: Node, axes: Iterable[int]) -> Node:
    """A constant whose extents along `axes` would be known at run time only, if they were not 0 for certain."""
    for axis in axes:
        if node.shape[axis]:
            raise refuse(axis, "the tensor has no elements that could be counted")
    return node


def fresh(node: Node) -> Node:
    """A copy, which can be given extents of its own."""
    return expression(lambda x: te.compute(x.shape, lambda *i: x(*i), name="copy"), node, name="copy")


def filled(node: Node, shape: Sequence[int]) -> Node:
    """A node in another shape of the same rank: cut off, or zeros behind what is there."""
    shape = tuple(shape)
    if node.shape == shape:
        return node
    if 0 in node.shape or 0 in shape:
        return constant(np.zeros(shape, node.dtype), node.name)

    def element(x: te.Tensor, i: Sequence[tirx.Var]) -> tirx.Expr:
        longer = [axis for axis, size in enumerate(shape) if size > node.shape[axis]]
        if not longer:
            return x(*i)
        inside = tirx.all(*(i[axis] < node.shape[axis] for axis in longer))
        return tirx.if_then_else(inside, x(*i), tirx.const(0, node.dtype))

    return expression(lambda x: te.compute(shape, lambda *i: element(x, i), name="filled"), node, name="filled")


def size_of(node: Node, axis: int) -> Node:
    """The extent of an axis at run time, int64 scalar."""
    return node.extents.get(axis, constant(np.array(node.shape[axis], np.int64)))


def scalar_of(function: Callable[..., tirx.Expr], *scalars: Node) -> Node:
    """A function of int64 scalars; computed now where all are constants."""
    if all(node.op == CONSTANT for node in scalars):
        value = function(*(tirx.const(int(node.value), "int64") for node in scalars))
        return constant(np.array(int(value), np.int64))
    return expression(
        lambda *x: te.compute((), lambda: function(*(value() for value in x)), name="scalar"), *scalars, name="scalar"
    )


def as_scalar(node: Node, dtype: str = "int64") -> Node:
    """A node of one element without its dimensions, in a type. Raises ModelError for one of several elements."""
    if math.prod(node.shape) != 1:
        raise ModelError(f"a tensor of shape {list(node.shape)} in the place of a number; export the model again")
    for axis in node.extents:
        raise refuse(axis, "a number is wanted")
    return cast(reshape(node, ()), dtype)


def masked(node: Node, axes: Sequence[int], fill: float | int | bool) -> Node:
    """The node with `fill` behind the prefix of those of `axes` that are bounded; they stay bounded."""
    axes = [axis for axis in axes if axis in node.extents]
    if not axes:
        return node

    def fill_behind(x: te.Tensor, *extents: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            inside = [i[a].astype("int64") < extent() for a, extent in zip(axes, extents, strict=True)]
            return tirx.Select(tirx.all(*inside), x(*i), tirx.const(fill, node.dtype))

        return te.compute(x.shape, element, name="masked")

    result = expression(fill_behind, node, *(node.extents[a] for a in axes), name="masked", kind=INJECTIVE)
    return bounded(result, node.extents)


def lowest(dtype: str) -> float | int | bool:
    """The value of a type that is above no other; -inf of floats."""
    if dtype.startswith(("float", "bfloat")):
        return -math.inf
    return False if dtype == "bool" else int(np.iinfo(dtype).min)


def highest(dtype: str) -> float | int | bool:
    """The number of a type that is below no other; inf of floats."""
    if dtype.startswith(("float", "bfloat")):
        return math.inf
    return True if dtype == "bool" else int(np.iinfo(dtype).max)


# -- what becomes of extents ----------------------------------------------------------------------


def refuse(axis: int, why: str) -> ModelError:
    """The error of a value whose prefix along an axis is not all that a result would be made of."""
    return ModelError(
        f"the extent of axis {axis} is known at run time only, and {why}; "
        "cut the model off before this node, or export it with fixed shapes"
    )


def elementwise(shape: Sequence[int], inputs: Sequence[Node]) -> dict[int, Node]:
    """The extents of an elementwise result of `shape`, with broadcasting."""
    found: dict[int, Node] = {}
    for axis in range(len(shape)):
        extents, fixed = [], False
        for node in inputs:
            own = axis - (len(shape) - len(node.shape))
            if own in node.extents:
                extents.append(node.extents[own])
                if node.shape[own] != shape[axis]:
                    raise refuse(own, f"it is broadcast to {shape[axis]}")
            elif own >= 0 and node.shape[own] != 1:
                fixed = True
        if extents and (fixed or any(extent is not extents[0] for extent in extents)):
            raise refuse(axis, "another operand has another extent there")
        if extents:
            found[axis] = extents[0]
    return found


def together(nodes: Sequence[Node], axis: int) -> dict[int, Node]:
    """The extents of tensors joined along `axis`, in all other axes."""
    found = dict(nodes[0].extents)
    for node in nodes[1:]:
        for other in range(len(node.shape)):
            if other != axis and node.extents.get(other) is not nodes[0].extents.get(other):
                raise refuse(other, "what it is joined with has another extent there")
    found.pop(axis, None)
    return found


def permuted(extents: Extents, axes: Sequence[int]) -> dict[int, Node]:
    """Those of a result whose axis i is axis `axes[i]` of the operand."""
    return {i: extents[axis] for i, axis in enumerate(axes) if axis in extents}


def without(extents: Extents, axes: Sequence[int], rank: int, *, kept: bool = False) -> dict[int, Node]:
    """Those of a result that lacks `axes` of an operand; with `kept` it has them with extent 1."""
    for axis in axes:
        if axis in extents:
            raise refuse(axis, "all along it is read")
    left = [axis for axis in range(rank) if kept or axis not in axes]
    return permuted(extents, left)


def expanded(extents: Extents, axes: Sequence[int], rank: int) -> dict[int, Node]:
    """Those of a result of `rank` with new `axes` of extent 1."""
    held = [axis for axis in range(rank) if axis not in axes]
    return {held[axis]: extent for axis, extent in extents.items()}


def reshaped(node: Node, shape: Sequence[int], free: int | None) -> dict[int, Node]:
    """Those of a reshaped node.

    Args:
        shape: the new shape, for the largest extents.
        free: the axis of it whose extent follows from the number of elements; None: all are given.
    """
    if len(node.extents) != 1:
        raise refuse(max(node.extents), "others are as well where it is reshaped")
    ((axis, extent),) = node.extents.items()
    before = math.prod(node.shape[:axis])
    if free is None or math.prod(shape[:free]) != before:
        raise refuse(axis, f"the shape {list(shape)} does not keep it")
    behind, behind_then = math.prod(node.shape[axis + 1 :]), math.prod(shape[free + 1 :])
    if behind == behind_then:
        return {free: extent}
    if behind_then == 0:
        return {}
    return {free: scalar_of(lambda e: tirx.indexdiv(e * behind, behind_then), extent)}


def gathered(data: Node, indices: Node, axis: int) -> dict[int, Node]:
    """Those of elements taken along an axis of data."""
    rank = len(indices.shape)
    if axis in data.extents and not (indices.op == CONSTANT and bool(np.all(indices.value >= 0))):
        raise refuse(axis, "indices that may count from its end are looked up there")
    found = {axis + i: extent for i, extent in indices.extents.items()}
    for own, extent in data.extents.items():
        if own != axis:
            found[own if own < axis else own + rank - 1] = extent
    return found


def joined(nodes: Sequence[Node], axis: int) -> Node:
    """Concatenation along an axis that is bounded in some of the nodes: each begins where the one before it ends."""
    extents = together(nodes, axis)
    ends = [size_of(nodes[0], axis)]
    for node in nodes[1:]:
        ends.append(scalar_of(lambda a, b: a + b, ends[-1], size_of(node, axis)))
    shape = list(nodes[0].shape)
    shape[axis] = sum(node.shape[axis] for node in nodes)

    def concatenated(*tensors: te.Tensor) -> te.Tensor:
        parts, stops = tensors[: len(nodes)], tensors[len(nodes) :]

        def element(*i: tirx.Var) -> tirx.Expr:
            place = i[axis].astype("int64")
            value: tirx.Expr | None = None
            for number in reversed(range(len(nodes))):
                if nodes[number].shape[axis] == 0:
                    continue
                start = stops[number - 1]() if number else tirx.const(0, "int64")
                last = tirx.const(nodes[number].shape[axis] - 1, "int64")
                own = tirx.max(tirx.min(place - start, last), tirx.const(0, "int64"))
                found = parts[number](*i[:axis], own, *i[axis + 1 :])
                value = found if value is None else tirx.if_then_else(place < stops[number](), found, value)
            return value

        return te.compute(shape, element, name="joined")

    result = expression(concatenated, *nodes, *ends, name="joined", kind=INJECTIVE)
    return bounded(result, {**extents, axis: ends[-1]})
