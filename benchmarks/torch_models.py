"""The written models of the suite as torch modules with the same weights, for torch's own runtimes.

A function per model, named like it, returns the module; weights come from the suite's ONNX file by the names of the
state dictionary. Attention is torch's fused one, as in torchvision and transformers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import modern_torch_models


def resnet18() -> nn.Module:
    """ResNet-18 with the weights of `networks.resnet18`."""
    return _load("resnet18")


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 with the weights of `networks.mobilenet_v2`."""
    return _load("mobilenet_v2")


def bert() -> nn.Module:
    """The BERT encoder with the weights of `networks.bert`."""
    return _load("bert")


def vit_b_16() -> nn.Module:
    """ViT-B/16 with the weights of `networks.vit_b_16`."""
    return _load("vit_b_16")


def minilm() -> nn.Module:
    """The MiniLM encoder with the weights of `modern_networks.minilm`."""
    return _load("minilm")


def convnext_tiny() -> nn.Module:
    """ConvNeXt-T with the weights of `modern_networks.convnext_tiny`."""
    return _load("convnext_tiny")


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 with the weights of `modern_networks.efficientnet_b0`."""
    return _load("efficientnet_b0")


def yolov8n() -> nn.Module:
    """YOLOv8n with the weights of `modern_networks.yolov8n`."""
    return _load("yolov8n")


def whisper_encoder() -> nn.Module:
    """Whisper's tiny encoder with the weights of `modern_networks.whisper_encoder`."""
    return _load("whisper_encoder")


def skeleton(name: str) -> nn.Module:
    """A model whose weights have shapes and no memory; `load_state_dict(..., assign=True)` gives them some."""
    with torch.device("meta"):
        return _ARCHITECTURES[name]().eval()


def _load(name: str) -> nn.Module:
    # A process that brings its own weights is spared these imports.
    import onnx
    from onnx import numpy_helper

    from benchmarks import suite

    module = _ARCHITECTURES[name]()
    graph = onnx.load(suite.path(name)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:  # stored (in, out), torch wants (out, in)
            arrays[node.input[1]] = arrays[node.input[1]].T
    state = {
        key: torch.tensor(arrays[key].reshape(value.shape))
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    missing, _ = module.load_state_dict(state, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return module.eval()


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (self.downsample(x) if self.downsample is not None else x))


class _ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Residual(64, 64, 1), _Residual(64, 64, 1))
        self.layer2 = nn.Sequential(_Residual(64, 128, 2), _Residual(128, 128, 1))
        self.layer3 = nn.Sequential(_Residual(128, 256, 2), _Residual(256, 256, 1))
        self.layer4 = nn.Sequential(_Residual(256, 512, 2), _Residual(512, 512, 1))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def _unit(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU6())


class _InvertedResidual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inside * expansion
        self.residual = stride == 1 and inside == outside
        self.conv = nn.Sequential(
            *([_unit(inside, hidden, 1)] if expansion != 1 else []),
            _unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class _MobileNetV2(nn.Module):
    def __init__(self) -> None:
        from benchmarks import networks

        super().__init__()
        features: list[nn.Module] = [_unit(3, 32, 3, stride=2)]
        inside = 32
        for expansion, outside, repeats, first_stride in networks.MOBILENET_V2:
            for repeat in range(repeats):
                features.append(_InvertedResidual(inside, outside, 1 if repeat else first_stride, expansion))
                inside = outside
        self.features = nn.Sequential(*features, _unit(inside, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class _Projections(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))


def _attend(projections: nn.Module, x: Tensor, heads: int) -> Tensor:
    batch, tokens, width = x.shape
    split = (
        projection(x).view(batch, tokens, heads, width // heads).transpose(1, 2)
        for projection in (projections.query, projections.key, projections.value)
    )
    context = functional.scaled_dot_product_attention(*split)
    return context.transpose(1, 2).reshape(batch, tokens, width)


def _named(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


class _BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = _named(
            self=_Projections(width),
            output=_named(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, 1e-12)),
        )
        self.intermediate = _named(dense=nn.Linear(width, 4 * width))
        self.output = _named(dense=nn.Linear(4 * width, width), LayerNorm=nn.LayerNorm(width, 1e-12))

    def forward(self, x: Tensor) -> Tensor:
        output = self.attention["output"]
        x = output["LayerNorm"](output["dense"](_attend(self.attention["self"], x, self.heads)) + x)
        y = self.output["dense"](functional.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](y + x)


class _Bert(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, tokens: int, vocabulary: int) -> None:
        super().__init__()
        self.embeddings = _named(
            word_embeddings=nn.Embedding(vocabulary, width),
            position_embeddings=nn.Embedding(tokens, width),
            LayerNorm=nn.LayerNorm(width, 1e-12),
        )
        self.encoder = _named(layer=nn.ModuleList(_BertLayer(width, heads) for _ in range(layers)))

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.embeddings["position_embeddings"].weight
        x = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](ids) + positions)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return x


class _VisionLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layernorm_before = nn.LayerNorm(width, 1e-12)
        self.attention = _named(attention=_Projections(width), output=_named(dense=nn.Linear(width, width)))
        self.layernorm_after = nn.LayerNorm(width, 1e-12)
        self.intermediate = _named(dense=nn.Linear(width, 4 * width))
        self.output = _named(dense=nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        attended = _attend(self.attention["attention"], self.layernorm_before(x), self.heads)
        x = self.attention["output"]["dense"](attended) + x
        return self.output["dense"](functional.gelu(self.intermediate["dense"](self.layernorm_after(x)))) + x


class _Patches(nn.Module):
    def __init__(self, width: int, patch: int, size: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.patch_embeddings = _named(projection=nn.Conv2d(3, width, patch, patch))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embeddings["projection"](pixels).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.position_embeddings


class _VisionTransformer(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, patch: int, size: int) -> None:
        super().__init__()
        self.embeddings = _Patches(width, patch, size)
        self.encoder = _named(layer=nn.ModuleList(_VisionLayer(width, heads) for _ in range(layers)))
        self.layernorm = nn.LayerNorm(width, 1e-12)
        self.classifier = nn.Linear(width, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return self.classifier(self.layernorm(x)[:, 0])


_ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": _ResNet18,
    "mobilenet_v2": _MobileNetV2,
    "bert": lambda: _Bert(layers=4, width=512, heads=8, tokens=128, vocabulary=30522),
    "vit_b_16": lambda: _VisionTransformer(layers=12, width=768, heads=12, patch=16, size=224),
    "minilm": lambda: _Bert(layers=6, width=384, heads=12, tokens=128, vocabulary=30522),
    "convnext_tiny": modern_torch_models.ConvNextTiny,
    "efficientnet_b0": modern_torch_models.EfficientNetB0,
    "yolov8n": modern_torch_models.YoloV8n,
    "whisper_encoder": modern_torch_models.WhisperEncoder,
}
