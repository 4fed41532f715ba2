"""Linear algebra."""

from __future__ import annotations

from tvm import relax

from calumma.graph.build import operator, transpose
from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import CONTRIB, onnx_rule
from calumma.semantics.arithmetic import is_float
from calumma.semantics.products import determinant, einsum, matmul, scaled, swapped


@onnx_rule("MatMul")
def matrix_product(node: OnnxNode) -> Node:
    return matmul(node.input(0), node.input(1))


@onnx_rule("FusedMatMul", "TransposeMatMul", domain=CONTRIB)
def fused_matmul(node: OnnxNode) -> Node:
    operands = [node.input(0), node.input(1)]
    for index, side in enumerate("AB"):
        if node.attribute(f"transBatch{side}", 0):
            raise node.refused(f"transBatch{side} is not supported", "export the model without this fusion")
        if node.attribute(f"trans{side}", 0) and len(operands[index].shape) > 1:
            operands[index] = swapped(operands[index])
    return scaled(matmul(*operands), float(node.attribute("alpha", 1.0)))


@onnx_rule("Gemm")
def gemm(node: OnnxNode) -> Node:
    """alpha * A' x B' + beta * C, C broadcast."""
    node.ignore("broadcast")
    left, right, addend = node.input(0), node.input(1), node.optional(2)
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    if not is_float(left) and not (alpha.is_integer() and beta.is_integer()):
        raise node.refused(f"alpha {alpha} and beta {beta} of integers", "export it with whole numbers")
    left = scaled(left, alpha)
    left = transpose(left, [1, 0]) if node.flag("transA", 0) else left
    right = transpose(right, [1, 0]) if node.flag("transB", 0) else right
    product = operator(relax.op.matmul, left, right)
    return product if addend is None else operator(relax.op.add, product, scaled(addend, beta))


@onnx_rule("Einsum")
def einstein_sum(node: OnnxNode) -> Node:
    return einsum(node.attribute("equation"), node.inputs())


@onnx_rule("Det")
def det(node: OnnxNode) -> Node:
    return determinant(node.input(0))
