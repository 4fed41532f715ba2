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
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

Value = int | str

_PUBLISHED = Path(__file__).resolve().parent / "published"
_FILES = ("convolutional.json", "transformers.json")
"""Network -> {"source": ..., "layers": [[how often, family, values by attribute], ...]}; the order counts in draws."""


@dataclass(frozen=True)
class Layer:
    """One layer: the values of its family's attributes, in their order."""

    family: str
    values: tuple[tuple[str, Value], ...]

    def __getitem__(self, attribute: str) -> Value:
        return dict(self.values)[attribute]

    def number(self, attribute: str) -> int:
        """The value of an attribute that is a number."""
        return int(self[attribute])

    def text(self, attribute: str) -> str:
        """The value of an attribute that is a word."""
        return str(self[attribute])

    def __str__(self) -> str:
        return " ".join([self.family, *(f"{name}={value}" for name, value in self.values)])


@dataclass(frozen=True)
class Window:
    """What a convolution or a pooling sees at once, and how it moves."""

    kernel: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read "3x3/2d1p1"."""
        kernel, _, rest = text.partition("/")
        stride, _, rest = rest.partition("d")
        dilation, _, padding = rest.partition("p")
        height, _, width = kernel.partition("x")
        top, _, left = padding.partition(",")
        return cls((int(height), int(width)), int(stride), int(dilation), (int(top), int(left or top)))

    def __str__(self) -> str:
        top, left = self.padding
        pads = f"{top}" if top == left else f"{top},{left}"
        return f"{self.kernel[0]}x{self.kernel[1]}/{self.stride}d{self.dilation}p{pads}"

    def results(self, size: int) -> tuple[int, int]:
        """Height and width of the result for a square input; 0 or less where the window does not fit."""
        high, wide = (
            (size + 2 * pad - self.dilation * (kernel - 1) - 1) // self.stride + 1
            for kernel, pad in zip(self.kernel, self.padding, strict=True)
        )
        return high, wide


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
