"""Whole numbers that a run decides, between bounds that are known: what a model computes from run-time extents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from calumma.extents.run_time_extents import scalar_of
from calumma.graph.build import expression
from calumma.graph.nodes import CONSTANT, Node, constant


@dataclass(frozen=True, eq=False)
class Size:
    """A number that a run decides. Arithmetic with others and with integers gives one with bounds of its own."""

    node: Node
    """int64 scalar."""
    most: int
    least: int = 0

    def __add__(self, other: Any) -> Size:
        return self if _is(other, 0) else _combined(lambda a, b: a + b, self, other)

    def __sub__(self, other: Any) -> Size:
        return self if _is(other, 0) else _combined(lambda a, b: a - b, self, other)

    def __rsub__(self, other: Any) -> Size:
        return _combined(lambda a, b: a - b, other, self)

    def __mul__(self, other: Any) -> Size:
        return self if _is(other, 1) else _combined(lambda a, b: a * b, self, other)

    __radd__, __rmul__ = __add__, __mul__


def quotient(a: Any, b: Any) -> Any:
    """The quotient of numbers that are not negative. Raises ValueError for others, and if a run decides the divisor."""
    least = a.least if isinstance(a, Size) else a
    if least < 0 or isinstance(b, Size) or b <= 0:
        raise ValueError("a number that may be negative is divided, or what it is divided by is in question")
    if not isinstance(a, Size) or b == 1:
        return a if b == 1 else a // b
    return _combined(lambda x, y: x // y if isinstance(x, int) else tirx.indexdiv(x, y), a, int(b))


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two numbers, either of which may be a `Size`."""
    if not isinstance(a, Size) and not isinstance(b, Size):
        return min(a, b)
    return _combined(lambda x, y: min(x, y) if isinstance(x, int) else tirx.min(x, y), a, b)


def larger(a: Any, b: Any) -> Any:
    """The larger of two numbers, either of which may be a `Size`."""
    if not isinstance(a, Size) and not isinstance(b, Size):
        return max(a, b)
    return _combined(lambda x, y: max(x, y) if isinstance(x, int) else tirx.max(x, y), a, b)


def _is(other: Any, number: int) -> bool:
    return not isinstance(other, Size) and other == number


def _combined(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Size:
    """A function that takes its extrema at the ends of both operands' ranges."""
    (a, lows, highs), (b, low, high) = (_range_of(operand) for operand in (left, right))
    ends = [int(function(x, y)) for x in (lows, highs) for y in (low, high)]
    return Size(scalar_of(function, a, b), max(ends), min(ends))


def _range_of(operand: Any) -> tuple[Node, int, int]:
    if isinstance(operand, Size):
        return operand.node, operand.least, operand.most
    return constant(np.array(operand, np.int64)), int(operand), int(operand)


Sizes = NDArray[Any]
"""Object array of integers and `Size`s."""


def sizes_of(node: Node, start: int = 0, end: int | None = None) -> Node:
    """The shape at run time, or a part of it, an int64 vector; a constant where it is one."""
    axes = list(range(len(node.shape)))[start:end]
    held = [axis for axis in axes if axis in node.extents]
    if not held:
        return constant(np.array([node.shape[axis] for axis in axes], np.int64))

    def vector(*extents: te.Tensor) -> te.Tensor:
        def element(i: tirx.Var) -> tirx.Expr:
            value: tirx.Expr = tirx.const(0, "int64")
            for place, axis in enumerate(axes):
                size = extents[held.index(axis)]() if axis in held else tirx.const(node.shape[axis], "int64")
                value = tirx.Select(i == place, size, value)
            return value

        return te.compute((len(axes),), element, name="sizes")

    result = expression(vector, *(node.extents[axis] for axis in held), name="sizes")
    result.sizes = np.array([_size(node, axis) for axis in axes], dtype=object)
    return result


def number_of_elements(node: Node) -> Node:
    """The product of the shape at run time, int64 scalar; a constant where it is one."""
    total = math.prod(_size(node, axis) for axis in range(len(node.shape)))
    if not isinstance(total, Size):
        return constant(np.array(total, np.int64))
    result = scalar_of(lambda a: a, total.node)  # a node that nobody else's numbers are noted at
    result.sizes = np.array(total, dtype=object)
    return result


def _size(node: Node, axis: int) -> Any:
    size = node.shape[axis]
    return Size(node.extents[axis], size) if axis in node.extents else size


def sizes_in(node: Node) -> Sizes | None:
    """The numbers that a node holds, where each is known or known to come from extents; None otherwise."""
    if node.sizes is not None:
        return node.sizes
    if node.op == CONSTANT and node.dtype in ("int32", "int64"):
        return np.array(node.value, dtype=object)
    return None


def largest(sizes: Sizes) -> list[int]:
    """The largest that each can be, at least 0."""
    return [max(size.most, 0) if isinstance(size, Size) else int(size) for size in sizes.reshape(-1)]
