"""Pooling, and local response normalisation, which networks have between it and convolutions, as sample layers."""

from __future__ import annotations

from calumma.families.samples import Layer, LayerModel, LayerWindow


def write_pool(m: LayerModel, layer: Layer) -> str:
    """A layer of attributes form ("mean", "lrn", or "max", "max_ceil", "average" and a window), size, inputs."""
    form, _, window_text = layer.text("form").partition(" ")
    x = m.blocked(layer.number("inputs"), layer.number("size"))
    if form == "mean":
        m.output(m.op("GlobalAveragePool", x))
        return "mean"
    if form == "lrn":
        m.output(m.op("LRN", x, size=5, alpha=1e-4, beta=0.75, bias=1.0))
        return "lrn"
    window = LayerWindow.parse(window_text)
    before, after = window.padding[0], window.padding[0] + (form == "max_ceil")
    m.output(
        m.op(
            "AveragePool" if form == "average" else "MaxPool",
            x,
            kernel_shape=list(window.kernel),
            strides=[window.stride] * 2,
            pads=[before, before, after, after],
        )
    )
    return "pool2d"
