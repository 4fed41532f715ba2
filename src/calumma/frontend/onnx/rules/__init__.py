"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import constants, elementwise, recurrent

__all__ = ["constants", "elementwise", "recurrent"]
