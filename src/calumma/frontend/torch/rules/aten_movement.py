"""Operators that only move elements, or pick some of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, combined, expression, operator, reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.semantics import indices as picking
from calumma.semantics import movement


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
    return movement.broadcast(self, node.shape)


@aten_rule("repeat.default")
def repeat(node: TorchNode, self: Node, repeats: Sequence[int]) -> Node:
    return movement.tiled(reshape(self, (1,) * (len(repeats) - len(self.shape)) + self.shape), list(repeats))


@aten_rule("cat.default")
def cat(node: TorchNode, tensors: Sequence[Node], dim: int = 0) -> Node:
    """Tensors side by side; torch lets empty ones of one dimension pass."""
    whole = [cast(tensor, node.dtype) for tensor in tensors if 0 not in tensor.shape]
    if not whole:
        return constant(np.zeros(node.shape, node.dtype), node.name)
    return movement.concatenated(whole, dim % len(node.shape))


@aten_rule("split_with_sizes.default")
def split(node: TorchNode, self: Node, split_sizes: Sequence[int], dim: int = 0) -> Sequence[Node]:
    return movement.split(self, list(split_sizes), dim % len(self.shape))


@aten_rule("slice.Tensor")
def slice_axis(
    node: TorchNode,
    self: Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Node:
    return movement.sliced(self, {dim % len(self.shape): slice(start, end, step)})


@aten_rule("select.int")
def select(node: TorchNode, self: Node, dim: int, index: int) -> Node:
    axis = dim % len(self.shape)
    index %= self.shape[axis]
    return reshape(movement.sliced(self, {axis: slice(index, index + 1)}), node.shape)


@aten_rule("flip.default")
def flip(node: TorchNode, self: Node, dims: Sequence[int]) -> Node:
    return movement.sliced(self, {dim % len(self.shape): slice(None, None, -1) for dim in dims}) if self.shape else self


@aten_rule("native_channel_shuffle.default")
def channel_shuffle(node: TorchNode, self: Node, groups: int) -> Node:
    batch, channels, *sizes = self.shape
    parted = reshape(self, (batch, groups, channels // groups, *sizes))
    return reshape(transpose(parted, [0, 2, 1, *range(3, len(sizes) + 3)]), self.shape)


@aten_rule("constant_pad_nd.default")
def constant_pad(node: TorchNode, self: Node, pad: Sequence[int], value: float = 0) -> Node:
    return _padded(self, pad, "constant", scalar(value, self.dtype))


@aten_rule(
    *(f"reflection_pad{n}d.default" for n in (1, 2, 3)),
    *(f"replication_pad{n}d.default" for n in (1, 2, 3)),
)
def mirror_pad(node: TorchNode, self: Node, padding: Sequence[int]) -> Node:
    return _padded(self, padding, "reflect" if node.op.startswith("reflection") else "edge", None)


def _padded(x: Node, amounts: Sequence[int], mode: str, value: Node | None) -> Node:
    """Padding as torch gives it: pairs, from the last axis on."""
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for place in range(len(amounts) // 2):
        before[-1 - place], after[-1 - place] = amounts[2 * place], amounts[2 * place + 1]
    return movement.padded(x, before, after, mode, value)


@aten_rule("select_scatter.default")
def select_scatter(node: TorchNode, self: Node, src: Node, dim: int, index: int) -> Node:
    axis = dim % len(self.shape)
    shape = (*self.shape[:axis], 1, *self.shape[axis + 1 :])
    return _written(self, reshape(src, shape), axis, range(index % self.shape[axis], self.shape[axis])[:1])


@aten_rule("slice_scatter.default")
def slice_scatter(
    node: TorchNode,
    self: Node,
    src: Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Node:
    axis = dim % len(self.shape)
    return _written(self, src, axis, range(self.shape[axis])[slice(start, end, step)])


def _written(x: Node, source: Node, axis: int, places: range) -> Node:
    """x with `source` at some places of an axis."""
    if not len(places):
        return x

    def function(t: te.Tensor, new: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            off = i[axis] - places.start
            held = tirx.all(off >= 0, off < len(places) * places.step, tirx.floormod(off, places.step) == 0)
            return tirx.if_then_else(held, new(*i[:axis], off // places.step, *i[axis + 1 :]), t(*i))

        return te.compute(x.shape, element, name="write_slice")

    return expression(function, x, cast(source, x.dtype), name="write_slice")


@aten_rule("as_strided.default")
def as_strided(
    node: TorchNode, self: Node, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Node:
    """Elements of a contiguous tensor at regular places."""
    flat = reshape(self, (math.prod(self.shape),))
    first = storage_offset or 0

    def function(t: te.Tensor) -> te.Tensor:
        return te.compute(
            node.shape, lambda *i: t(first + sum(j * s for j, s in zip(i, stride, strict=True))), name="as_strided"
        )

    if not size:
        return reshape(movement.sliced(flat, {0: slice(first, first + 1)}), ())
    return expression(function, flat, name="as_strided")


@aten_rule("diagonal.default")
def diagonal(node: TorchNode, self: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    rank = len(self.shape)
    first, second = dim1 % rank, dim2 % rank
    rest = [axis for axis in range(rank) if axis not in (first, second)]
    x = transpose(self, [*rest, first, second])
    row, column = max(-offset, 0), max(offset, 0)

    def function(t: te.Tensor) -> te.Tensor:
        return te.compute(node.shape, lambda *i: t(*i[:-1], i[-1] + row, i[-1] + column), name="diagonal")

    return expression(function, x, name="diagonal")


@aten_rule("embedding.default")
def embedding(node: TorchNode, weight: Node, indices: Node, padding_idx: int = -1) -> Node:
    return picking.gathered(weight, indices, 0)


@aten_rule("index_select.default")
def index_select(node: TorchNode, self: Node, dim: int, index: Node) -> Node:
    if not self.shape:
        return self
    return picking.gathered(self, reshape(index, (math.prod(index.shape),)), dim % len(self.shape))


@aten_rule("gather.default")
def gather(node: TorchNode, self: Node, dim: int, index: Node) -> Node:
    if not self.shape:
        return movement.broadcast(self, node.shape)
    return picking.gathered_elements(self, index, dim % len(self.shape))


@aten_rule("index.Tensor")
def index_tensor(node: TorchNode, self: Node, indices: Sequence[Node | None]) -> Node:
    """x[..., i, j, ...]: the indexed axes side by side in front, one index tuple for each result slice."""
    given, rest, places = _index_tuples(node, self, indices)
    front = transpose(self, [*given, *rest])
    taken = picking.gathered_slices(front, places, 0)
    if given != list(range(given[0], given[-1] + 1)):
        return taken  # torch puts the indices' axes first where the indexed ones are apart
    count = len(places.shape) - 1
    slices = [count + i for i in range(len(rest))]
    return transpose(taken, [*slices[: given[0]], *range(count), *slices[given[0] :]])


def _index_tuples(node: TorchNode, x: Node, indices: Sequence[Node | None]) -> tuple[list[int], list[int], Node]:
    """The indexed axes, the others, and the indices broadcast and side by side on a new last axis."""
    given = {axis: index for axis, index in enumerate(indices) if index is not None}
    if any(index.dtype in ("bool", "uint8") for index in given.values()):
        raise node.refused("a mask as index gives a shape that depends on values, which is not supported")
    rest = [axis for axis in range(len(x.shape)) if axis not in given]
    shape = np.broadcast_shapes(*(index.shape for index in given.values()))
    columns = [reshape(movement.broadcast(cast(index, "int64"), shape), (*shape, 1)) for index in given.values()]
    return list(given), rest, movement.concatenated(columns, len(shape))


@aten_rule("index_put.default")
def index_put(
    node: TorchNode, self: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False
) -> Node:
    masks = [index for index in indices if index is not None]
    if len(masks) == 1 and masks[0].dtype == "bool" and math.prod(values.shape) == 1 and not accumulate:
        mask = masks[0]
        spread = reshape(mask, (*mask.shape, *([1] * (len(self.shape) - len(mask.shape))))) if indices[0] else mask
        return operator(relax.op.where, spread, reshape(cast(values, self.dtype), ()), self)
    given, rest, places = _index_tuples(node, self, indices)
    axes = [*given, *rest]
    target = (*places.shape[:-1], *(self.shape[axis] for axis in rest))
    source = cast(values, self.dtype)
    if given == list(range(given[0], given[-1] + 1)) and given[0] > 0:
        # The values lie as in the result of indexing: index axes where the first indexed one was.
        count = len(places.shape) - 1
        lying = (*target[count : count + given[0]], *target[:count], *target[count + given[0] :])
        source = movement.broadcast(source, lying)
        order = [*range(given[0], given[0] + count), *range(given[0]), *range(given[0] + count, len(lying))]
        source = transpose(source, order)
    source = movement.broadcast(source, target)
    front = picking.scattered_slices(transpose(self, axes), places, source, "add" if accumulate else "none")
    return transpose(front, [axes.index(axis) for axis in range(len(axes))])


@aten_rule("tril.default", "triu.default")
def triangle(node: TorchNode, self: Node, diagonal: int = 0) -> Node:
    return movement.triangle(self, scalar(diagonal, "int64"), upper=node.op == "triu")


@aten_rule("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(node: TorchNode, self: Node, mask: Node, value: Any) -> Node:
    number = cast(value, self.dtype) if isinstance(value, Node) else scalar(value, self.dtype)
    return combined(lambda m, v, x: tirx.Select(m, v, x), mask, number, self, name="masked_fill")
