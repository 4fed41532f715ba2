"""The rules of ONNX operators, one module per family; importing this package registers them."""

from calumma.frontend.onnx.rules import constants, convolution, elementwise, normalisation, pooling, resampling

__all__ = ["constants", "convolution", "elementwise", "normalisation", "pooling", "resampling"]
