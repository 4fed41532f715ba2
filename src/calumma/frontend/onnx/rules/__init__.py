"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import (
    activations,
    branching,
    constants,
    convolution,
    elementwise,
    indexing,
    normalisation,
    pooling,
    resampling,
    shapes,
    value_dependent,
)

__all__ = [
    "activations",
    "branching",
    "constants",
    "convolution",
    "elementwise",
    "indexing",
    "normalisation",
    "pooling",
    "resampling",
    "shapes",
    "value_dependent",
]
