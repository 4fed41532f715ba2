"""Two-dimensional pooling."""

from calumma.families.registry import Operator
from calumma.operators.pooling import rule, sample

OPERATOR_FAMILY = Operator(
    "pooling",
    rules={
        "nn.max_pool2d": rule.lower_pool2d,
        "nn.avg_pool2d": rule.lower_pool2d,
        "nn.adaptive_avg_pool2d": rule.lower_global_mean,
        "mean": rule.lower_global_mean,
    },
    moves=("nn.max_pool2d",),
    samples={"pool": sample.write_pool},
)
