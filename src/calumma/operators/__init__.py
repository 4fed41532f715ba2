"""Operators, one package per family: expression, design space, lowering rule and sample layers.

`registry.Operator` says what a family brings. A family from outside of the package is made known by `register`.
"""

from calumma.contractions import convolution, depthwise, matmul, recurrent
from calumma.families.registry import (
    Operator,
    design_space,
    families,
    moves,
    register,
    rules_for,
    sample_writers,
    template_versions,
)
from calumma.graph.context import INJECTIVE, OUT_ELEMENTWISE_FUSABLE, Declined, LoweringContext
from calumma.graph.layouts import Value
from calumma.operators import elementwise, expressions, extrema, layout, normalisation, pooling, rows

__all__ = [
    "INJECTIVE",
    "OUT_ELEMENTWISE_FUSABLE",
    "Declined",
    "LoweringContext",
    "Operator",
    "Value",
    "design_space",
    "families",
    "moves",
    "register",
    "rules_for",
    "sample_writers",
    "template_versions",
]

for _family in (
    *(convolution, depthwise, matmul, pooling, recurrent, normalisation, rows, elementwise, extrema, layout),
    expressions,
):
    register(_family.OPERATOR_FAMILY)
