"""Windows and points that are laid over images, rows picked from tables and added up, distances of rows."""

from __future__ import annotations

from collections.abc import Sequence

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, reshape
from calumma.graph.nodes import Node
from calumma.numerics import distances
from calumma.semantics import grid_sampling, pooling
from calumma.semantics import indices as picking


@aten_rule("adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def adaptive_max_pool(node: TorchNode, self: Node, output_size: Sequence[int]) -> tuple[Node, Node]:
    spatial = len(output_size)
    x = self if len(self.shape) == spatial + 2 else reshape(self, (1, *self.shape))
    values, places = pooling.adaptive_max_pool(x, output_size)
    return reshape(values, node.shape), reshape(places, node.shape)


_MODES = ("linear", "nearest", "cubic")
_PADDINGS = ("zeros", "border", "reflection")


@aten_rule("grid_sampler_2d.default", "grid_sampler_3d.default")
def grid_sampler(
    node: TorchNode, input: Node, grid: Node, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Node:
    mode, padding = _MODES[interpolation_mode], _PADDINGS[padding_mode]
    return grid_sampling.grid_sample(input, grid, mode, padding, align_corners=align_corners)


_BAGS = ("sum", "mean", "max")


@aten_rule("_embedding_bag.default", "_embedding_bag_forward_only.default")
def embedding_bag(
    node: TorchNode,
    weight: Node,
    indices: Node,
    offsets: Node,
    mode: int = 0,
    per_sample_weights: Node | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Sequence[Node | None]:
    """Bags of rows of a table; the other results serve training. The last two arguments are of gradients."""
    rows, starts = cast(indices, "int64"), cast(offsets, "int64")
    return picking.bags(weight, rows, starts, _BAGS[mode], per_sample_weights, node.shape[0], padding_idx), *[None] * 3


@aten_rule("_cdist_forward.default")
def pairwise_distances(node: TorchNode, x1: Node, x2: Node, p: float, compute_mode: int | None = None) -> Node:
    """`compute_mode` decides how torch computes the same."""
    return distances.between(x1, x2, float(p))


@aten_rule("_pdist_forward.default")
def distances_within(node: TorchNode, self: Node, p: float = 2) -> Node:
    return distances.within(self, float(p))
