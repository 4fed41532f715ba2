"""Convolutions, products, pooling, normalisation, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from calumma.frontend.torch.node import TorchNode
from calumma.frontend.torch.registry import aten_rule
from calumma.graph.build import cast, operator, reshape, scalar
from calumma.graph.nodes import Node


@aten_rule("mm.default", "bmm.default")
def matmul(node: TorchNode, self: Node, mat2: Node) -> Node:
    return operator(relax.op.matmul, cast(self, node.dtype), cast(mat2, node.dtype))


@aten_rule("addmm.default")
def addmm(node: TorchNode, self: Node, mat1: Node, mat2: Node, beta: float = 1, alpha: float = 1) -> Node:
    result = operator(relax.op.matmul, mat1, mat2)
    if alpha != 1:
        result = operator(relax.op.multiply, result, scalar(alpha, node.dtype))
    if beta == 0:
        return result
    bias = self if beta == 1 else operator(relax.op.multiply, self, scalar(beta, node.dtype))
    return operator(relax.op.add, bias, result)
