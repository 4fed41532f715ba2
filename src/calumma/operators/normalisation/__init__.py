"""Local response normalisation."""

from calumma.graph.nodes import LRN
from calumma.operators.normalisation import rule
from calumma.operators.registry import Operator

OPERATOR_FAMILY = Operator("local_response_norm", rules={LRN: rule.lower_lrn})
