"""Tensor expressions that importers write: `graph.build.expression`."""

from calumma.families.registry import Operator
from calumma.graph.nodes import EXPRESSION
from calumma.operators.expressions import rule

OPERATOR_FAMILY = Operator("expressions", rules={EXPRESSION: rule.lower_expression})
