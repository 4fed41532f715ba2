"""Elementwise operators of one and of two tensors."""

from calumma.expressions.elementwise import BINARY, UNARY
from calumma.families.registry import Operator
from calumma.graph.nodes import MAP
from calumma.operators.elementwise import rule, sample

OPERATOR_FAMILY = Operator(
    "elementwise",
    rules={MAP: rule.lower_map, **dict.fromkeys(UNARY, rule.lower_unary), **dict.fromkeys(BINARY, rule.lower_binary)},
    samples={"elementwise": sample.write_elementwise},
)
