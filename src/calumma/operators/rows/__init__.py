"""Functions in several stages over the same rows: softmax, layer normalisation, and what is fused with them."""

from calumma.families.registry import Operator
from calumma.operators.rows import rule, sample
from calumma.operators.rows.space import RowsSpace, matches

OPERATOR_FAMILY = Operator(
    "rows",
    rules={
        "nn.softmax": rule.lower_softmax,
        "nn.log_softmax": rule.lower_softmax,
        "nn.layer_norm": rule.lower_layer_norm,
    },
    space=RowsSpace,
    structure=matches,
    templates=(RowsSpace,),
    samples={"rows": sample.write_rows},
)
