"""ConvNeXt-T, EfficientNet-B0, YOLOv8n and Whisper's tiny encoder as torch modules, for `benchmarks.torch_models`.

Attributes are named like the initialisers of `benchmarks.modern_networks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import modern_networks
from benchmarks.modern_networks import YOLO_BINS, YOLO_CLASSES


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict(
            {
                "0": nn.Conv2d(width, width, 7, padding=3, groups=width),
                "2": nn.LayerNorm(width, 1e-6),
                "3": nn.Linear(width, 4 * width),
                "5": nn.Linear(4 * width, width),
            }
        )
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block["2"](self.block["0"](x).permute(0, 2, 3, 1))
        y = self.block["5"](functional.gelu(self.block["3"](y))).permute(0, 3, 1, 2)
        return self.layer_scale * y + x


class ConvNextTiny(nn.Module):
    """ConvNeXt-T."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, 96, 4, 4), _ChannelNorm(96, 1e-6))]
        inside = 96
        for stage, (width, blocks) in enumerate(modern_networks.CONVNEXT_T):
            if stage:
                features.append(nn.Sequential(_ChannelNorm(inside, 1e-6), nn.Conv2d(inside, width, 2, 2)))
            features.append(nn.Sequential(*(_ConvNextBlock(width) for _ in range(blocks))))
            inside = width
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(_ChannelNorm(inside, 1e-6), nn.Flatten(1), nn.Linear(inside, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3), keepdim=True))


def _unit(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1, silu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), *([nn.SiLU()] if silu else []))


class _Excitation(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(functional.silu(self.fc1(x.mean((2, 3), keepdim=True))))) * x


class _MbConv(nn.Module):
    def __init__(self, inside: int, outside: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inside * expansion
        self.residual = stride == 1 and inside == outside
        self.block = nn.Sequential(
            *([_unit(inside, hidden, 1)] if expansion != 1 else []),
            _unit(hidden, hidden, kernel, stride, groups=hidden),
            _Excitation(hidden, max(1, inside // 4)),
            _unit(hidden, outside, 1, silu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + x if self.residual else self.block(x)


class EfficientNetB0(nn.Module):
    """EfficientNet-B0."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [_unit(3, 32, 3, 2)]
        inside = 32
        for expansion, kernel, outside, repeats, first_stride in modern_networks.EFFICIENTNET_B0:
            blocks = []
            for index in range(repeats):
                blocks.append(_MbConv(inside, outside, expansion, kernel, 1 if index else first_stride))
                inside = outside
            features.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*features, _unit(inside, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class _Unit(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.bn(self.conv(x)))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.residual = _Unit(channels, channels, 3), _Unit(channels, channels, 3), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.residual else y


class _C2f(nn.Module):
    def __init__(self, inside: int, outside: int, blocks: int, residual: bool = True) -> None:
        super().__init__()
        half = outside // 2
        self.cv1, self.cv2 = _Unit(inside, outside, 1), _Unit((2 + blocks) * half, outside, 1)
        self.m = nn.ModuleList(_Bottleneck(half, residual) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class _Sppf(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _Unit(channels, channels // 2, 1), _Unit(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.cv2(torch.cat(parts, 1))


class _Detector(nn.Module):
    def __init__(self, channels: Sequence[int], size: int) -> None:
        super().__init__()

        def heads(hidden: int, outside: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(_Unit(inside, hidden, 3), _Unit(hidden, hidden, 3), nn.Conv2d(hidden, outside, 1))
                for inside in channels
            )

        self.cv2, self.cv3 = heads(64, 4 * YOLO_BINS), heads(80, YOLO_CLASSES)
        self.dfl = nn.ModuleDict({"conv": nn.Conv2d(YOLO_BINS, 1, 1, bias=False)})
        steps = [8, 16, 32]
        axes = [torch.arange(size // step, device="cpu") + 0.5 for step in steps]  # in skeletons, too
        grids = [torch.stack(torch.meshgrid(axis, axis, indexing="xy")).flatten(1) for axis in axes]
        strides = [
            torch.full((1, len(axis) ** 2), float(step), device="cpu") for axis, step in zip(axes, steps, strict=True)
        ]
        self.register_buffer("centres", torch.cat(grids, 1)[None], persistent=False)
        self.register_buffer("strides", torch.cat(strides, 1)[None], persistent=False)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        both = [torch.cat((a(x), b(x)), 1) for a, b, x in zip(self.cv2, self.cv3, levels, strict=True)]
        distances, scores = torch.cat([y.flatten(2) for y in both], 2).split([4 * YOLO_BINS, YOLO_CLASSES], 1)
        shares = distances.view(1, 4, YOLO_BINS, -1).transpose(1, 2).softmax(1)
        near, far = self.dfl["conv"](shares).flatten(1, 2).chunk(2, 1)
        low, high = self.centres - near, self.centres + far
        return scores.sigmoid(), torch.cat(((low + high) / 2, high - low), 1) * self.strides


class YoloV8n(nn.Module):
    """YOLOv8n, its boxes decoded; scores and boxes are outputs of their own."""

    def __init__(self, size: int = 320) -> None:
        super().__init__()
        layers = {
            0: _Unit(3, 16, 3, 2),
            1: _Unit(16, 32, 3, 2),
            2: _C2f(32, 32, 1),
            3: _Unit(32, 64, 3, 2),
            4: _C2f(64, 64, 2),
            5: _Unit(64, 128, 3, 2),
            6: _C2f(128, 128, 2),
            7: _Unit(128, 256, 3, 2),
            8: _C2f(256, 256, 1),
            9: _Sppf(256),
            12: _C2f(384, 128, 1, residual=False),
            15: _C2f(192, 64, 1, residual=False),
            16: _Unit(64, 64, 3, 2),
            18: _C2f(192, 128, 1, residual=False),
            19: _Unit(128, 128, 3, 2),
            21: _C2f(384, 256, 1, residual=False),
            22: _Detector((64, 128, 256), size),
        }
        self.model = nn.ModuleDict({str(number): layer for number, layer in layers.items()})

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m = self.model
        kept = []
        for number in range(10):
            x = m[str(number)](x)
            kept.append(x)
        eighth, sixteenth, deep = kept[4], kept[6], kept[9]
        middle = m["12"](torch.cat((functional.interpolate(deep, scale_factor=2.0), sixteenth), 1))
        fine = m["15"](torch.cat((functional.interpolate(middle, scale_factor=2.0), eighth), 1))
        middle = m["18"](torch.cat((m["16"](fine), middle), 1))
        coarse = m["21"](torch.cat((m["19"](middle), deep), 1))
        return m["22"]((fine, middle, coarse))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        split = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.out_proj(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class _WhisperLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperEncoder(nn.Module):
    """Whisper's tiny encoder on 10 s of sound."""

    def __init__(self, layers: int = 4, width: int = 384, heads: int = 6, tokens: int = 500) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(80, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, 1)
        self.embed_positions = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(_WhisperLayer(width, heads) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(x)))).transpose(1, 2) + self.embed_positions.weight
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)
