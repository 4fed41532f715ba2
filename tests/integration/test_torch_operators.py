"""torch's own operator database through `torch.compile` beside eager torch, and forms that it does not have."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks import torch_cases  # noqa: E402
from calumma.core.errors import ModelError  # noqa: E402
from calumma.frontend.importer import import_model  # noqa: E402
from calumma.integrations.torch_compile import FallbackWarning  # noqa: E402
from tests.compiled_model import compiled  # noqa: E402

RIGHT = [
    *("add", "amax", "argsort", "bucketize", "cat", "cdist", "clamp", "cummax", "cumsum", "diagonal_scatter"),
    *("digamma", "erfinv", "fft.fft", "fft.irfft", "floor_divide", "frexp", "gather", "histc", "igamma", "index_put"),
    *("index_reduce", "isin", "kthvalue", "linalg.cholesky", "linalg.inv", "linalg.qr", "linalg.svdvals"),
    *("logcumsumexp", "masked_fill", "masked_scatter", "median", "mode", "nanmedian", "nan_to_num", "polygamma"),
    *(
        "put",
        "roll",
        "scatter_reduce",
        "polar",
        "searchsorted",
        "sort",
        "special.i1e",
        "special.zeta",
        "softmax",
        "std_mean",
    ),
    *("take_along_dim", "topk", "unfold_copy", "var", "where", "nn.functional.adaptive_max_pool2d"),
    *("nn.functional.embedding_bag", "nn.functional.grid_sample", "nn.functional.interpolate"),
    *("nn.functional.max_pool2d", "nn.functional.pdist", "nn.functional.softplus"),
]
LEFT = {
    "nonzero": "not fixed",
    "chalf": "complex32 is not supported",
    "linalg.eigh": "eigenvectors",
    "bernoulli": "draws random numbers",
    "_batch_norm_with_update": "in place",
}
"""Operators that are left to torch, and a part of the reason."""


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALUMMA_CACHE_MB", "1000")
    monkeypatch.setenv("CALUMMA_DB", str(tmp_path / "records.sqlite"))
    monkeypatch.setattr("calumma.integrations.torch_compile.regions._warned", set())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def database() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for operator in torch_cases.operators():
        found.setdefault(operator.name, []).append(operator)
    return found


def tried(operator: Any) -> tuple[str, str]:
    (sample,) = torch_cases.small_samples(operator, 1)
    with torch.no_grad():
        return torch_cases.tried(operator, sample)


@pytest.mark.parametrize("name", RIGHT)
def test_operator_is_compiled_and_right(name: str, database: dict[str, list[Any]]) -> None:
    assert tried(database[name][0]) == ("right", "")


@pytest.mark.parametrize("name", LEFT)
def test_operator_is_left_to_torch_with_a_reason(name: str, database: dict[str, list[Any]]) -> None:
    verdict, reason = tried(database[name][0])
    assert verdict in ("fallback", "no region")
    if verdict == "fallback":
        assert LEFT[name] in reason and "fault of calumma" not in reason and "\n" not in reason


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 4)
        self.rnn = nn.RNN(4, 3, nonlinearity="relu")

    def forward(self, x: Any) -> Any:
        y, (h, c) = self.lstm(x)
        z, last = self.gru(y)
        return y, h, c, z, last, *self.rnn(z)


class Spectra(nn.Module):
    """Complex numbers between real ones."""

    def forward(self, x: Any) -> Any:
        spectrum = torch.fft.rfft(x, norm="ortho")
        frames = torch.stft(x[0], 8, 4, window=torch.hann_window(8), return_complex=True)
        parts = torch.view_as_real(torch.fft.fft2(x)), spectrum.real, spectrum.imag
        return torch.fft.irfft(spectrum * spectrum.conj(), n=15), frames.abs(), torch.fft.hfft(x), *parts


class Zoo(nn.Module):
    """What the database has no sample of: NaN, forms of interpolate, grid_sample's shape, padding in bags."""

    def forward(self, x: Any, nan: Any, grid: Any, whole: Any) -> Any:
        image = x.reshape(1, 1, 8, 8)
        bags = functional.embedding_bag(whole % 8, x, torch.tensor([0, 2, 2]), mode="max", padding_idx=3)
        return (
            functional.grid_sample(image[..., :5, :5], grid, align_corners=False),
            functional.interpolate(image, scale_factor=1.7, mode="bilinear"),
            functional.interpolate(image, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
            functional.interpolate(image, scale_factor=0.6, mode="nearest"),
            nan.clamp(-1, 1),
            nan.amax(1),
            functional.max_pool2d(nan.reshape(1, 1, 8, 8), 2),
            *functional.adaptive_max_pool2d(nan.reshape(1, 1, 8, 8), 3, return_indices=True),
            *nan.median(1),
            *nan.cummax(1),
            *nan.sort(dim=1, descending=True, stable=True),
            whole.clamp(-2, 5),
            (x > 0).amax(1),
            (x > 0).cumsum(1),
            bags,
            torch.cdist(x, nan, p=1),
            torch.linalg.solve(x, nan.nan_to_num()),
            torch.special.bessel_j1(x),
        )


def numbers(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def zoo_inputs() -> tuple[Any, ...]:
    nan = numbers(8, 8) - 1
    nan[1, 2] = nan[4, 7] = torch.nan
    whole = torch.arange(-8, 8)
    return numbers(8, 8), nan, numbers(1, 3, 3, 2) / 2, whole


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(Recurrent(), (numbers(3, 7, 5),)), (Spectra(), (numbers(3, 16),)), (Zoo(), zoo_inputs())],
    ids=["recurrent", "spectra", "zoo"],
)
def test_modules_are_right(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    artifact = compiled(import_model(model, example_inputs=inputs))
    with torch.no_grad():
        expected = model.eval()(*inputs)
    given = {f.name: x.numpy() for f, x in zip(artifact.inputs, inputs, strict=True)}
    for index, (found, reference) in enumerate(zip(artifact.run(given), expected, strict=True)):
        assert found.dtype == reference.numpy().dtype, index
        np.testing.assert_allclose(found, reference.numpy(), rtol=1e-3, atol=1e-4, err_msg=str(index))


TEN = [
    *("add", "mul", "sigmoid", "softmax", "sum", "bmm", "cat"),
    *("nn.functional.gelu", "nn.functional.layer_norm", "nn.functional.max_pool2d"),
]


def test_float16_operators(database: dict[str, list[Any]]) -> None:
    for name in TEN:
        operator = database[name][0]
        (sample,) = torch_cases.small_samples(operator, 1, torch.float16)
        with torch.no_grad():
            assert torch_cases.tried(operator, sample) == ("right", ""), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_modules_have_inputs_and_outputs_of_their_type(dtype: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4), nn.Softmax(-1)).to(dtype)
    x = torch.randn(3, 16, dtype=dtype)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        found = torch.compile(model.eval(), backend="calumma")(x)
        torch.testing.assert_close(found, model(x), rtol=2e-2, atol=2e-2)


def test_packed_sequences_and_masks_are_refused_by_name() -> None:
    class Masked(nn.Module):
        def forward(self, x: Any) -> Any:
            return x[x > 0]

    with pytest.raises(ModelError, match=r"^node .*: shape \[u0\] is not fixed"):
        import_model(Masked(), example_inputs=(numbers(4),))
