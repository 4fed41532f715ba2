"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import cells, constants, elementwise

__all__ = ["cells", "constants", "elementwise"]
