"""The rewrites that run before anything is lowered, in the order that matters.

Constants and scales are folded, operators that models took apart are recovered.
"""

from __future__ import annotations

from calumma.graph.control_flow import push_constants_inside
from calumma.graph.nodes import Graph
from calumma.lowering.rewrites.channel_shuffle import recover_channel_shuffle
from calumma.lowering.rewrites.constant_folding import fold_constants
from calumma.lowering.rewrites.constants_right import put_constants_right
from calumma.lowering.rewrites.identities import remove_identities
from calumma.lowering.rewrites.layer_norm import recover_layer_norm
from calumma.lowering.rewrites.scales import fold_scales, join_shifts
from calumma.lowering.rewrites.transposed_convolution import replace_transposed_convolutions
from calumma.lowering.rewrites.transposes import absorb_transposes


def simplify(graph: Graph) -> Graph:
    """Run every rewrite, on the graphs of control flow too."""
    fold_constants(graph)
    put_constants_right(graph)
    remove_identities(graph)
    recover_channel_shuffle(graph)
    replace_transposed_convolutions(graph)
    recover_layer_norm(graph)
    fold_scales(graph)
    join_shifts(graph)
    absorb_transposes(graph)
    for region in push_constants_inside(graph):
        simplify(region)
    return graph
