"""Signal processing."""

from __future__ import annotations

import math

from calumma.graph.build import reshape
from calumma.graph.nodes import Node, constant
from calumma.onnx_import.element_types import computed_dtype
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics import signal


@onnx_rule("DFT", since=17)
def dft(node: OnnxNode) -> Node:
    """The axis is an attribute, since version 20 an input."""
    x = node.input(0)
    rank = len(x.shape)
    (length,) = node.integers(1, "dft_length") or (0,)
    if node.version < 20:
        axis = int(node.attribute("axis", 1))
    else:
        (axis,) = node.integers(2, "axis") or (-2,)
    axis = node.normalised_axis(axis, rank)
    inverse, onesided = bool(node.attribute("inverse", 0)), bool(node.attribute("onesided", 0))
    if axis == rank - 1 or x.shape[-1] not in (1, 2):
        raise node.refused(
            f"axis {axis} of {x.shape}, of which the last holds real and imaginary part", "export it again"
        )
    if inverse and onesided:
        raise node.refused("an inverse of one side is not supported", "transform both sides")
    return signal.fourier(x, axis, length or x.shape[axis], inverse, onesided)


@onnx_rule("STFT", since=17)
def stft(node: OnnxNode) -> Node:
    x, window = node.input(0), node.optional(2)
    if len(x.shape) == 2:  # real samples; ONNX Runtime takes them so
        x = reshape(x, (*x.shape, 1))
    (step,) = node.integers(1, "frame_step") or (0,)
    (length,) = node.integers(3, "frame_length") or ((0,) if window is None else window.shape)
    if step < 1 or not 1 <= length <= x.shape[1] or (window is not None and window.shape != (length,)):
        raise node.refused(f"frames of {length}, one every {step}, of {x.shape[1]} samples", "export the model again")
    return signal.short_time_fourier(x, step, window, length, bool(node.attribute("onesided", 1)))


@onnx_rule(*signal.WINDOWS)
def window(node: OnnxNode) -> Node:
    """Its size, where it is computed at run time, is what the model declares."""
    size = math.prod(node.integers(0, "size") or ()) if node.is_known(0) else node.promised_shape("size")[0]
    node.input(0)
    values = signal.window(node.op, size, bool(node.attribute("periodic", 1)))
    return constant(values.astype(computed_dtype(int(node.attribute("output_datatype", 1)))), node.name)
