"""Tensors made of numbers, and copies in other types."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import NARROW, TorchNode
from calumma.graph.build import cast, check_size, mapped, operator, scalar
from calumma.graph.nodes import Node, constant
from calumma.semantics import arithmetic
from calumma.semantics.movement import broadcast
from calumma.semantics.narrow_floats import narrowed, widened


@aten_rule("full.default", "full_like.default", "fill.Scalar", "scalar_tensor.default")
def full(
    node: TorchNode, self: Any = None, size: Any = None, fill_value: Any = None, value: Any = None, s: Any = None
) -> Node:
    """One number everywhere; of `full_like` and `fill` only the shape of the first argument counts."""
    number = next(given for given in (fill_value, value, s) if given is not None)
    check_size(node.name, node.dtype, node.shape)
    return constant(np.full(node.shape, number).astype(node.dtype), node.name)


@aten_rule(
    "empty.memory_format", "empty_strided.default", "empty_like.default", "new_empty.default", "empty_permuted.default"
)
def empty(node: TorchNode, self: Any = None, size: Any = None, stride: Any = None, physical_layout: Any = None) -> Node:
    """A tensor whose contents do not matter: zeros."""
    check_size(node.name, node.dtype, node.shape)
    return constant(np.zeros(node.shape, node.dtype), node.name)


@aten_rule("arange.start_step")
def arange(node: TorchNode, start: Any, end: Any, step: Any = 1) -> Node:
    check_size(node.name, node.dtype, node.shape)
    wide = np.arange(node.shape[0], dtype="float64" if node.dtype.startswith("float") else "int64")
    return constant((start + wide * step).astype(node.dtype), node.name)


@aten_rule("_to_copy.default")
def to_copy(node: TorchNode, self: Node) -> Node:
    """A copy in another type; a narrow float is rounded to."""
    target, source = node.result().dtype, node.element_type("self")
    if target in NARROW and source != target:
        return widened(narrowed(cast(self, "float32"), NARROW[target]))
    if node.dtype == "bool" != self.dtype:
        return operator(relax.op.not_equal, self, scalar(0, self.dtype))
    if arithmetic.is_float(self) and not node.dtype.startswith("float"):
        return mapped(lambda x: arithmetic.truncated_float(x, node.dtype), self, "to_integer")
    return cast(self, node.dtype)


@aten_rule(
    *("alias.default", "clone.default", "detach.default", "lift_fresh_copy.default"),
)
def unchanged(node: TorchNode, self: Node) -> Node:
    return self


@aten_rule("copy.default")
def copy(node: TorchNode, self: Node, src: Node) -> Node:
    """`src` in the shape and type of the first argument."""
    return broadcast(cast(src, node.dtype), node.shape)
