"""ResNet-18, MobileNetV2, a BERT encoder and ViT-B/16 as ONNX graphs, written node by node.

The nodes are the ones `torch.onnx.export` produces for the torchvision and transformers modules (opset 17: attention
decomposed, GELU as Erf), except that BatchNormalization stays a node of its own, as in training-mode exports, so that
an importer has to fold it. Weights are seeded: He for convolutions, unit gain for matrix products. Initialisers carry
the names of the modules' state dictionaries; matrices of linear layers are stored (in, out), as MatMul wants them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calumma.core.rng import generator

OPSET = 17
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Its blocks: expansion, output channels, repeats, stride of the first."""


class Graph:
    """A graph under construction; every method adds nodes and returns the name of their result."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self._rng = generator(seed, name)
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """One node with one output."""
        output = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def tensor(self, name: str, array: np.ndarray) -> str:
        """An initialiser."""
        self._tensors.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, values: object, dtype: str = "float32") -> str:
        """An initialiser that nobody needs to know by name."""
        return self.tensor(f"constant_{len(self._tensors)}", np.array(values, dtype))

    def normal(self, name: str, shape: Sequence[int], scale: float) -> str:
        """An initialiser drawn from a normal distribution."""
        return self.tensor(name, (self._rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(
        self,
        x: str,
        name: str,
        channels: tuple[int, int],
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> str:
        """A square convolution, padded to keep the size at stride 1 if the kernel is odd, unpadded if it is even."""
        inside, outside = channels
        shape = (outside, inside // groups, kernel, kernel)
        parameters = [self.normal(f"{name}.weight", shape, (2 / (shape[1] * kernel * kernel)) ** 0.5)]
        if bias:
            parameters.append(self.normal(f"{name}.bias", (outside,), 0.1))
        padding = kernel // 2 if kernel % 2 else 0
        return self.op(
            "Conv",
            x,
            *parameters,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[padding] * 4,
            dilations=[1, 1],
            group=groups,
        )

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        """Batch normalisation in inference form; its statistics are neutral until the suite calibrates them."""
        weight = self.tensor(f"{name}.weight", self._rng.uniform(0.8, 1.2, channels).astype(np.float32))
        bias = self.normal(f"{name}.bias", (channels,), 0.2)
        mean = self.tensor(f"{name}.running_mean", np.zeros(channels, np.float32))
        variance = self.tensor(f"{name}.running_var", np.ones(channels, np.float32))
        return self.op("BatchNormalization", x, weight, bias, mean, variance, epsilon=1e-5)

    def linear(self, x: str, name: str, inside: int, outside: int) -> str:
        """Matrix product with a constant (in, out), and a bias."""
        weight = self.normal(f"{name}.weight", (inside, outside), inside**-0.5)
        return self.op("Add", self.normal(f"{name}.bias", (outside,), 0.1), self.op("MatMul", x, weight))

    def classifier(self, x: str, name: str, inside: int, classes: int = 1000) -> str:
        """Global average pooling and a Gemm."""
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        weight = self.normal(f"{name}.weight", (classes, inside), inside**-0.5)
        return self.op("Gemm", pooled, weight, self.normal(f"{name}.bias", (classes,), 0.1), transB=1)

    def layer_norm(self, x: str, name: str, width: int, epsilon: float) -> str:
        weight = self.tensor(f"{name}.weight", self._rng.uniform(0.8, 1.2, width).astype(np.float32))
        return self.op(
            "LayerNormalization", x, weight, self.normal(f"{name}.bias", (width,), 0.1), axis=-1, epsilon=epsilon
        )

    def silu(self, x: str) -> str:
        """x / (1 + exp -x)."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Parts of a tensor."""
        first = self.op("Split", x, self.constant(sizes, "int64"), axis=axis)
        more = [f"{first}_{index}" for index in range(1, len(sizes))]
        self._nodes[-1].output.extend(more)
        return [first, *more]

    def rename(self, tensor: str, name: str) -> None:
        """Give a node's result another name; nothing may have read it."""
        node = next(node for node in self._nodes if tensor in node.output)
        node.output[list(node.output).index(tensor)] = name

    def gelu(self, x: str) -> str:
        """0.5 x (1 + erf(x / sqrt 2))."""
        erf = self.op("Erf", self.op("Div", x, self.constant(2**0.5)))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.constant(1.0))), self.constant(0.5))

    def attention(self, x: str, name: str, output: str, tokens: int, width: int, heads: int) -> str:
        """Self-attention with the projection after it; `name` and `output` are the modules of q, k, v and of that."""
        size = width // heads
        split = self.constant([1, tokens, heads, size], "int64")
        query, key, value = (
            self.op("Transpose", self.op("Reshape", self.linear(x, f"{name}.{part}", width, width), split), perm=perm)
            for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        scores = self.op("Div", self.op("MatMul", query, key), self.constant(size**0.5))
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        merged = self.op(
            "Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), self.constant([1, tokens, width], "int64")
        )
        return self.linear(merged, output, width, width)

    def model(
        self,
        source: tuple[str, int, Sequence[int]],
        result: tuple[str, Sequence[int]],
        *more: tuple[str, Sequence[int]],
    ) -> onnx.ModelProto:
        """Finish.

        Args:
            source: the input's name, element type and shape.
            result: name for the last node's result, and its shape.
            more: further outputs: the name that a result has, and its shape.
        """
        self._nodes[-1].output[0] = result[0]
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [helper.make_tensor_value_info(*source)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (result, *more)],
            self._tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def resnet18() -> onnx.ModelProto:
    """ResNet-18, 224 x 224 (torchvision's layout and names)."""
    g = Graph("resnet18")
    x = g.op("Relu", g.batch_norm(g.conv("input", "conv1", (3, 64), 7, stride=2), "bn1", 64))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inside = 64
    for stage, outside in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = g.batch_norm(g.conv(x, f"{name}.conv1", (inside, outside), 3, stride=stride), f"{name}.bn1", outside)
            y = g.batch_norm(g.conv(g.op("Relu", y), f"{name}.conv2", (outside, outside), 3), f"{name}.bn2", outside)
            if stride != 1:
                x = g.conv(x, f"{name}.downsample.0", (inside, outside), 1, stride=stride)
                x = g.batch_norm(x, f"{name}.downsample.1", outside)
            x = g.op("Relu", g.op("Add", y, x))
            inside = outside
    g.classifier(x, "fc", 512)
    return g.model(("input", TensorProto.FLOAT, [1, 3, 224, 224]), ("logits", [1, 1000]))


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 of width 1, 224 x 224 (torchvision's layout and names)."""
    g = Graph("mobilenet_v2")

    def unit(x: str, name: str, channels: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1) -> str:
        x = g.batch_norm(
            g.conv(x, f"{name}.0", channels, kernel, stride=stride, groups=groups), f"{name}.1", channels[1]
        )
        return g.op("Clip", x, g.constant(0.0), g.constant(6.0))

    x = unit("input", "features.0", (3, 32), 3, stride=2)
    inside, index = 32, 1
    for expansion, outside, repeats, first_stride in MOBILENET_V2:
        for repeat in range(repeats):
            name, hidden, y, part = f"features.{index}.conv", inside * expansion, x, 0
            stride = first_stride if repeat == 0 else 1
            if expansion != 1:
                y, part = unit(y, f"{name}.0", (inside, hidden), 1), 1
            y = unit(y, f"{name}.{part}", (hidden, hidden), 3, stride=stride, groups=hidden)
            y = g.batch_norm(g.conv(y, f"{name}.{part + 1}", (hidden, outside), 1), f"{name}.{part + 2}", outside)
            x = g.op("Add", x, y) if stride == 1 and inside == outside else y
            inside, index = outside, index + 1
    x = unit(x, "features.18", (320, 1280), 1)
    g.classifier(x, "classifier.1", 1280)
    return g.model(("input", TensorProto.FLOAT, [1, 3, 224, 224]), ("logits", [1, 1000]))


def bert(
    layers: int = 4, width: int = 512, heads: int = 8, tokens: int = 128, vocabulary: int = 30522, name: str = "bert"
) -> onnx.ModelProto:
    """A BERT encoder from token ids to hidden states, one sentence, no padding (the mask is folded away)."""
    g = Graph(name)
    words = g.op("Gather", g.normal("embeddings.word_embeddings.weight", (vocabulary, width), 1.0), "input_ids")
    position = g.normal("embeddings.position_embeddings.weight", (1, tokens, width), 0.5)
    x = g.layer_norm(g.op("Add", words, position), "embeddings.LayerNorm", width, 1e-12)
    for index in range(layers):
        layer = f"encoder.layer.{index}"
        attended = g.attention(x, f"{layer}.attention.self", f"{layer}.attention.output.dense", tokens, width, heads)
        x = g.layer_norm(g.op("Add", attended, x), f"{layer}.attention.output.LayerNorm", width, 1e-12)
        hidden = g.gelu(g.linear(x, f"{layer}.intermediate.dense", width, 4 * width))
        y = g.linear(hidden, f"{layer}.output.dense", 4 * width, width)
        x = g.layer_norm(g.op("Add", y, x), f"{layer}.output.LayerNorm", width, 1e-12)
    return g.model(("input_ids", TensorProto.INT64, [1, tokens]), ("last_hidden_state", [1, tokens, width]))


def vit_b_16(layers: int = 12, width: int = 768, heads: int = 12, patch: int = 16, size: int = 224) -> onnx.ModelProto:
    """A vision transformer; by default ViT-B/16 with 197 tokens (transformers' layout and names)."""
    g = Graph("vit_b_16")
    patches = (size // patch) ** 2
    tokens = patches + 1
    x = g.conv("pixel_values", "embeddings.patch_embeddings.projection", (3, width), patch, stride=patch, bias=True)
    x = g.op("Transpose", g.op("Reshape", x, g.constant([1, width, patches], "int64")), perm=[0, 2, 1])
    x = g.op("Concat", g.normal("embeddings.cls_token", (1, 1, width), 1.0), x, axis=1)
    x = g.op("Add", x, g.normal("embeddings.position_embeddings", (1, tokens, width), 0.2))
    for index in range(layers):
        name = f"encoder.layer.{index}"
        y = g.layer_norm(x, f"{name}.layernorm_before", width, 1e-12)
        y = g.attention(y, f"{name}.attention.attention", f"{name}.attention.output.dense", tokens, width, heads)
        x = g.op("Add", y, x)
        y = g.layer_norm(x, f"{name}.layernorm_after", width, 1e-12)
        y = g.gelu(g.linear(y, f"{name}.intermediate.dense", width, 4 * width))
        x = g.op("Add", g.linear(y, f"{name}.output.dense", 4 * width, width), x)
    first = g.op("Gather", g.layer_norm(x, "layernorm", width, 1e-12), g.constant(0, "int64"), axis=1)
    weight = g.normal("classifier.weight", (1000, width), width**-0.5)
    g.op("Gemm", first, weight, g.normal("classifier.bias", (1000,), 0.1), transB=1)
    return g.model(("pixel_values", TensorProto.FLOAT, [1, 3, size, size]), ("logits", [1, 1000]))
