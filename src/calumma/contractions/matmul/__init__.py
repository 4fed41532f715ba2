"""Matrix products: dense layers with packed weights, and batched products of two activations."""

from calumma.contractions.matmul import rule, sample
from calumma.contractions.matmul.space import MatmulSpace
from calumma.families.registry import Operator
from calumma.graph.nodes import MATMUL

OPERATOR_FAMILY = Operator(
    "matmul",
    rules={"matmul": rule.lower_matmul, MATMUL: rule.lower_matmul},
    space=MatmulSpace,
    templates=(MatmulSpace,),
    contracts=rule.contracts,
    samples={"dense": sample.write_dense, "attention": sample.write_attention},
)
