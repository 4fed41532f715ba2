"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import (
    activations,
    constants,
    convolution,
    elementwise,
    indexing,
    normalisation,
    pooling,
    regions,
    resampling,
    selection,
    shapes,
)

__all__ = [
    "activations",
    "constants",
    "convolution",
    "elementwise",
    "indexing",
    "normalisation",
    "pooling",
    "regions",
    "resampling",
    "selection",
    "shapes",
]
