"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import (
    activations,
    branching,
    cells,
    constants,
    convolution,
    elementwise,
    indexing,
    normalisation,
    pooling,
    products,
    reductions,
    resampling,
    shapes,
    softmax,
    value_dependent,
)

__all__ = [
    "activations",
    "branching",
    "cells",
    "constants",
    "convolution",
    "elementwise",
    "indexing",
    "normalisation",
    "pooling",
    "products",
    "reductions",
    "resampling",
    "shapes",
    "softmax",
    "value_dependent",
]
