"""`torch.compile(model, backend="calumma")` beside eager torch: results, fallbacks, and the cache between processes."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from calumma.integrations.torch_compile import CacheWarning, FallbackWarning  # noqa: E402

TOLERANCE = 1e-3


class Convolutions(nn.Sequential):
    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, groups=16, padding=1),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(16, 10),
        )
        self[1].running_mean.normal_()
        self[1].running_var.uniform_(0.5, 2)
        self.eval()


class Head(nn.Module):
    """A model of one small kernel; `forward` is what a test is about."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 4)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self._forward(self, x)


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _apart(cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Records and cached regions of this test run alone, nothing left in Dynamo, warnings not given before."""
    monkeypatch.setenv("CALUMMA_CACHE", str(cache_root))
    monkeypatch.setenv("CALUMMA_CACHE_MB", "1000")
    monkeypatch.setenv("CALUMMA_DB", str(tmp_path / "records.sqlite"))
    monkeypatch.setattr("calumma.integrations.torch_compile.regions._warned", set())
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        warnings.simplefilter("error", CacheWarning)
        yield
    torch._dynamo.reset()


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="calumma", options={"threads": 2, **options})


def cached(root: Path) -> set[Path]:
    return set((root / "torch_compile").glob("*"))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype and found.stride() == expected.stride()
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_a_cnn_computes_what_eager_does() -> None:
    model = Convolutions()
    function = compiled(model)
    x, channels_last = torch.randn(2, 3, 16, 16), torch.randn(2, 16, 16, 3).permute(0, 3, 1, 2)
    unaligned = torch.randn(2 * 3 * 16 * 16 + 1)[1:].view(2, 3, 16, 16)
    with torch.inference_mode():
        first = function(x)
        kept = first.clone()
        for given in (x, channels_last, unaligned):
            close(function(given), model(given))
        assert torch.equal(first, kept)  # a result is the caller's


@torch.no_grad()
def test_a_transformers_encoder_computes_what_eager_does() -> None:
    transformers = pytest.importorskip("transformers", reason="of the dev extra")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertModel(config).eval()
    ids, mask = torch.randint(0, 100, (2, 16)), torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    found, expected = (run(ids, attention_mask=mask) for run in (compiled(model), model))
    close(found.last_hidden_state, expected.last_hidden_state)
    close(found.pooler_output, expected.pooler_output)


@torch.no_grad()
def test_fine_tuned_copies_and_changed_weights_never_share_results(cache_root: Path) -> None:
    model = Head(lambda self, x: self.linear(x).relu())
    x = torch.randn(3, 8)
    tuned = copy.deepcopy(model)
    tuned.linear.weight[0, 0] += 1
    before = cached(cache_root)
    functions = compiled(model), compiled(tuned)  # of one class: Dynamo compiles a region for both
    for _ in range(2):
        for function, reference in zip(functions, (model, tuned), strict=True):
            close(function(x), reference(x))
    assert len(cached(cache_root) - before) == 2
    model.load_state_dict(tuned.state_dict())  # the same tensors, other contents; in the cache already
    close(functions[0](x), tuned(x))
    assert len(cached(cache_root) - before) == 2
    model.linear.bias.data = torch.ones(4)
    close(functions[0](x), model(x))


def test_weights_cast_there_and_back_are_noticed() -> None:
    model, x = nn.Linear(512, 512, bias=False), torch.randn(3, 512)
    function = compiled(model)
    with torch.no_grad():
        before = function(x)
        model.half().float()  # the same parameter, uncounted, perhaps at the address that it had
        torch.testing.assert_close(function(x), model(x), rtol=1e-5, atol=1e-5)
        assert (before - model(x)).abs().max() > 1e-4


@torch.no_grad()
def test_every_module_of_a_class_is_compiled(cache_root: Path) -> None:
    blocks = [Head(lambda self, x: self.linear(x).abs()) for _ in range(12)]
    for number, block in enumerate(blocks):
        block.linear.bias.fill_(number)
    before = cached(cache_root)
    functions, x = [compiled(block) for block in blocks], torch.randn(3, 8)
    for _ in range(2):
        for function, block in zip(functions, blocks, strict=True):
            close(function(x), block(x))
    assert len(cached(cache_root) - before) == len(blocks)


@torch.no_grad()
def test_more_sizes_than_are_kept_run_in_torch(monkeypatch: pytest.MonkeyPatch, cache_root: Path) -> None:
    monkeypatch.setattr("calumma.integrations.torch_compile.regions.MOST_SIZES", 2)
    models = [Head(lambda self, x: self.linear(x).cos()) for _ in range(2)]
    models[1].linear.bias.fill_(1)
    before = cached(cache_root)
    functions = [torch.compile(model, backend="calumma", options={"threads": 2}, dynamic=True) for model in models]
    for function, model in zip(functions, models, strict=True):
        for batch in (3, 5):
            x = torch.randn(batch, 8)
            close(function(x), model(x))
    for batch in (7, 9):
        x = torch.randn(batch, 8)
        with pytest.warns(FallbackWarning, match="more than 2 combinations of sizes") if batch == 7 else nullcontext():
            close(functions[0](x), models[0](x))
    assert len(cached(cache_root) - before) == 4


@torch.no_grad()
def test_another_batch_size_is_another_version() -> None:
    model = Convolutions()
    function = compiled(model)
    for batch in (2, 3, 5, 3):
        x = torch.randn(batch, 3, 16, 16)
        close(function(x), model(x))


@torch.no_grad()
def test_regions_around_a_graph_break_are_compiled(cache_root: Path) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        torch._dynamo.graph_break()
        return y.tanh() * 3

    model, x = Head(forward), torch.randn(3, 8)
    before = cached(cache_root)
    close(compiled(model)(x), model(x))
    assert len(cached(cache_root) - before) == 2


@torch.no_grad()
def test_reshaped_inputs_and_results_that_lie_in_others_are_right() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        part = self.linear(x).relu()
        return x.reshape(24) * 2, part, torch.cat([part, part * 2]), self.linear.weight * 2, part.reshape(12, 1) + 1

    model = Head(forward)
    function = compiled(model)
    for _ in range(2):
        x = torch.randn(3, 8)
        for found, expected in zip(function(x), model(x), strict=True):
            close(found, expected)


@torch.no_grad()
def test_an_unsupported_operator_runs_in_torch_with_one_warning() -> None:
    model, x = Head(lambda self, x: torch.linalg.eigh(self.linear(x).T @ self.linear(x))[1].abs()), torch.randn(3, 8)
    function = compiled(model)
    with pytest.warns(FallbackWarning, match="eigenvectors") as caught:
        for batch in (3, 3, 5):
            close(function(x[:batch]), model(x[:batch]))
    assert len([entry for entry in caught if entry.category is FallbackWarning]) == 1


def test_gradients_are_torchs() -> None:
    model, x = Head(lambda self, x: self.linear(x).square()), torch.randn(3, 8)
    function = compiled(model)
    with pytest.warns(FallbackWarning, match="gradients.*inference_mode") as caught:
        function(x).sum().backward()
        function(x).sum().backward()
    assert len(caught) == 1
    gradient, model.linear.weight.grad = model.linear.weight.grad, None
    (2 * model(x).sum()).backward()
    close(gradient, model.linear.weight.grad)
    with torch.no_grad():
        close(function(x), model(x))


def test_a_model_that_turns_gradients_off_is_compiled(cache_root: Path) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.linear(x).exp()

    model, x = Head(forward), torch.randn(3, 8)
    before = cached(cache_root)
    close(compiled(model)(x), model(x))
    assert len(cached(cache_root) - before) == 1


@torch.no_grad()
def test_complex_results_lie_as_torch_lays_them(cache_root: Path) -> None:
    model, x = Head(lambda self, x: (torch.fft.rfft(self.linear(x)).mT.conj(), x.sum())), torch.randn(3, 8)
    before = cached(cache_root)
    for given in (x, x + 1):
        (found, _), (expected, _) = compiled(model)(given), model(given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert found.stride() == expected.stride()
    assert len(cached(cache_root) - before) == 1


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: functional.dropout(self.linear(x), 0.5, True), "dropout"),
        (lambda self, x: self.linear(x) + torch.rand(4), "random"),
        (lambda self, x: self.linear(x.add_(1)), "in place"),
        (lambda self, x: (y := self.linear(x), y[0]), "shares memory"),
        (lambda self, x: torch.complex(self.linear(x), x[:, 4:]).sinh(), "complex numbers"),
    ],
    ids=["training", "random", "in-place", "view", "complex"],
)
@torch.no_grad()
def test_what_cannot_be_compiled_is_left_to_torch(forward: Callable[..., Any], reason: str) -> None:
    model, x = Head(forward), torch.randn(3, 8)
    function, mine, torchs = compiled(model), x.clone(), x.clone()
    with pytest.warns(FallbackWarning, match=reason):
        torch.manual_seed(1)
        found = function(mine)
    torch.manual_seed(1)
    torch.testing.assert_close(found, model(torchs))
    assert torch.equal(mine, torchs)


@torch.no_grad()
def test_views_of_arguments_are_views(cache_root: Path) -> None:
    model, whole = Head(lambda self, x: (self.linear(x), x[1:, ::2].T)), torch.randn(4, 8)
    function, before = compiled(model), cached(cache_root)
    x = whole[1:]
    result, view = function(x)
    close(result, model.linear(x))
    assert len(cached(cache_root) - before) == 1
    view.fill_(7)
    assert torch.equal(whole[2:, ::2], torch.full((2, 4), 7.0))
    assert compiled(Head(lambda self, x: x.view(-1)))(x).data_ptr() == x.data_ptr()
    assert len(cached(cache_root) - before) == 1  # nothing is computed


@torch.no_grad()
def test_half_precisions_are_rounded_at_the_end_alone(cache_root: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model, x = Head(lambda self, x: self.linear(x).exp() * 3).to(dtype), torch.randn(3, 8).to(dtype)
        before = cached(cache_root)
        found = compiled(model)(x)
        assert len(cached(cache_root) - before) == 1
        assert found.dtype is dtype
        exact = (copy.deepcopy(model).float()(x.float())).to(dtype)
        torch.testing.assert_close(found, exact, rtol=torch.finfo(dtype).eps, atol=0)


@torch.no_grad()
def test_autocast_is_left_to_torch() -> None:
    model, x = Head(lambda self, x: self.linear(x)), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(FallbackWarning, match="autocast"):
        assert compiled(model)(x).dtype is torch.bfloat16


@torch.no_grad()
def test_a_damaged_file_is_compiled_again(cache_root: Path) -> None:
    model, x = Head(lambda self, x: self.linear(x).sigmoid()), torch.randn(3, 8)
    before = cached(cache_root)
    expected = compiled(model)(x)
    (file,) = cached(cache_root) - before
    intact = file.stat().st_size
    half = file.read_bytes()[: intact // 2]
    file.unlink()  # its code is mapped into this process, which would not survive a change of the file itself
    file.write_bytes(half)
    torch._dynamo.reset()
    with pytest.warns(CacheWarning, match=file.name):
        close(compiled(model)(x), expected)
    assert file.stat().st_size == intact
    torch._dynamo.reset()
    close(compiled(model)(x), expected)


@torch.no_grad()
def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "file"))
    model, x = Head(lambda self, x: self.linear(x).sin()), torch.randn(3, 8)
    with pytest.warns(CacheWarning, match="not kept"):
        found = compiled(model)(x)
    close(found, model(x))


@pytest.mark.parametrize("exposed", ["folder", "file"])
@torch.no_grad()
def test_what_others_can_write_is_not_loaded(exposed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "cache"))
    model, x = Head(lambda self, x: self.linear(x).exp()), torch.randn(3, 8)
    umask = os.umask(0)
    try:
        expected = compiled(model)(x)
    finally:
        os.umask(umask)
    folder = tmp_path / "cache" / "torch_compile"
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    (folder if exposed == "folder" else file).chmod(0o720)
    torch._dynamo.reset()
    with pytest.warns(CacheWarning, match=r"can be written by others \(mode 720\)") as caught:
        close(compiled(model)(x), expected)
    messages = [str(entry.message) for entry in caught if entry.category is CacheWarning]
    kept = ["a compiled region is not kept"] if exposed == "folder" else []
    assert [message.split(":")[0] for message in messages] == ["a cached region is not used", *kept]
    if exposed == "file":  # it has been replaced
        assert file.stat().st_mode & 0o777 == 0o600
        torch._dynamo.reset()
        close(compiled(model)(x), expected)


@torch.no_grad()
def test_a_cache_that_cannot_be_read_costs_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALUMMA_CACHE", "n" * 5000)  # an error for every user, root included
    model, x = Head(lambda self, x: self.linear(x).exp()), torch.randn(3, 8)
    with pytest.warns(CacheWarning) as caught:
        found = compiled(model)(x)
    close(found, model(x))
    messages = [str(entry.message) for entry in caught if entry.category is CacheWarning]
    regions = [message for message in messages if "region" in message]
    assert ["not used" in regions[0], "not kept" in regions[1]] == [True, True]
    assert len(messages) > len(regions) == 2, "kernels are not used either"


@torch.no_grad()
def test_a_budget_tunes(tmp_path: Path) -> None:
    from calumma.database import SqlStore

    model, x = Head(lambda self, x: self.linear(x).relu()), torch.randn(64, 8)
    database = tmp_path / "tuned.sqlite"
    close(compiled(model, budget="20s", trials=2, database=str(database))(x), model(x))
    with SqlStore.open(database) as store:
        assert len(list(store.records())) >= 2


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"trials": 1}], ids=["compiled", "tuned"])
def test_weights_that_a_region_held_are_freed(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from calumma.integrations.torch_compile import cache

    held: list[list[weakref.ref[Any]]] = []
    write = cache.write

    def watch(key: str, result: Any) -> Path:
        held.append([weakref.ref(array) for array in result.lowered.params])
        return write(key, result)

    monkeypatch.setattr(cache, "write", watch)
    model, x = Convolutions(seed=len(options)), torch.randn(1, 3, 16, 16)
    function = compiled(model, **options)
    for _ in range(2):
        close(function(x), model(x))
        model[0].weight += 1
    gc.collect()
    first, second = held
    assert first and second and not any(array() is not None for array in first)


@torch.no_grad()
def test_a_wrong_option_is_an_error() -> None:
    model, x = Head(lambda self, x: self.linear(x)), torch.randn(3, 8)
    with pytest.raises(Exception, match="there is no such option; the backend has budget"):
        compiled(model, speed="high")(x)
    with pytest.raises(Exception, match="not a length of time"):
        compiled(model, budget="soon")(x)
    with pytest.raises(Exception, match="there is no such strategy; choose one of random"):
        compiled(model, strategy="luck")(x)


_MORE_THREADS = """
import warnings
import torch
from calumma.integrations.torch_compile import FallbackWarning
from tests.integration.test_torch_compile import Convolutions

first, second, third = (Convolutions(seed) for seed in range(3))
x = torch.randn(1, 3, 16, 16)
with torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for model, threads in ((first, 1), (second, 2), (second, 2), (third, 2), (first, 1)):
        compiled = torch.compile(model, backend="calumma", options={"threads": threads})
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)
        print(threads, sum(entry.category is FallbackWarning for entry in caught))
(warning,) = [entry for entry in caught if entry.category is FallbackWarning]
print(warning.message)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a second core")
def test_more_threads_than_the_pool_has_are_left_to_torch(cache_root: Path) -> None:
    done = _python(_MORE_THREADS)
    assert done.returncode == 0, done.stderr
    *counts, message = done.stdout.splitlines()
    assert counts == ["1 0", "2 1", "2 1", "2 1", "1 1"]
    assert "to torch: this Python thread already runs a TVM pool of 1 threads, 2 were asked for" in message


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "src:."},
        capture_output=True,
        text=True,
        timeout=120,
    )


_SECOND = """
import sys
import torch
from tests.integration.test_torch_compile import Convolutions

model = Convolutions(seed=7)
with torch.inference_mode():
    y = torch.compile(model, backend="calumma", options={"threads": 2})(torch.ones(1, 3, 16, 16))
assert "tvm" not in sys.modules, "the compiler was loaded"
print(y.tolist())
"""


@torch.no_grad()
def test_the_second_process_takes_the_region_from_the_cache(cache_root: Path) -> None:
    model = Convolutions(seed=7)
    x = torch.ones(1, 3, 16, 16)
    close(compiled(model)(x), model(x))
    before = {file: file.stat().st_mtime_ns for file in cached(cache_root)}
    done = _python(_SECOND)
    assert done.returncode == 0, done.stderr
    close(torch.tensor([[float(value) for value in done.stdout.strip("[]\n").split(",")]]), model(x))
    assert {file: file.stat().st_mtime_ns for file in cached(cache_root)} == before
