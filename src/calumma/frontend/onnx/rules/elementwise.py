"""Operators that compute every element from one element of each argument."""

from __future__ import annotations

from tvm import relax

from calumma.frontend.onnx.node import OnnxNode
from calumma.frontend.onnx.registry import onnx_rule
from calumma.graph.build import operator
from calumma.graph.nodes import Node

_UNARY = {
    "Abs": relax.op.abs,
    "Ceil": relax.op.ceil,
    "Exp": relax.op.exp,
    "Floor": relax.op.floor,
    "Log": relax.op.log,
    "Neg": relax.op.negative,
    "Relu": relax.op.nn.relu,
    "Sigmoid": relax.op.sigmoid,
    "Sqrt": relax.op.sqrt,
    "Tanh": relax.op.tanh,
}


@onnx_rule(*_UNARY)
def unary(node: OnnxNode) -> Node:
    return operator(_UNARY[node.op], node.input(0))


_BINARY = {
    "Add": relax.op.add,
    "Mul": relax.op.multiply,
    "Sub": relax.op.subtract,
}


@onnx_rule(*_BINARY, since=7)
def binary(node: OnnxNode) -> Node:
    return operator(_BINARY[node.op], node.input(0), node.input(1))
