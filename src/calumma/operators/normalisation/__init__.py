"""Local response normalisation."""

from calumma.families.registry import Operator
from calumma.graph.nodes import LRN
from calumma.operators.normalisation import rule

OPERATOR_FAMILY = Operator("local_response_norm", rules={LRN: rule.lower_lrn})
