"""Softmax and its siblings. Before version 13 they see a matrix: the axes before `axis`, and those from it on."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import relax, te, tirx

from calumma.graph.build import expression, operator, reshape
from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics.reductions import index_of_extremum


def _hardmax(x: Node, axis: int) -> Node:
    """1 at the first of the largest elements along an axis, else 0."""
    one, zero = tirx.const(1, x.dtype), tirx.const(0, x.dtype)

    def marked(index: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            place = index(*(0 if dim == axis else var for dim, var in enumerate(i)))
            return tirx.Select(place == i[axis].astype("int64"), one, zero)

        return te.compute(x.shape, element, name="hardmax")

    return expression(marked, index_of_extremum(x, axis, keepdims=True, largest=True), name="hardmax")


_FUNCTIONS: dict[str, Callable[[Node, int], Node]] = {
    "Hardmax": _hardmax,
    "LogSoftmax": lambda x, axis: operator(relax.op.nn.log_softmax, x, axis=axis),
    "Softmax": lambda x, axis: operator(relax.op.nn.softmax, x, axis=axis),
}


@onnx_rule(*_FUNCTIONS)
def of_matrix(node: OnnxNode) -> Node:
    x = node.input(0)
    rank, axis = len(x.shape), int(node.attribute("axis", 1))
    if not -rank <= axis <= rank:
        raise node.refused(f"axis {axis} of a tensor with {rank} dimensions", "export the model again")
    axis = axis + rank if axis < 0 else axis
    matrix = reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
    return reshape(_FUNCTIONS[node.op](matrix, 1), x.shape)


@onnx_rule(*_FUNCTIONS, since=13)
def along_axis(node: OnnxNode) -> Node:
    x = node.input(0)
    return _FUNCTIONS[node.op](x, node.axis(len(x.shape), default=-1))
