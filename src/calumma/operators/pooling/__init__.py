"""Two-dimensional pooling."""

from calumma.operators.pooling import rule, sample
from calumma.operators.registry import Operator

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
