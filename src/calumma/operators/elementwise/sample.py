"""Elementwise operators that nothing is fused into, and transposes, as sample layers."""

from __future__ import annotations

from calumma.families.samples import Layer, LayerModel


def write_elementwise(m: LayerModel, layer: Layer) -> str:
    """A layer of attributes form ("transpose", "add", "gate" or a scale with shift and ReLU), size, inputs."""
    form, channels, size = layer.text("form"), layer.number("inputs"), layer.number("size")
    if form == "transpose":
        pixels = m.op("Reshape", m.input(1, channels, size, size), m.constant([1, channels, size * size], "int64"))
        m.output(m.op("Transpose", pixels, perm=[0, 2, 1]))
        return "transpose"
    x = m.output(m.blocked(channels, size))
    if form == "add":
        result, kernel = m.op("Add", x, m.output(m.blocked(channels, size))), "add"
    elif form == "gate":
        result, kernel = m.op("Mul", x, m.output(m.blocked(channels, 1))), "multiply"
    else:
        scaled = m.op("Mul", x, m.weight(1, channels, 1, 1))
        result, kernel = m.op("Relu", m.op("Add", scaled, m.weight(1, channels, 1, 1))), "multiply"
    # A convolution that reads it: a change of layout would become part of its kernel.
    m.output(m.op("Conv", result, m.weight(channels, 1, 1, 1), kernel_shape=[1, 1], group=channels))
    return kernel
