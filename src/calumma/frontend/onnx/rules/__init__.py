"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import (
    activations,
    constants,
    elementwise,
    indexing,
    selection,
    shapes,
)

__all__ = [
    "activations",
    "constants",
    "elementwise",
    "indexing",
    "selection",
    "shapes",
]
