"""Tensor expressions that importers write: `graph.build.expression`."""

from calumma.graph.nodes import EXPRESSION
from calumma.operators.expressions import rule
from calumma.operators.registry import Operator

OPERATOR_FAMILY = Operator("expressions", rules={EXPRESSION: rule.lower_expression})
