"""torch modules imported, compiled with default schedules and compared with torch itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from calumma.frontend.importer import import_model  # noqa: E402
from tests.compiled_model import compiled  # noqa: E402


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, groups=32, padding=1),
            nn.BatchNorm2d(32),
            nn.Hardswish(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.ConvTranspose2d(32, 8, 2, stride=2),
            nn.GELU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.GroupNorm(2, 8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
            nn.LogSoftmax(1),
        )
        for part in self:
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")

    def forward(self, ids: Any) -> Any:
        return self.layer(self.embedding(ids))


class Padded(nn.Module):
    """Operators that TVM's own converter lacks, and normalisation that keeps no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3, padding=(1, 2), padding_mode="reflect")
        self.norm = nn.InstanceNorm2d(20, affine=True)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.conv(x))
        padded = functional.pad(y, (2, 1, 0, 3), mode="replicate"), functional.pad(y[0, 0], (1, 2), mode="reflect")
        return y.amax((2, 3)), y.amin(1, keepdim=True), y.amax(), *y.min(2), *padded


class SeveralOutputs(nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        a, b = x.chunk(2, 1)
        attended = functional.scaled_dot_product_attention(x, y, y)
        return {"sum": a.clamp(-0.5, 0.5) + b.relu(), "all": (attended, functional.pad(a, (1, 2), value=3.0))}


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (Convolutions, [(1, 3, 33, 32)]),
        (Encoder, [(1, 9)]),
        (Padded, [(2, 3, 9, 8)]),
        (SeveralOutputs, [(2, 6, 8), (2, 6, 8)]),
    ],
)
def test_same_outputs_as_torch(module: type[nn.Module], inputs: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    model = module().train()  # imported for inference all the same
    tensors = [torch.randint(0, 50, shape) if module is Encoder else torch.randn(shape) for shape in inputs]
    artifact = compiled(import_model(model, example_inputs=tensors))
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(artifact.inputs, tensors, strict=True)}
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model.eval()(*tensors))
    for found, reference in zip(artifact.run(feeds), expected, strict=True):
        np.testing.assert_allclose(found, reference.numpy(), rtol=1e-4, atol=1e-4)


class Indexed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 6, 5))

    def forward(self, i: Any, j: Any) -> Any:
        x = self.table
        return x[i], x[i, j], x[:, i, j], x[i, :, j], x[..., j], x[:5, 0].gather(0, i.abs()), x[j, j, j]


def test_indices_count_from_the_end_and_stay_inside() -> None:
    torch.manual_seed(0)
    model, i, j = Indexed(), torch.tensor([[0, -1, 2], [3, -4, 1]]), torch.tensor([1, 0, -2])
    artifact = compiled(import_model(model, example_inputs=(i, j)))
    names = [spec.name for spec in artifact.inputs]
    with torch.no_grad():
        expected = model(i, j)
    for found, reference in zip(
        artifact.run(dict(zip(names, (i.numpy(), j.numpy()), strict=True))), expected, strict=True
    ):
        np.testing.assert_array_equal(found, reference.numpy())
    for outside in (10**12, -(10**12)):  # torch raises; memory of others is read in no case
        feeds = dict(zip(names, (np.full((2, 3), outside), np.full(3, outside)), strict=True))
        at_the_end = [model.table.detach().numpy()[-1 if outside > 0 else 0]] * 6
        np.testing.assert_array_equal(artifact.run(feeds)[0].reshape(6, 6, 5), at_the_end)
