"""Softmax and layer normalisation as sample layers."""

from __future__ import annotations

from calumma.families.samples import Layer, LayerModel


def write_rows(m: LayerModel, layer: Layer) -> str:
    """A layer of attributes form ("layer_norm" or "softmax"), heads, rows, columns."""
    form, heads, rows, columns = layer.text("form"), *(layer.number(name) for name in ("heads", "rows", "columns"))
    if form == "layer_norm":
        weights = m.weight(columns), m.weight(columns)
        m.output(m.op("LayerNormalization", m.input(1, rows, columns), *weights, axis=-1, epsilon=1e-6))
    else:
        shape = (1, columns) if heads == rows == 1 else (1, heads, rows, columns)
        m.output(m.op("Softmax", m.input(*shape), axis=-1))
    return form
