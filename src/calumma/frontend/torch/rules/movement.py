"""Operators that only move elements, or pick some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from calumma.frontend.torch.node import TorchNode
from calumma.frontend.torch.registry import aten_rule
from calumma.graph.build import cast, operator, reshape, transpose
from calumma.graph.nodes import Node


@aten_rule(
    *("view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "flatten.using_ints"),
    *("squeeze.default", "squeeze.dim", "squeeze.dims"),
)
def reshaped(node: TorchNode, self: Node, size: Any = None, dim: Any = None) -> Node:
    """The elements in the shape that torch says: the arguments decide nothing else."""
    return reshape(self, node.shape)


@aten_rule("permute.default")
def permute(node: TorchNode, self: Node, dims: Sequence[int]) -> Node:
    return transpose(self, [dim % len(self.shape) for dim in dims])


@aten_rule("transpose.int")
def swapped(node: TorchNode, self: Node, dim0: int, dim1: int) -> Node:
    axes = list(range(len(self.shape)))
    if axes:
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return transpose(self, axes)


@aten_rule("expand.default")
def expand(node: TorchNode, self: Node, size: Any = None) -> Node:
    return self if self.shape == node.shape else operator(relax.op.broadcast_to, self, node.shape)


@aten_rule("cat.default")
def cat(node: TorchNode, tensors: Sequence[Node], dim: int = 0) -> Node:
    """Tensors side by side; torch lets empty ones of one dimension pass."""
    whole = [cast(tensor, node.dtype) for tensor in tensors if 0 not in tensor.shape]
    if len(whole) == 1:
        return whole[0]
    return operator(relax.op.concat, whole, dim % len(node.shape))


@aten_rule("split_with_sizes.default")
def split(node: TorchNode, self: Node, split_sizes: Sequence[int], dim: int = 0) -> Sequence[Node]:
    from calumma.frontend.movement import split as split_axis

    return split_axis(self, list(split_sizes), dim % len(self.shape))
