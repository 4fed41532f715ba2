"""Depthwise convolutions: a window over each channel alone."""

from calumma.operators.depthwise import rule, sample
from calumma.operators.depthwise.space import DepthwiseSpace
from calumma.operators.registry import Operator

OPERATOR_FAMILY = Operator(
    "depthwise_conv2d",
    rules={"nn.conv2d": rule.lower_depthwise},
    space=DepthwiseSpace,
    templates=(DepthwiseSpace,),
    samples={"depthwise": sample.write_depthwise},
)
