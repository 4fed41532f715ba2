"""The rewrites that run before anything is lowered, in the order that matters.

Constants and BatchNorm are folded, operators that importers took apart are recovered.
"""

from __future__ import annotations

from calumma.frontend.rewrites.batch_norm import decompose_batch_norm
from calumma.frontend.rewrites.channel_shuffle import recover_channel_shuffle
from calumma.frontend.rewrites.constant_folding import fold_constants
from calumma.frontend.rewrites.constants_right import put_constants_right
from calumma.frontend.rewrites.identities import remove_identities
from calumma.frontend.rewrites.layer_norm import recover_layer_norm
from calumma.frontend.rewrites.lrn import recover_lrn
from calumma.frontend.rewrites.scales import fold_scales, join_shifts
from calumma.frontend.rewrites.stacked_sums import replace_stacked_sums
from calumma.frontend.rewrites.transposed_convolution import replace_transposed_convolutions
from calumma.frontend.rewrites.transposes import absorb_transposes
from calumma.graph.nodes import Graph


def simplify(graph: Graph) -> Graph:
    """Run every rewrite."""
    decompose_batch_norm(graph)
    fold_constants(graph)
    put_constants_right(graph)
    replace_stacked_sums(graph)
    remove_identities(graph)
    recover_lrn(graph)
    recover_channel_shuffle(graph)
    replace_transposed_convolutions(graph)
    recover_layer_norm(graph)
    fold_scales(graph)
    join_shifts(graph)
    absorb_transposes(graph)
    return graph
