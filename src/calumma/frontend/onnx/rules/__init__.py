"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import (
    activations,
    constants,
    elementwise,
    indexing,
    shapes,
    value_dependent,
)

__all__ = [
    "activations",
    "constants",
    "elementwise",
    "indexing",
    "shapes",
    "value_dependent",
]
