"""TVM's integers as Python's."""

from __future__ import annotations

from typing import Any

from tvm import tirx


def ints(values: Any) -> tuple[int, ...]:
    """TVM's integers as Python's."""
    return tuple(int(v) for v in values)


def pair(values: Any) -> tuple[int, int]:
    """Two of TVM's integers: height and width."""
    height, width = ints(values)
    return height, width


def sides(padding: Any) -> tuple[int, int, int, int]:
    """Padding as top, left, bottom, right; Relax also has the first two alone for the same on both sides."""
    top, left, *rest = ints(padding)
    bottom, right = rest or (top, left)
    return top, left, bottom, right


def index_value(index: tirx.Expr) -> tirx.Expr:
    """A loop's index, below 2^32, as an int64 value.

    By way of uint32: of a vector of indices times a value TVM 0.27 makes a ramp, whose start and step then differ in
    type.
    """
    return index.astype("uint32").astype("int64")
