"""Layers of published networks, as attributes: what real layers look like, and the data that new ones are drawn from.

`published/` holds each network as its authors describe it (batch normalisation folded into a bias, as an importer
does): where it was published, and its distinct layers with how often it has them. Networks that are made of the same
layers (ResNet-50, 101 and 152; VGG-16 and 19) are one entry, so that leaving out a network by name leaves out its
layers.

Families and their attributes, in the order in which they are drawn:

    conv, pointwise, first    window, size, inputs, outputs, epilogue
    grouped                   window, size, inputs, outputs, groups, epilogue
    depthwise                 window, size, inputs, epilogue
    transposed                window, size, inputs, outputs, epilogue
    dense                     form, rows, inputs, outputs, epilogue
    attention                 form, heads, rows, columns, inputs
    rows                      form, heads, rows, columns
    pool, elementwise         form, size, inputs

`window` is "KHxKW", stride, dilation and padding in one word: "3x3/2d1p1" has stride 2, dilation 1 and padding 1 on
every side, "p0,3" none above and below, 3 columns left and right. `size` is the height and width of the input, `rows` a
number of tokens. `epilogue` is what the same kernel does afterwards, in order: "bias,add,relu"; "add" is x + residual,
"onto" residual + x. "pointwise" are 1x1 convolutions, "first" those with fewer than 16 input channels, which
read a model's input.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from calumma.families.samples import Layer

_PUBLISHED = Path(__file__).resolve().parent / "published"
_FILES = ("convolutional.json", "transformers.json")
"""Network -> {"source": ..., "layers": [[how often, family, values by attribute], ...]}; the order counts in draws."""


@functools.cache
def networks() -> Mapping[str, Mapping[Layer, int]]:
    """Name -> the distinct layers of the network, with how often it has them."""
    written = [json.loads((_PUBLISHED / file).read_text(encoding="utf-8")) for file in _FILES]
    return MappingProxyType(
        {
            name: MappingProxyType(
                {Layer(family, tuple(values.items())): count for count, family, values in network["layers"]}
            )
            for part in written
            for name, network in part.items()
        }
    )
