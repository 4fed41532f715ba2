"""Depthwise convolutions: a window over each channel alone."""

from calumma.contractions.depthwise import rule, sample
from calumma.contractions.depthwise.space import DepthwiseSpace
from calumma.families.registry import Operator

OPERATOR_FAMILY = Operator(
    "depthwise_conv2d",
    rules={"nn.conv2d": rule.lower_depthwise},
    space=DepthwiseSpace,
    templates=(DepthwiseSpace,),
    samples={"depthwise": sample.write_depthwise},
)
