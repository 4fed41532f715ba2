"""Layers of published networks, as attributes: what real layers look like, and the data that new ones are drawn from.

Each network is written down as its authors describe it (batch normalisation folded into a bias, as an importer does)
and gives its distinct layers with how often it has them. Networks that are made of the same layers (ResNet-50, 101 and
152; VGG-16 and 19) are one entry, so that leaving out a network by name leaves out its layers.

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
"onto" residual + x. "pointwise" are 1x1 convolutions, "first" those with fewer input channels than a vector has lanes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from calumma.operators.samples import Layer, LayerWindow, Value

_FIRST_CHANNELS = 16
"""Convolutions of fewer input channels are those that read a model's input."""


def same(kernel: int | tuple[int, int], stride: int = 1, dilation: int = 1) -> LayerWindow:
    """The window, of odd sides, that keeps the size at stride 1."""
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    return LayerWindow((high, wide), stride, dilation, (dilation * (high - 1) // 2, dilation * (wide - 1) // 2))


def valid(kernel: int, stride: int = 1) -> LayerWindow:
    """The square window without padding."""
    return LayerWindow((kernel, kernel), stride)


_Branch = tuple[int, int | LayerWindow]
"""Outputs and window of a convolution; a number is a kernel that keeps the size."""


@dataclass
class _Net:
    """A network being written down: what a layer gives is what the next one takes."""

    size: int = 224
    channels: int = 3
    layers: Counter[Layer] = field(default_factory=Counter)
    activation: str = "relu"
    """Of convolutions whose epilogue is not given."""

    def add(self, family: str, **values: Value) -> None:
        self.layers[Layer(family, tuple(values.items()))] += 1

    def conv(
        self,
        outputs: int,
        window: int | LayerWindow,
        stride: int = 1,
        epilogue: str | None = None,
        groups: int = 1,
    ) -> _Net:
        window = same(window, stride) if isinstance(window, int) else window
        epilogue = f"bias,{self.activation}" if epilogue is None else epilogue
        shape: dict[str, Value] = {"window": str(window), "size": self.size, "inputs": self.channels}
        if groups == self.channels == outputs and groups > 1:
            self.add("depthwise", **shape, epilogue=epilogue)
        elif groups > 1:
            self.add("grouped", **shape, outputs=outputs, groups=groups, epilogue=epilogue)
        else:
            first, pointwise = self.channels < _FIRST_CHANNELS, window.kernel == (1, 1)
            family = "first" if first else "pointwise" if pointwise else "conv"
            self.add(family, **shape, outputs=outputs, epilogue=epilogue)
        self.size, self.channels = window.results(self.size)[0], outputs
        return self

    def depthwise(self, window: int | LayerWindow, stride: int = 1, epilogue: str | None = None) -> _Net:
        return self.conv(self.channels, window, stride, epilogue, self.channels)

    def branches(self, *branches: Sequence[_Branch], pool: str = "") -> _Net:
        """Chains of convolutions beside each other, their results joined; `pool` is joined as well."""
        size, channels, total, after = self.size, self.channels, 0, self.size
        for convs in branches:
            for outputs, window in convs:
                self.conv(outputs, window)
            total += self.channels
            after = self.size
            self.size, self.channels = size, channels
        if pool:
            self.pool(pool)
            total += channels
        self.size, self.channels = after, total
        return self

    def shortcut(self, outputs: int, stride: int = 1, epilogue: str = "bias") -> None:
        """A 1x1 convolution beside the trunk, which stays where it is."""
        size, channels = self.size, self.channels
        self.conv(outputs, valid(1, stride), epilogue=epilogue)
        self.size, self.channels = size, channels

    def transposed(self, outputs: int, window: LayerWindow, epilogue: str = "bias,relu") -> _Net:
        shape: dict[str, Value] = {"window": str(window), "size": self.size, "inputs": self.channels}
        self.add("transposed", **shape, outputs=outputs, epilogue=epilogue)
        self.size = (self.size - 1) * window.stride - 2 * window.padding[0] + window.kernel[0]
        self.channels = outputs
        return self

    def pool(self, form: str) -> _Net:
        """A pooling: "max 3x3/2d1p1", "max_ceil" (padded below and right), "average"; "lrn"; "mean" of the plane."""
        self.add("pool", form=form, size=self.size, inputs=self.channels)
        kind, _, window = form.partition(" ")
        if window:
            self.size = LayerWindow.parse(window).results(self.size + (kind == "max_ceil"))[0]
        elif kind == "mean":
            self.size = 1
        return self

    def elementwise(self, form: str) -> _Net:
        self.add("elementwise", form=form, size=self.size, inputs=self.channels)
        return self

    def flatten(self) -> _Net:
        self.size, self.channels = 1, self.channels * self.size**2
        return self

    def dense(self, rows: int, outputs: int, epilogue: str = "bias", inputs: int | None = None) -> _Net:
        """A product with constant weights; of one row it is a vector's."""
        form, inputs = "vector" if rows == 1 else "tokens", inputs or self.channels
        self.add("dense", form=form, rows=rows, inputs=inputs, outputs=outputs, epilogue=epilogue)
        self.channels = outputs
        return self

    def logits(self, classes: int = 1000) -> _Net:
        self.dense(1, classes)
        self.add("rows", form="softmax", heads=1, rows=1, columns=classes)
        return self

    def squeeze(self, hidden: int, activation: str = "relu", gate: str = "sigmoid") -> _Net:
        """Squeeze and excitation: the mean of each channel, two 1x1 convolutions of one pixel, a gate."""
        size, channels = self.size, self.channels
        self.pool("mean").conv(hidden, 1, 1, f"bias,{activation}").conv(channels, 1, 1, f"bias,{gate}")
        self.size = size
        return self.elementwise("gate")

    def attention(self, rows: int, columns: int, heads: int, size: int) -> _Net:
        """Scores of every row against every column, their softmax, and the weighted sums."""
        self.add("attention", form="scores", heads=heads, rows=rows, columns=columns, inputs=size)
        self.add("rows", form="softmax", heads=heads, rows=rows, columns=columns)
        self.add("attention", form="context", heads=heads, rows=rows, columns=size, inputs=columns)
        return self

    def norm(self, tokens: int, width: int) -> _Net:
        self.add("rows", form="layer_norm", heads=1, rows=tokens, columns=width)
        return self

    def encoder(self, tokens: int, width: int, heads: int, hidden: int, activation: str = "gelu") -> _Net:
        """One block of a transformer: attention and a feed-forward part, both with residuals."""
        self.dense(tokens, width, inputs=width).attention(tokens, tokens, heads, width // heads)
        self.dense(tokens, width, "bias,add").norm(tokens, width)
        return self.dense(tokens, hidden, f"bias,{activation}").dense(tokens, width, "bias,add")


_MAX2, _MAX3, _MAX3P = "max 2x2/2d1p0", "max 3x3/2d1p0", "max 3x3/2d1p1"
_MAX3C, _MAX3S1 = "max_ceil 3x3/2d1p0", "max 3x3/1d1p1"
_AVERAGE3S1, _AVERAGE2 = "average 3x3/1d1p1", "average 2x2/2d1p0"


# -- convolutional networks ---------------------------------------------------------------------------


def _bvlc_alexnet() -> _Net:
    """Krizhevsky et al. 2012, in two groups."""
    n = _Net().conv(96, valid(11, 4)).pool("lrn").pool(_MAX3).conv(256, 5, groups=2).pool("lrn").pool(_MAX3)
    n.conv(384, 3).conv(384, 3, groups=2).conv(256, 3, groups=2).pool(_MAX3).flatten()
    return n.dense(1, 4096, "bias,relu").dense(1, 4096, "bias,relu").logits()


def _alexnet() -> _Net:
    """Krizhevsky 2014, in one group."""
    n = _Net().conv(64, LayerWindow((11, 11), 4, 1, (2, 2))).pool(_MAX3).conv(192, 5).pool(_MAX3)
    n.conv(384, 3).conv(256, 3).conv(256, 3).pool(_MAX3).flatten()
    return n.dense(1, 4096, "bias,relu").dense(1, 4096, "bias,relu").logits()


def _zfnet512() -> _Net:
    """Zeiler & Fergus 2014, 512 filters."""
    n = _Net().conv(96, valid(7, 2)).pool("lrn").pool(_MAX3).conv(256, valid(5, 2))
    n.pool("lrn").pool(_MAX3).conv(512, 3).conv(1024, 3).conv(512, 3).pool(_MAX3).flatten()
    return n.dense(1, 4096, "bias,relu").dense(1, 4096, "bias,relu").logits()


def _vgg19() -> _Net:
    """Simonyan & Zisserman 2015; also the layers of VGG-11, 13 and 16."""
    n = _Net()
    for width, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(depth):
            n.conv(width, 3)
        n.pool(_MAX2)
    return n.flatten().dense(1, 4096, "bias,relu").dense(1, 4096, "bias,relu").logits()


def _resnet18() -> _Net:
    """He et al. 2016; also the layers of ResNet-34."""
    n = _Net().conv(64, 7, 2).pool(_MAX3P)
    for width in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if width > 64 and block == 0 else 1
            if stride == 2:
                n.shortcut(width, stride)
            n.conv(width, 3, stride).conv(width, 3, 1, "bias,add,relu")
    return n.pool("mean").logits()


def _bottlenecks(widths: Sequence[int], outputs: Sequence[int], depths: Sequence[int], groups: int = 1) -> _Net:
    n = _Net().conv(64, 7, 2).pool(_MAX3P)
    for stage, (width, outside, depth) in enumerate(zip(widths, outputs, depths, strict=True)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            if block == 0:
                n.shortcut(outside, stride)
            n.conv(width, 1).conv(width, 3, stride, groups=groups).conv(outside, 1, 1, "bias,add,relu")
    return n.pool("mean").logits()


def _resnet50() -> _Net:
    """He et al. 2016, stride in the 3x3 convolution or in the first 1x1; also the layers of ResNet-101 and 152."""
    n = _bottlenecks((64, 128, 256, 512), (256, 512, 1024, 2048), (3, 4, 6, 3))
    for size, inputs, width in ((56, 256, 128), (28, 512, 256), (14, 1024, 512)):
        n.size, n.channels = size, inputs
        n.conv(width, valid(1, 2))
    return n


def _wide_resnet50() -> _Net:
    """Zagoruyko & Komodakis 2016."""
    return _bottlenecks((128, 256, 512, 1024), (256, 512, 1024, 2048), (3, 4, 6, 3))


def _resnext50() -> _Net:
    """Xie et al. 2017, 32x4d."""
    return _bottlenecks((128, 256, 512, 1024), (256, 512, 1024, 2048), (3, 4, 6, 3), groups=32)


def _regnet_x_400mf() -> _Net:
    """Radosavovic et al. 2020, groups of 16 channels."""
    return _regnet((32, 64, 160, 400), (1, 2, 7, 12), 16)


def _regnet_y_1_6gf() -> _Net:
    """Radosavovic et al. 2020, groups of 24 channels, with squeeze and excitation."""
    return _regnet((48, 120, 336, 888), (2, 6, 17, 2), 24, squeeze=True)


def _regnet(widths: Sequence[int], depths: Sequence[int], group: int, squeeze: bool = False) -> _Net:
    n = _Net().conv(32, 3, 2)
    for width, depth in zip(widths, depths, strict=True):
        for block in range(depth):
            inputs, stride = n.channels, 2 if block == 0 else 1
            if block == 0:
                n.shortcut(width, stride)
            n.conv(width, 1).conv(width, 3, stride, groups=width // group)
            if squeeze:
                n.squeeze(inputs // 4)
            n.conv(width, 1, 1, "bias,add,relu")
    return n.pool("mean").logits()


def _densenet121() -> _Net:
    """Huang et al. 2017; also the growth of DenseNet-169 and 201."""
    return _densenet(64, 32, (6, 12, 24, 16))


def _densenet161() -> _Net:
    """Huang et al. 2017, growth 48."""
    return _densenet(96, 48, (6, 12, 36, 24))


def _densenet(stem: int, growth: int, depths: Sequence[int]) -> _Net:
    n = _Net().conv(stem, 7, 2).pool(_MAX3P)
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            inputs = n.channels
            n.elementwise("scale").conv(4 * growth, 1).conv(growth, 3, 1, "")
            n.channels = inputs + growth
        n.elementwise("scale")
        if stage < len(depths) - 1:
            n.conv(n.channels // 2, 1, 1, "").pool(_AVERAGE2)
    return n.pool("mean").logits()


def _inception_v1() -> _Net:
    """Szegedy et al. 2015."""
    n = _Net().conv(64, 7, 2).pool(_MAX3C).pool("lrn").conv(64, 1).conv(192, 3).pool("lrn").pool(_MAX3C)
    for ones, narrow3, threes, narrow5, fives, pooled in (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        (0, 0, 0, 0, 0, 0),
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        (0, 0, 0, 0, 0, 0),
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    ):
        if not ones:
            n.pool(_MAX3C)
            continue
        n.pool(_MAX3S1).branches([(ones, 1)], [(narrow3, 1), (threes, 3)], [(narrow5, 1), (fives, 5)], [(pooled, 1)])
    return n.pool("mean").logits()


def _inception_v2() -> _Net:
    """Ioffe & Szegedy 2015."""
    n = _Net().conv(64, 7, 2).pool(_MAX3C).conv(64, 1).conv(192, 3).pool(_MAX3C)
    for ones, narrow3, threes, narrow5, fives, pooled in (
        (64, 64, 64, 64, 96, 32),
        (64, 64, 96, 64, 96, 64),
        (0, 128, 160, 64, 96, 0),
        (224, 64, 96, 96, 128, 128),
        (192, 96, 128, 96, 128, 128),
        (160, 128, 160, 128, 160, 96),
        (96, 128, 192, 160, 192, 96),
        (0, 128, 192, 192, 256, 0),
        (352, 192, 320, 160, 224, 128),
        (352, 192, 320, 192, 224, 128),
    ):
        if ones:
            n.pool(_AVERAGE3S1)
            triple: list[_Branch] = [(narrow5, 1), (fives, 3), (fives, 3)]
            n.branches([(ones, 1)], [(narrow3, 1), (threes, 3)], triple, [(pooled, 1)])
        else:
            half = same(3, 2)
            n.branches([(narrow3, 1), (threes, half)], [(narrow5, 1), (fives, 3), (fives, half)], pool=_MAX3C)
    return n.pool("mean").logits()


def _inception_v3() -> _Net:
    """Szegedy et al. 2016, 299 x 299."""
    n = _Net(299).conv(32, valid(3, 2)).conv(32, valid(3)).conv(64, 3).pool(_MAX3)
    n.conv(80, 1).conv(192, valid(3)).pool(_MAX3)
    for pooled in (32, 64, 64):
        n.pool(_AVERAGE3S1)
        n.branches([(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], [(pooled, 1)])
    n.branches([(384, valid(3, 2))], [(64, 1), (96, 3), (96, valid(3, 2))], pool=_MAX3)
    wide, high = same((1, 7)), same((7, 1))
    for narrow in (128, 160, 160, 192):
        n.pool(_AVERAGE3S1)
        twice: list[_Branch] = [(narrow, 1), (narrow, high), (narrow, wide), (narrow, high), (192, wide)]
        n.branches([(192, 1)], [(narrow, 1), (narrow, wide), (192, high)], twice, [(192, 1)])
    half = valid(3, 2)
    n.branches([(192, 1), (320, half)], [(192, 1), (192, wide), (192, high), (192, half)], pool=_MAX3)
    wide, high = same((1, 3)), same((3, 1))
    for _ in range(2):
        n.pool(_AVERAGE3S1)
        n.branches(
            [(320, 1)],
            [(384, 1), (384, wide)],
            [(384, 1), (384, high)],
            [(448, 1), (384, 3), (384, wide)],
            [(448, 1), (384, 3), (384, high)],
            [(192, 1)],
        )
    return n.pool("mean").logits()


def _squeezenet() -> _Net:
    """Iandola et al. 2016, versions 1.1 and 1.0."""
    n = _Net()
    for stem, fires in (
        ((64, valid(3, 2)), (16, 16, 0, 32, 32, 0, 48, 48, 64, 64)),
        ((96, valid(7, 2)), (16, 16, 32, 0, 32, 48, 48, 64, 0, 64)),
    ):
        n.size, n.channels = 224, 3
        n.conv(*stem).pool(_MAX3C)
        for narrow in fires:
            n = n.conv(narrow, 1).branches([(4 * narrow, 1)], [(4 * narrow, 3)]) if narrow else n.pool(_MAX3C)
        n.conv(1000, 1).pool("mean")
    n.add("rows", form="softmax", heads=1, rows=1, columns=1000)
    return n


def _mobilenet_v1() -> _Net:
    """Howard et al. 2017."""
    n = _Net(activation="clip").conv(32, 3, 2)
    for outputs, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *((512, 1),) * 5,
        (1024, 2),
        (1024, 1),
    ):
        n.depthwise(3, stride).conv(outputs, 1)
    return n.pool("mean").logits()


_Stage = tuple[int, int, int, int, int]
"""Expansion, outputs, repeats, stride of the first, kernel."""


def _inverted(n: _Net, stages: Sequence[_Stage], squeeze: bool = False) -> _Net:
    """Inverted residuals: 1x1 to more channels, depthwise, 1x1 back, residual where the shape stays."""
    for expansion, outputs, repeats, first_stride, kernel in stages:
        for block in range(repeats):
            inputs, stride = n.channels, first_stride if block == 0 else 1
            if expansion > 1:
                n.conv(inputs * expansion, 1)
            n.depthwise(kernel, stride)
            if squeeze:
                n.squeeze(max(1, inputs // 4), n.activation)
            n.conv(outputs, 1, 1, "bias,onto" if stride == 1 and inputs == outputs else "bias")
    return n


def _mobilenet_v2() -> _Net:
    """Sandler et al. 2018."""
    n = _Net(activation="clip").conv(32, 3, 2)
    _inverted(n, [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3)])
    _inverted(n, [(6, 160, 3, 2, 3), (6, 320, 1, 1, 3)])
    return n.conv(1280, 1).pool("mean").logits()


def _mnasnet() -> _Net:
    """Tan et al. 2019, B1."""
    n = _Net().conv(32, 3, 2).depthwise(3).conv(16, 1, 1, "bias")
    _inverted(n, [(3, 24, 3, 2, 3), (3, 40, 3, 2, 5), (6, 80, 3, 2, 5), (6, 96, 2, 1, 3)])
    _inverted(n, [(6, 192, 4, 2, 5), (6, 320, 1, 1, 3)])
    return n.conv(1280, 1).pool("mean").logits()


def _mobilenet_v3() -> _Net:
    """Howard et al. 2019, large."""
    n = _Net(activation="hardswish").conv(16, 3, 2)
    for kernel, hidden, outputs, squeeze, activation, stride in (
        (3, 16, 16, False, "relu", 1),
        (3, 64, 24, False, "relu", 2),
        (3, 72, 24, False, "relu", 1),
        (5, 72, 40, True, "relu", 2),
        (5, 120, 40, True, "relu", 1),
        (5, 120, 40, True, "relu", 1),
        (3, 240, 80, False, "hardswish", 2),
        (3, 200, 80, False, "hardswish", 1),
        (3, 184, 80, False, "hardswish", 1),
        (3, 184, 80, False, "hardswish", 1),
        (3, 480, 112, True, "hardswish", 1),
        (3, 672, 112, True, "hardswish", 1),
        (5, 672, 160, True, "hardswish", 2),
        (5, 960, 160, True, "hardswish", 1),
        (5, 960, 160, True, "hardswish", 1),
    ):
        inputs, epilogue = n.channels, f"bias,{activation}"
        if hidden != inputs:
            n.conv(hidden, 1, 1, epilogue)
        n.depthwise(kernel, stride, epilogue)
        if squeeze:
            n.squeeze(-(-hidden // 32) * 8, "relu", "hardsigmoid")
        n.conv(outputs, 1, 1, "bias,add" if stride == 1 and inputs == outputs else "bias")
    return n.conv(960, 1).pool("mean").dense(1, 1280, "bias,hardswish").logits()


def _efficientnet_b0() -> _Net:
    """Tan & Le 2019."""
    n = _Net(activation="silu").conv(32, 3, 2)
    stages = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5)]
    _inverted(n, [*stages, (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)], squeeze=True)
    return n.conv(1280, 1).pool("mean").logits()


def _efficientnet_b3() -> _Net:
    """Tan & Le 2019, 300 x 300."""
    n = _Net(300, activation="silu").conv(40, 3, 2)
    stages = [(1, 24, 2, 1, 3), (6, 32, 3, 2, 3), (6, 48, 3, 2, 5), (6, 96, 5, 2, 3), (6, 136, 5, 1, 5)]
    _inverted(n, [*stages, (6, 232, 6, 2, 5), (6, 384, 2, 1, 3)], squeeze=True)
    return n.conv(1536, 1).pool("mean").logits()


def _efficientnet_v2_s() -> _Net:
    """Tan & Le 2021, 300 x 300: its first stages fuse the depthwise convolution with the 1x1 before it."""
    n = _Net(300, activation="silu").conv(24, 3, 2)
    for expansion, outputs, repeats, first_stride in ((1, 24, 2, 1), (4, 48, 4, 2), (4, 64, 4, 2)):
        for block in range(repeats):
            inputs, stride = n.channels, first_stride if block == 0 else 1
            residual = "bias,add" if stride == 1 and inputs == outputs else "bias"
            if expansion == 1:
                n.conv(outputs, 3, stride, "bias,silu,add")
            else:
                n.conv(inputs * expansion, 3, stride).conv(outputs, 1, 1, residual)
    _inverted(n, [(4, 128, 6, 2, 3), (6, 160, 9, 1, 3), (6, 256, 15, 2, 3)], squeeze=True)
    return n.conv(1280, 1).pool("mean").logits()


def _shufflenet() -> _Net:
    """Zhang et al. 2018, version 1: as published with 3 groups, and with 4 groups without bottlenecks."""
    n = _Net()
    for groups, widths, bottleneck in ((4, (136, 272, 544), 1), (3, (240, 480, 960), 4)):
        n.size, n.channels = 224, 3
        n.conv(24, 3, 2).pool(_MAX3P)
        for stage, width in enumerate(widths):
            added = width - n.channels
            n.pool("average 3x3/2d1p1")
            n.size = n.size * 2
            n.conv(added if bottleneck == 1 else width // bottleneck, 1, groups=1 if stage == 0 else groups)
            n.depthwise(3, 2, "bias").conv(added, 1, 1, "bias,relu", groups)
            n.channels = width
            for _ in range((3, 7, 3)[stage]):
                n.conv(width // bottleneck, 1, groups=groups).depthwise(3, 1, "bias")
                n.conv(width, 1, 1, "bias,add,relu", groups)
        n.pool("mean").logits()
    return n


def _shufflenet_v2() -> _Net:
    """Ma et al. 2018, width 1 and 1.5."""
    n = _Net()
    for widths in ((116, 232, 464), (176, 352, 704)):
        n.size, n.channels = 224, 3
        n.conv(24, 3, 2).pool(_MAX3P)
        for width, repeats in zip(widths, (4, 8, 4), strict=True):
            half, size, inputs = width // 2, n.size, n.channels
            n.depthwise(3, 2, "bias").conv(half, 1)
            n.size, n.channels = size, inputs
            n.conv(half, 1).depthwise(3, 2, "bias").conv(half, 1)
            for _ in range(repeats - 1):
                n.conv(half, 1).depthwise(3, 1, "bias").conv(half, 1)
            n.channels = width
        n.conv(1024, 1).pool("mean").logits()
    return n


def _xception() -> _Net:
    """Chollet 2017, 299 x 299."""
    n = _Net(299).conv(32, valid(3, 2)).conv(64, valid(3))
    for width in (128, 256, 728):
        n.shortcut(width, 2)
        n.depthwise(3, 1, "").conv(width, 1).depthwise(3, 1, "").conv(width, 1, 1, "bias").pool(_MAX3P)
    for _ in range(24):
        n.depthwise(3, 1, "").conv(728, 1)
    n.shortcut(1024, 2)
    n.depthwise(3, 1, "").conv(728, 1).depthwise(3, 1, "").conv(1024, 1, 1, "bias").pool(_MAX3P)
    n.depthwise(3, 1, "").conv(1536, 1).depthwise(3, 1, "").conv(2048, 1)
    return n.pool("mean").logits()


def _convnext_tiny() -> _Net:
    """Liu et al. 2022: 7x7 depthwise convolutions, the 1x1 ones as matrix products over pixels."""
    n = _Net().conv(96, valid(4, 4), epilogue="bias")
    for stage, (width, depth) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
        if stage:
            n.norm(n.size**2, n.channels).conv(width, valid(2, 2), epilogue="bias")
        for _ in range(depth):
            n.depthwise(7, 1, "bias").elementwise("transpose").norm(n.size**2, width)
            n.dense(n.size**2, 4 * width, "bias,gelu", width).dense(n.size**2, width, "bias")
            n.elementwise("add")
    return n.pool("mean").logits()


def _darknet53() -> _Net:
    """Redmon & Farhadi 2018, 416 x 416, with the neck and heads of YOLOv3."""
    n = _Net(416, activation="leaky").conv(32, 3)
    for width, depth in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        n.conv(width, 3, 2)
        for _ in range(depth):
            n.conv(width // 2, 1).conv(width, 3, 1, "bias,leaky,add")
    for width, joined in ((512, 1024), (256, 768), (128, 384)):
        n.channels = joined
        for _ in range(3):
            n.conv(width, 1).conv(2 * width, 3)
        n.conv(255, 1, 1, "bias")
        n.channels, n.size = width, n.size * 2
    return n


def _yolov8n() -> _Net:
    """Ultralytics 2023, 640 x 640: cross-stage blocks and heads."""
    n = _Net(640, activation="silu").conv(16, 3, 2)
    for width, depth in ((32, 1), (64, 2), (128, 2), (256, 1)):
        n.conv(width, 3, 2).conv(width, 1)
        for _ in range(depth):
            n.channels = width // 2
            n.conv(width // 2, 3).conv(width // 2, 3, 1, "bias,silu,add")
        n.channels = width // 2 * (depth + 2)
        n.conv(width, 1)
    n.conv(128, 1).pool("max 5x5/1d1p2")
    for size, inputs in ((80, 64), (40, 128), (20, 256)):
        for hidden, outputs in ((64, 64), (80, 80)):
            n.size, n.channels = size, inputs
            n.conv(hidden, 3).conv(hidden, 3).conv(outputs, 1, 1, "bias")
    return n


def _ssd_vgg() -> _Net:
    """Liu et al. 2016, 300 x 300, the layers after VGG-16's."""
    n = _Net(19, 512).conv(1024, same(3, 1, 6)).conv(1024, 1)
    n.conv(256, 1).conv(512, 3, 2).conv(128, 1).conv(256, 3, 2).conv(128, 1).conv(256, valid(3))
    for size, inputs, boxes in ((38, 512, 4), (19, 1024, 6), (10, 512, 6), (5, 256, 6), (3, 256, 4)):
        for outputs in (4 * boxes, 21 * boxes):
            n.size, n.channels = size, inputs
            n.conv(outputs, 3, 1, "bias")
    return n


def _unet() -> _Net:
    """Ronneberger et al. 2015, padded, 256 x 256, half the width."""
    n = _Net(256).conv(32, 3).conv(32, 3)
    for width in (64, 128, 256, 512):
        n.pool(_MAX2).conv(width, 3).conv(width, 3)
    for width in (256, 128, 64, 32):
        n.transposed(width, LayerWindow((2, 2), 2), "bias")
        n.channels *= 2
        n.conv(width, 3).conv(width, 3)
    return n.conv(2, 1, 1, "bias")


def _deeplab_v3() -> _Net:
    """Chen et al. 2017: dilated convolutions behind a backbone, 513 x 513."""
    n = _Net(33, 2048)
    for dilation in (12, 24, 36):
        n.size, n.channels = 33, 2048
        n.conv(256, same(3, 1, dilation))
    n.channels = 1280
    n.conv(256, 1).conv(256, 3).conv(21, 1, 1, "bias")
    n.channels = 512
    return n.conv(512, same(3, 1, 2)).conv(512, same(3, 1, 4))


def _dcgan() -> _Net:
    """Radford et al. 2016: the generator's transposed convolutions and the discriminator, 64 x 64."""
    n, four = _Net(4, 512), LayerWindow((4, 4), 2, 1, (1, 1))
    for width in (256, 128, 64):
        n.transposed(width, four)
    n.transposed(3, four, "bias,tanh")
    n.activation = "leaky"
    for width in (64, 128, 256, 512):
        n.conv(width, four)
    return n


def _super_resolution() -> _Net:
    """EDSR (Lim et al. 2017), baseline, patches of 48 x 48, and SRCNN-like heads (Shi et al. 2016) at 224 x 224."""
    n = _Net(48).conv(64, 3, 1, "bias").conv(64, 3).conv(64, 3, 1, "bias,add").conv(256, 3, 1, "bias")
    n.size, n.channels = 224, 1
    return n.conv(64, 5).conv(64, 3).conv(32, 3).conv(9, 3, 1, "bias")


def _fcn_style() -> _Net:
    """Johnson et al. 2016, style transfer, 256 x 256."""
    n = _Net(256).conv(32, 9).conv(64, 3, 2).conv(128, 3, 2)
    for _ in range(5):
        n.conv(128, 3).conv(128, 3, 1, "bias,add")
    n.transposed(64, LayerWindow((4, 4), 2, 1, (1, 1))).transposed(32, LayerWindow((4, 4), 2, 1, (1, 1)))
    return n.conv(3, 9, 1, "bias,tanh")


# -- transformers and perceptrons ---------------------------------------------------------------------


def _transformer(tokens: int, width: int, heads: int, activation: str = "gelu") -> _Net:
    return _Net().encoder(tokens, width, heads, 4 * width, activation)


def _bert() -> _Net:
    """Devlin et al. 2019, in the small size of Turc et al. 2019: 512 wide."""
    n = _transformer(128, 512, 8)
    n.dense(1, 512, "bias,tanh")
    return n


def _bert_mini() -> _Net:
    """Turc et al. 2019: 256 wide, and the tiny one of 128."""
    n = _transformer(128, 256, 4)
    return n.encoder(128, 128, 2, 512)


def _bert_base() -> _Net:
    """Devlin et al. 2019; also DistilBERT and RoBERTa: 768 wide."""
    n = _transformer(128, 768, 12)
    n.encoder(384, 768, 12, 3072)
    return n.dense(1, 768, "bias,tanh", 768).dense(384, 2, "bias", 768)


def _bert_large() -> _Net:
    """Devlin et al. 2019: 1024 wide."""
    return _transformer(128, 1024, 16).encoder(384, 1024, 16, 4096)


def _albert() -> _Net:
    """Lan et al. 2020: embeddings of 128, layers 2048 wide."""
    return _Net().dense(128, 2048, "bias", 128).encoder(128, 2048, 16, 8192)


def _mobilebert() -> _Net:
    """Sun et al. 2020: bottlenecks of 128 in layers 512 wide."""
    n = _Net().dense(128, 128, "bias", 512).encoder(128, 128, 4, 512, "relu")
    return n.dense(128, 512, "bias,add", 128)


def _gpt2() -> _Net:
    """Radford et al. 2019: one product for query, key and value; a token at a time with its past, too."""
    n = _Net()
    for tokens, past in ((64, 64), (256, 256), (1, 128)):
        n.dense(tokens, 2304, "bias", 768).attention(tokens, past, 12, 64)
        n.dense(tokens, 768, "bias,add", 768).norm(tokens, 768)
        n.dense(tokens, 3072, "bias,gelu").dense(tokens, 768, "bias,add")
    return n


def _gpt2_medium() -> _Net:
    """Radford et al. 2019: 1024 wide."""
    return _Net().dense(128, 3072, "bias", 1024).encoder(128, 1024, 16, 4096)


def _t5_small() -> _Net:
    """Raffel et al. 2020: no biases, 8 heads of 64."""
    n = _Net()
    for tokens in (64, 512):
        n.dense(tokens, 512, "", 512).attention(tokens, tokens, 8, 64)
        n.dense(tokens, 512, "add", 512).dense(tokens, 2048, "relu").dense(tokens, 512, "add")
    return n


def _llama_like() -> _Net:
    """Touvron et al. 2023, in TinyLlama's size: gated feed-forward parts without biases."""
    n = _Net()
    for tokens, past in ((128, 128), (1, 256)):
        n.dense(tokens, 2048, "", 2048).dense(tokens, 256, "", 2048).attention(tokens, past, 32, 64)
        n.dense(tokens, 2048, "add", 2048).dense(tokens, 5632, "silu").dense(tokens, 2048, "add")
    return n


def _whisper_tiny() -> _Net:
    """Radford et al. 2023: 1500 frames, 384 wide."""
    n = _Net().dense(1500, 384, "bias", 384).attention(1500, 1500, 6, 64).dense(1500, 384, "bias,add", 384)
    n.norm(1500, 384).dense(1500, 1536, "bias,gelu").dense(1500, 384, "bias,add")
    return n.attention(1, 1500, 6, 64).dense(1, 384, "bias", 384).dense(1, 1536, "bias,gelu", 384)


def _vit(size: int, patch: int, width: int, heads: int) -> _Net:
    n = _Net(size).conv(width, valid(patch, patch), epilogue="bias")
    n.elementwise("transpose")
    tokens = n.size**2 + 1
    return n.norm(tokens, width).encoder(tokens, width, heads, 4 * width).logits()


def _vit_b_16() -> _Net:
    """Dosovitskiy et al. 2021; also DeiT-B."""
    return _vit(224, 16, 768, 12)


def _vit_b_32() -> _Net:
    """Dosovitskiy et al. 2021."""
    return _vit(224, 32, 768, 12)


def _vit_s_16() -> _Net:
    """Touvron et al. 2021 (DeiT-S)."""
    return _vit(224, 16, 384, 6)


def _vit_ti_16() -> _Net:
    """Touvron et al. 2021 (DeiT-Ti)."""
    return _vit(224, 16, 192, 3)


def _vit_l_16() -> _Net:
    """Dosovitskiy et al. 2021."""
    return _vit(224, 16, 1024, 16)


def _clip_b_32() -> _Net:
    """Radford et al. 2021: the text side, 77 tokens, 512 wide."""
    return _transformer(77, 512, 8, "silu").dense(1, 512, "", 512)


def _swin_t() -> _Net:
    """Liu et al. 2021: windows of 7 x 7 tokens, each with attention of its own."""
    n = _Net().conv(96, valid(4, 4), epilogue="bias")
    for size, width, heads in ((56, 96, 3), (28, 192, 6), (14, 384, 12), (7, 768, 24)):
        tokens, windows = size**2, (size // 7) ** 2
        n.norm(tokens, width).dense(tokens, 3 * width, "bias", width).attention(49, 49, heads * windows, 32)
        n.dense(tokens, width, "bias,add", width).dense(tokens, 4 * width, "bias,gelu").dense(tokens, width, "bias,add")
        if size > 7:
            n.dense(tokens // 4, 2 * width, "", 4 * width)
    return n.logits()


def _mlp_mixer() -> _Net:
    """Tolstikhin et al. 2021, S/16: products along tokens and along channels."""
    n = _Net().conv(512, valid(16, 16), epilogue="bias").norm(196, 512)
    n.dense(512, 256, "bias,gelu", 196).dense(512, 196, "bias")
    n.dense(196, 2048, "bias,gelu", 512).dense(196, 512, "bias,add")
    return n.logits()


def _recommendation() -> _Net:
    """Naumov et al. 2019 and Cheng et al. 2016: perceptrons over small batches."""
    n = _Net()
    for rows in (1, 16, 64, 128):
        for inputs, outputs in ((13, 512), (512, 256), (256, 64), (479, 1024), (1024, 1024), (1024, 512), (256, 1)):
            n.dense(rows, outputs, "bias,relu" if outputs > 1 else "bias,sigmoid", inputs)
    return n


_NETWORKS: tuple[Callable[[], _Net], ...] = (
    _bvlc_alexnet,
    _alexnet,
    _zfnet512,
    _vgg19,
    _resnet18,
    _resnet50,
    _wide_resnet50,
    _resnext50,
    _regnet_x_400mf,
    _regnet_y_1_6gf,
    _densenet121,
    _densenet161,
    _inception_v1,
    _inception_v2,
    _inception_v3,
    _squeezenet,
    _mobilenet_v1,
    _mobilenet_v2,
    _mobilenet_v3,
    _mnasnet,
    _efficientnet_b0,
    _efficientnet_b3,
    _efficientnet_v2_s,
    _shufflenet,
    _shufflenet_v2,
    _xception,
    _convnext_tiny,
    _darknet53,
    _yolov8n,
    _ssd_vgg,
    _unet,
    _deeplab_v3,
    _dcgan,
    _super_resolution,
    _fcn_style,
    _bert,
    _bert_mini,
    _bert_base,
    _bert_large,
    _albert,
    _mobilebert,
    _gpt2,
    _gpt2_medium,
    _t5_small,
    _llama_like,
    _whisper_tiny,
    _vit_b_16,
    _vit_b_32,
    _vit_s_16,
    _vit_ti_16,
    _vit_l_16,
    _clip_b_32,
    _swin_t,
    _mlp_mixer,
    _recommendation,
)


@functools.cache
def networks() -> Mapping[str, Mapping[Layer, int]]:
    """Name -> the distinct layers of the network, with how often it has them."""
    return MappingProxyType({write.__name__.removeprefix("_"): MappingProxyType(write().layers) for write in _NETWORKS})
