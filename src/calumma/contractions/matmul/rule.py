"""How matrix products are lowered: `dense` with packed constant weights, `batch_matmul` of two activations."""

from __future__ import annotations

from calumma.contractions.matmul import expression
from calumma.core.contraction import Contraction
from calumma.graph.context import OUT_ELEMENTWISE_FUSABLE, Declined, LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import CONSTANT, MATMUL, Node


def lower_matmul(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of `matmul`, with transposes absorbed or without."""
    left, right = node.args[:2]
    if not lo.computes(node):
        return Declined(f"it computes in {node.dtype}")
    if len(left.shape) < 2:
        return Declined("its left operand is a vector")
    if right.op == CONSTANT and right.value.ndim == 2:
        return _dense(lo, node)
    if len(right.shape) < 2:
        return Declined("its right operand is a vector")
    axes = (
        (node.attrs.left_axes, node.attrs.right_axes, node.attrs.out_axes) if node.op == MATMUL else (None, None, None)
    )
    operands = [lo.plain(left), lo.plain(right)]
    rank = max(len(left.shape), len(right.shape))
    for i, value in enumerate(operands):
        if len(value.shape) < rank:
            operands[i] = lo.reshaped(value, (1,) * (rank - len(value.shape)) + value.shape)
    expr = lo.emit(
        lambda x, y: expression.batch_matmul(x, y, lo.lanes, *axes),
        *(value.expr for value in operands),
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="batch_matmul",
    )
    return Value(expr, node.shape)


def _dense(lo: LoweringContext, node: Node) -> Value:
    left, right = node.args[:2]
    narrow = lo.contracts_narrow(node)
    packed = lo.packed_weight(node, expression.pack_dense_weight(right.value, lo.lanes), ("dense", right))
    columns = right.shape[1]
    expr = lo.emit(
        lambda x, w: expression.dense(x, w, columns),
        lo.to_plain(lo.narrowed(left) if narrow else lo.value(left)).expr,
        packed,
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="dense",
    )
    return Value(expr, node.shape)


def contracts(node: Node, contraction: Contraction, lanes: int) -> bool:
    """Whether a product has a form for narrow types: those with constant weights and whole packs of the reduction."""
    if node.op not in ("matmul", MATMUL):
        return False
    data, weight = node.args[:2]
    whole = len(data.shape) >= 2 and data.shape[-1] % contraction.pack == 0
    return whole and weight.op == CONSTANT and weight.value.ndim == 2
