"""Convolutions over blocked channels: in one group or many, of a model's input, direct or by Winograd's algorithm."""

from __future__ import annotations

from tvm import tirx

from calumma.contractions.convolution import rule, sample
from calumma.contractions.convolution.space import Conv2dSpace
from calumma.contractions.convolution.winograd import WinogradSpace
from calumma.families.registry import Operator
from calumma.space import KnobSpace
from calumma.space.alternatives import AlternativesSpace
from calumma.target import Target


def convolution_space(func: tirx.PrimFunc, target: Target, threads: int) -> KnobSpace:
    """Direct convolutions, and Winograd's algorithm where it applies."""
    direct = Conv2dSpace(func, target, threads)
    if not WinogradSpace.matches(func):
        return direct
    winograd = {f"winograd{m}": WinogradSpace(func, target, threads, m) for m in (2, 4)}
    return AlternativesSpace({"direct": direct, **winograd})


OPERATOR_FAMILY = Operator(
    "conv2d",
    rules={"nn.conv2d": rule.lower_conv2d},
    space=convolution_space,
    templates=(Conv2dSpace,),
    contracts=rule.contracts,
    orders=rule.channel_orders,
    samples={
        **dict.fromkeys(("conv", "pointwise", "first", "grouped"), sample.write_convolution),
        "transposed": sample.write_transposed,
    },
)
