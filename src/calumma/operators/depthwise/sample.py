"""Depthwise convolutions as sample layers."""

from __future__ import annotations

from calumma.operators.convolution.sample import write_grouped
from calumma.operators.samples import Layer, LayerModel


def write_depthwise(m: LayerModel, layer: Layer) -> str:
    """A depthwise convolution of attributes window, size, inputs, epilogue."""
    write_grouped(m, layer, layer.number("inputs"), layer.number("inputs"))
    return "depthwise"
