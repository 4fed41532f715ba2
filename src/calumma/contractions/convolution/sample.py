"""Convolutions as sample layers: of any window, pointwise, of a model's input, in groups, transposed."""

from __future__ import annotations

from calumma.families.samples import Layer, LayerModel, LayerWindow


def write_convolution(m: LayerModel, layer: Layer) -> str:
    """A convolution of attributes window, size, inputs, outputs, epilogue; "grouped" has groups as well."""
    groups = layer.number("groups") if layer.family == "grouped" else 1
    write_grouped(m, layer, layer.number("outputs"), groups)
    return "conv2d"


def write_grouped(m: LayerModel, layer: Layer, outputs: int, groups: int) -> None:
    """Add a convolution of so many outputs and groups, and what follows in its kernel."""
    inputs, size, window = layer.number("inputs"), layer.number("size"), LayerWindow.parse(layer.text("window"))
    top, left = window.padding
    result = m.op(
        "Conv",
        m.input(1, inputs, size, size),
        m.weight(outputs, inputs // groups, *window.kernel),
        kernel_shape=list(window.kernel),
        strides=[window.stride] * 2,
        dilations=[window.dilation] * 2,
        pads=[top, left, top, left],
        group=groups,
    )
    shape = (1, outputs, *window.results(size))
    m.output(m.epilogue(result, layer.text("epilogue"), (1, outputs, 1, 1), shape))


def write_transposed(m: LayerModel, layer: Layer) -> str:
    """A transposed convolution of attributes window, size, inputs, outputs, epilogue."""
    inputs, outputs, size = (layer.number(name) for name in ("inputs", "outputs", "size"))
    window = LayerWindow.parse(layer.text("window"))
    result = m.op(
        "ConvTranspose",
        m.input(1, inputs, size, size),
        m.weight(inputs, outputs, *window.kernel),
        strides=[window.stride] * 2,
        pads=[*window.padding, *window.padding],
    )
    m.output(m.epilogue(result, layer.text("epilogue"), (1, outputs, 1, 1), ()))
    return "conv2d"
