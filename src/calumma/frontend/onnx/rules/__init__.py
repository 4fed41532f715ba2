"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import activations, constants, elementwise, products, reductions, softmax

__all__ = ["activations", "constants", "elementwise", "products", "reductions", "softmax"]
