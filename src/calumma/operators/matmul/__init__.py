"""Matrix products: dense layers with packed weights, and batched products of two activations."""

from calumma.graph.nodes import MATMUL
from calumma.operators.matmul import rule, sample
from calumma.operators.matmul.space import MatmulSpace
from calumma.operators.registry import Operator

OPERATOR_FAMILY = Operator(
    "matmul",
    rules={"matmul": rule.lower_matmul, MATMUL: rule.lower_matmul},
    space=MatmulSpace,
    templates=(MatmulSpace,),
    contracts=rule.contracts,
    samples={"dense": sample.write_dense, "attention": sample.write_attention},
)
