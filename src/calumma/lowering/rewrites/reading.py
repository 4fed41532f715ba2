"""What several rewrites read off a node, or write like one."""

from __future__ import annotations

from typing import Any

from calumma.graph.nodes import Node


def axes_of(axes: Any) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(a) for a in axes)


def binary_like(op: str, left: Node, right: Node, like: Node) -> Node:
    return Node(op, args=(left, right), shape=like.shape, dtype=like.dtype, name=like.name)
