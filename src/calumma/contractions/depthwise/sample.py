"""Depthwise convolutions as sample layers."""

from __future__ import annotations

from calumma.contractions.convolution.sample import write_grouped
from calumma.families.samples import Layer, LayerModel


def write_depthwise(m: LayerModel, layer: Layer) -> str:
    """A depthwise convolution of attributes window, size, inputs, epilogue."""
    write_grouped(m, layer, layer.number("inputs"), layer.number("inputs"))
    return "depthwise"
