"""TVM's integers as Python's."""

from __future__ import annotations

from typing import Any


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
