"""Recurrent layers as sample layers."""

from __future__ import annotations

from calumma.families.samples import Layer, LayerModel

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def write_recurrent(m: LayerModel, layer: Layer) -> str:
    """A layer of attributes cell ("LSTM", "GRU" or "RNN"), direction, steps, rows, inputs, hidden."""
    steps, rows, inputs, hidden = (layer.number(name) for name in ("steps", "rows", "inputs", "hidden"))
    cell = layer.text("cell")
    gates = _GATES[cell] * hidden
    weights = m.weight(1, gates, inputs), m.weight(1, gates, hidden)
    x = m.input(steps, rows, inputs)
    m.output(m.op(cell, x, *weights, hidden_size=hidden, direction=layer.text("direction")))
    return "recurrent"
