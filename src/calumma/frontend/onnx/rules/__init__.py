"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import constants, control_flow, elementwise

__all__ = ["constants", "control_flow", "elementwise"]
