"""Operators of core ATen of which the operator database has no samples, beside eager torch; how many are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")

from torch import nn  # noqa: E402

from benchmarks import torch_cases  # noqa: E402
from calumma.frontend.importer import import_model  # noqa: E402
from tests.compiled_model import compiled  # noqa: E402

aten = torch.ops.aten
ALL = [True, True, True]


def of_convolution(x: Any, weight: Any, bias: Sequence[int], *settings: Any, mask: Sequence[bool] = ALL) -> list[Any]:
    """Gradients of a convolution's square, where the mask asks for them."""
    y = aten.convolution(x, weight, None, *settings)
    found = aten.convolution_backward(y * 2, x, weight, bias, *settings, mask)
    return [gradient for gradient, wanted in zip(found, mask, strict=True) if wanted]


class Gradients(nn.Module):
    """Every operator of core ATen that is a gradient, and their siblings of other ranks."""

    def forward(self, image: Any, numbers: Any, whole: Any, volume: Any, rows: Any) -> Any:
        return (
            *self.of_layers(image, numbers, volume),
            *self.of_pools(image, volume),
            *self.of_rows(image, whole, rows),
        )

    def of_layers(self, image: Any, numbers: Any, volume: Any) -> list[Any]:
        grouped, turned = numbers[:48].reshape(4, 2, 2, 3), numbers[:72].reshape(4, 3, 3, 2)
        line, deep = numbers[:36].reshape(2, 6, 3), numbers[:24].reshape(3, 1, 2, 2, 2)
        row = numbers.reshape(1, 6, 14)
        scale, wide = numbers[:4], numbers[:7]
        y, mean, deviation = aten.native_group_norm(image, scale, scale, 2, 4, 42, 2, 1e-5)
        z, center, spread = aten.native_layer_norm(image, [7], wide, None, 1e-5)
        return [
            *of_convolution(image, grouped, [4], [2, 1], [1, 2], [1, 2], False, [0, 0], 2),
            *of_convolution(image, turned, [3], [2, 3], [1, 0], [1, 1], True, [1, 2], 1),
            *of_convolution(row, line, [0], [1], [1], [1], False, [0], 1, mask=[False, True, False]),
            *of_convolution(volume, deep, [3], [1, 2, 1], [0, 1, 0], [1, 1, 1], False, [0, 0, 0], 1),
            *aten.native_group_norm_backward(y * y, image, mean, deviation, scale, 2, 4, 42, 2, ALL),
            *aten.native_layer_norm_backward(z * z, image, [7], center, spread, wide, wide, ALL),
        ]

    def of_pools(self, image: Any, volume: Any) -> list[Any]:
        found = []
        for settings in ([False, True, None], [True, False, None], [True, True, None], [True, True, 7]):
            window = ([3, 2], [2, 2], [1, 1], *settings)
            found.append(aten.avg_pool2d_backward(aten.avg_pool2d(image, *window), image, *window))
        window = ([2, 2, 2], [], [0], False, True, None)
        found.append(aten.avg_pool3d_backward(aten.avg_pool3d(volume, *window), volume, *window))
        means = [aten._adaptive_avg_pool2d(image, size) for size in ([3, 4], [1, 1], [9, 5])]
        found += [aten._adaptive_avg_pool2d_backward(mean, image) for mean in means]
        largest, places = aten.max_pool2d_with_indices(image, [3, 2], [2, 1], [1, 0], [1, 2], True)
        window = ([3, 2], [2, 1], [1, 0], [1, 2], True, places)
        return [*found, aten.max_pool2d_with_indices_backward(largest * 2, image, *window)]

    def of_rows(self, image: Any, whole: Any, rows: Any) -> list[Any]:
        tables = [
            aten.embedding_dense_backward(rows, whole, 9, padding, by) for padding, by in ((2, False), (-1, True))
        ]
        return [*tables, *aten.native_dropout(image, 0.5, False)]


class Sizes(nn.Module):
    """Sizes and places in memory, which are numbers when a module is exported, and forms with lists or a target."""

    def forward(self, image: Any) -> Any:
        rows = image[0, 0].t()
        counts = aten.sym_size.int(rows, 0), aten.sym_stride.int(rows, 1), aten.sym_numel(rows)
        columns = torch.nn.functional.unfold(image, 3)
        angles = torch.empty_like(image)
        torch.ops.aten.atan2.out(image, image + 1, out=angles)
        return (
            rows * counts[0] + counts[1] - counts[2],
            aten.col2im(columns, [6, 7], [3, 3], [1, 1], [0, 0], [1, 1]),
            angles,
            aten.upsample_nearest2d.vec(image, None, [1.5, 2.0]),
            aten.upsample_bilinear2d.vec(image, [9, 4], True, None),
        )


def numbers(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


IMAGE = numbers(2, 4, 6, 7)
WHOLE = torch.tensor([[1, 2, 5], [5, 5, 0]])


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Gradients(), (IMAGE, numbers(84), WHOLE, numbers(1, 1, 3, 5, 4), numbers(2, 3, 4))),
        (Sizes(), (IMAGE,)),
    ],
    ids=["gradients", "sizes"],
)
def test_modules_are_right(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    artifact = compiled(import_model(model, example_inputs=inputs))
    found = artifact.run({f.name: x.numpy() for f, x in zip(artifact.inputs, inputs, strict=True)})
    for index, (value, expected) in enumerate(zip(found, model(*inputs), strict=True)):
        assert value.dtype == expected.numpy().dtype, index
        np.testing.assert_allclose(value, expected.numpy(), rtol=1e-4, atol=1e-4, err_msg=str(index))


def test_core_aten_is_computed_but_for_a_few_with_a_reason() -> None:
    found = torch_cases.core_operators()
    missing = [op for op in found if op.how == "missing"]
    assert len(missing) <= 0.05 * len(found)
    assert all(op.reason != "it has no rule" for op in missing), missing
