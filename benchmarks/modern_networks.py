"""A MiniLM encoder, ConvNeXt-T, EfficientNet-B0, YOLOv8n and Whisper's tiny encoder as ONNX graphs.

Written node by node like `benchmarks.networks`, with seeded weights and the names of torchvision's, transformers' and
ultralytics' state dictionaries. SiLU is x * Sigmoid(x), as exports have it; layer scales are those of a trained
network's size, so that no branch vanishes beside its residual.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks import networks
from benchmarks.networks import Graph

CONVNEXT_T = ((96, 3), (192, 3), (384, 9), (768, 3))
"""Its stages: channels, blocks."""
EFFICIENTNET_B0 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
"""Its stages: expansion, kernel, output channels, repeats, stride of the first."""
YOLO_CLASSES, YOLO_BINS = 80, 16
"""Classes of the detector, and bins of the distribution of each side of a box."""


def minilm() -> onnx.ModelProto:
    """A MiniLM sentence encoder: 6 layers, 384 wide, 12 heads, 128 tokens."""
    return networks.bert(layers=6, width=384, heads=12, name="minilm")


def convnext_tiny(size: int = 224) -> onnx.ModelProto:
    """ConvNeXt-T (torchvision's layout and names): 7 x 7 depthwise convolutions, LayerNorm over channels, GELU."""
    g = Graph("convnext_tiny")

    def norm(x: str, name: str, channels: int) -> str:
        """LayerNorm over the channels of an image."""
        rows = g.layer_norm(g.op("Transpose", x, perm=[0, 2, 3, 1]), name, channels, 1e-6)
        return g.op("Transpose", rows, perm=[0, 3, 1, 2])

    x = norm(g.conv("input", "features.0.0", (3, 96), 4, stride=4, bias=True), "features.0.1", 96)
    inside = 96
    for stage, (width, blocks) in enumerate(CONVNEXT_T):
        if stage:
            x = norm(x, f"features.{2 * stage}.0", inside)
            x = g.conv(x, f"features.{2 * stage}.1", (inside, width), 2, stride=2, bias=True)
        for index in range(blocks):
            name = f"features.{2 * stage + 1}.{index}"
            y = g.conv(x, f"{name}.block.0", (width, width), 7, groups=width, bias=True)
            y = g.layer_norm(g.op("Transpose", y, perm=[0, 2, 3, 1]), f"{name}.block.2", width, 1e-6)
            y = g.linear(g.gelu(g.linear(y, f"{name}.block.3", width, 4 * width)), f"{name}.block.5", 4 * width, width)
            y = g.op("Transpose", y, perm=[0, 3, 1, 2])
            x = g.op("Add", g.op("Mul", g.normal(f"{name}.layer_scale", (width, 1, 1), 0.3), y), x)
        inside = width
    x = g.op("Flatten", norm(g.op("GlobalAveragePool", x), "classifier.0", inside), axis=1)
    weight = g.normal("classifier.2.weight", (1000, inside), inside**-0.5)
    g.op("Gemm", x, weight, g.normal("classifier.2.bias", (1000,), 0.1), transB=1)
    return g.model(("input", TensorProto.FLOAT, [1, 3, size, size]), ("logits", [1, 1000]))


def efficientnet_b0(size: int = 224) -> onnx.ModelProto:
    """EfficientNet-B0 (torchvision's layout and names): depthwise convolutions, squeeze and excitation, SiLU."""
    g = Graph("efficientnet_b0")

    def unit(x: str, name: str, channels: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1) -> str:
        x = g.conv(x, f"{name}.0", channels, kernel, stride=stride, groups=groups)
        return g.batch_norm(x, f"{name}.1", channels[1])

    def excite(x: str, name: str, channels: int, squeezed: int) -> str:
        y = g.conv(g.op("GlobalAveragePool", x), f"{name}.fc1", (channels, squeezed), 1, bias=True)
        y = g.conv(g.silu(y), f"{name}.fc2", (squeezed, channels), 1, bias=True)
        return g.op("Mul", g.op("Sigmoid", y), x)

    x = g.silu(unit("input", "features.0", (3, 32), 3, stride=2))
    inside = 32
    for stage, (expansion, kernel, outside, repeats, first_stride) in enumerate(EFFICIENTNET_B0, start=1):
        for index in range(repeats):
            name, hidden, y, part = f"features.{stage}.{index}.block", inside * expansion, x, 0
            stride = first_stride if index == 0 else 1
            if expansion != 1:
                y, part = g.silu(unit(y, f"{name}.0", (inside, hidden), 1)), 1
            y = g.silu(unit(y, f"{name}.{part}", (hidden, hidden), kernel, stride=stride, groups=hidden))
            y = excite(y, f"{name}.{part + 1}", hidden, max(1, inside // 4))
            y = unit(y, f"{name}.{part + 2}", (hidden, outside), 1)
            x = g.op("Add", y, x) if stride == 1 and inside == outside else y
            inside = outside
    g.classifier(g.silu(unit(x, "features.8", (320, 1280), 1)), "classifier.1", 1280)
    return g.model(("input", TensorProto.FLOAT, [1, 3, size, size]), ("logits", [1, 1000]))


class _Yolo(Graph):
    """The blocks of YOLOv8."""

    def unit(self, x: str, name: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> str:
        """Convolution, batch normalisation, SiLU."""
        x = self.conv(x, f"{name}.conv", channels, kernel, stride=stride)
        return self.silu(self.batch_norm(x, f"{name}.bn", channels[1]))

    def c2f(self, x: str, name: str, channels: tuple[int, int], blocks: int, residual: bool = True) -> str:
        """Two halves; one goes through the blocks, and every block's result is kept for the last convolution."""
        inside, outside = channels
        half = outside // 2
        parts = self.split(self.unit(x, f"{name}.cv1", (inside, outside), 1), [half, half], axis=1)
        for index in range(blocks):
            y = self.unit(parts[-1], f"{name}.m.{index}.cv1", (half, half), 3)
            y = self.unit(y, f"{name}.m.{index}.cv2", (half, half), 3)
            parts.append(self.op("Add", parts[-1], y) if residual else y)
        return self.unit(self.op("Concat", *parts, axis=1), f"{name}.cv2", ((2 + blocks) * half, outside), 1)

    def sppf(self, x: str, name: str, channels: int) -> str:
        """Three poolings in a chain, all of them kept."""
        parts = [self.unit(x, f"{name}.cv1", (channels, channels // 2), 1)]
        for _ in range(3):
            parts.append(self.op("MaxPool", parts[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
        return self.unit(self.op("Concat", *parts, axis=1), f"{name}.cv2", (2 * channels, channels), 1)

    def twice_as_large(self, x: str) -> str:
        return self.op(
            "Resize",
            x,
            "",
            self.constant([1, 1, 2, 2]),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def head(self, x: str, name: str, inside: int, hidden: int, outside: int) -> str:
        """Two units and a convolution with a bias: what a detector says of each cell of a grid.

        Its weights are small, so that no sigmoid saturates.
        """
        x = self.unit(self.unit(x, f"{name}.0", (inside, hidden), 3), f"{name}.1", (hidden, hidden), 3)
        weight = self.normal(f"{name}.2.weight", (outside, hidden, 1, 1), 0.2 * (2 / hidden) ** 0.5)
        bias = self.normal(f"{name}.2.bias", (outside,), 0.1)
        return self.op("Conv", x, weight, bias, kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4, dilations=[1, 1])

    def boxes(self, distances: str, sides: list[int], size: int) -> str:
        """Centre, width and height of boxes in pixels, from distributions of the distances to their four sides."""
        cells = sum(side * side for side in sides)
        bins = self.op("Reshape", distances, self.constant([1, 4, YOLO_BINS, cells], "int64"))
        shares = self.op("Softmax", self.op("Transpose", bins, perm=[0, 2, 1, 3]), axis=1)
        ramp = self.tensor("model.22.dfl.conv.weight", np.arange(YOLO_BINS, dtype=np.float32).reshape(1, -1, 1, 1))
        means = self.op("Reshape", self.op("Conv", shares, ramp), self.constant([1, 4, cells], "int64"))
        near, far = self.split(means, [2, 2], axis=1)
        grids = [np.stack(np.meshgrid(*[np.arange(side) + 0.5] * 2)).reshape(2, -1) for side in sides]
        centres = self.constant(np.concatenate(grids, axis=1)[None])
        low, high = self.op("Sub", centres, near), self.op("Add", centres, far)
        middle = self.op("Div", self.op("Add", low, high), self.constant(2.0))
        boxes = self.op("Concat", middle, self.op("Sub", high, low), axis=1)
        strides = np.concatenate([np.full(side * side, size / side) for side in sides])
        return self.op("Mul", boxes, self.constant(strides[None, None]))


def yolov8n(size: int = 320) -> onnx.ModelProto:
    """YOLOv8n (ultralytics' layout and names), its boxes decoded; boxes and scores are outputs of their own."""
    g = _Yolo("yolov8n")
    x = g.unit(g.unit("images", "model.0", (3, 16), 3, 2), "model.1", (16, 32), 3, 2)
    x = g.unit(g.c2f(x, "model.2", (32, 32), 1), "model.3", (32, 64), 3, 2)
    eighth = g.c2f(x, "model.4", (64, 64), 2)
    sixteenth = g.c2f(g.unit(eighth, "model.5", (64, 128), 3, 2), "model.6", (128, 128), 2)
    x = g.c2f(g.unit(sixteenth, "model.7", (128, 256), 3, 2), "model.8", (256, 256), 1)
    deep = g.sppf(x, "model.9", 256)
    x = g.op("Concat", g.twice_as_large(deep), sixteenth, axis=1)
    middle = g.c2f(x, "model.12", (384, 128), 1, residual=False)
    x = g.op("Concat", g.twice_as_large(middle), eighth, axis=1)
    fine = g.c2f(x, "model.15", (192, 64), 1, residual=False)
    x = g.op("Concat", g.unit(fine, "model.16", (64, 64), 3, 2), middle, axis=1)
    middle = g.c2f(x, "model.18", (192, 128), 1, residual=False)
    x = g.op("Concat", g.unit(middle, "model.19", (128, 128), 3, 2), deep, axis=1)
    coarse = g.c2f(x, "model.21", (384, 256), 1, residual=False)
    found, sides = [], [size // 8, size // 16, size // 32]
    for index, (level, channels) in enumerate(((fine, 64), (middle, 128), (coarse, 256))):
        distances = g.head(level, f"model.22.cv2.{index}", channels, 64, 4 * YOLO_BINS)
        scores = g.head(level, f"model.22.cv3.{index}", channels, 80, YOLO_CLASSES)
        both = g.op("Concat", distances, scores, axis=1)
        found.append(g.op("Reshape", both, g.constant([1, 4 * YOLO_BINS + YOLO_CLASSES, -1], "int64")))
    distances, scores = g.split(g.op("Concat", *found, axis=2), [4 * YOLO_BINS, YOLO_CLASSES], axis=1)
    boxes, scores = g.boxes(distances, sides, size), g.op("Sigmoid", scores)
    cells = sum(side * side for side in sides)
    g.rename(boxes, "boxes")
    return g.model(
        ("images", TensorProto.FLOAT, [1, 3, size, size]),
        ("scores", [1, YOLO_CLASSES, cells]),
        ("boxes", [1, 4, cells]),
    )


def whisper_encoder(layers: int = 4, width: int = 384, heads: int = 6, frames: int = 1000) -> onnx.ModelProto:
    """Whisper's tiny encoder (transformers' layout and names) on 10 s of sound: 500 tokens after its convolutions."""
    g = Graph("whisper_encoder")

    def conv(x: str, name: str, inside: int, stride: int) -> str:
        weight = g.normal(f"{name}.weight", (width, inside, 3), (2 / (3 * inside)) ** 0.5)
        bias = g.normal(f"{name}.bias", (width,), 0.1)
        return g.gelu(g.op("Conv", x, weight, bias, kernel_shape=[3], strides=[stride], pads=[1, 1]))

    tokens = frames // 2
    x = conv(conv("input_features", "conv1", 80, 1), "conv2", width, 2)
    x = g.op("Transpose", x, perm=[0, 2, 1])
    x = g.op("Add", x, g.normal("embed_positions.weight", (tokens, width), 0.5))
    for index in range(layers):
        name = f"layers.{index}"
        y = g.layer_norm(x, f"{name}.self_attn_layer_norm", width, 1e-5)
        y = g.attention(y, f"{name}.self_attn", f"{name}.self_attn.out_proj", tokens, width, heads)
        x = g.op("Add", x, y)
        y = g.layer_norm(x, f"{name}.final_layer_norm", width, 1e-5)
        y = g.linear(g.gelu(g.linear(y, f"{name}.fc1", width, 4 * width)), f"{name}.fc2", 4 * width, width)
        x = g.op("Add", x, y)
    g.layer_norm(x, "layer_norm", width, 1e-5)
    return g.model(("input_features", TensorProto.FLOAT, [1, 80, frames]), ("last_hidden_state", [1, tokens, width]))
