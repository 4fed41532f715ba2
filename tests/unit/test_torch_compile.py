"""The `torch.compile` backend without compiling: options, and the canonical text of a graph."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")

from torch import nn  # noqa: E402

from calumma.core.errors import InputError, ModelError  # noqa: E402
from calumma.integrations.torch_compile import Options, cache  # noqa: E402
from calumma.integrations.torch_compile.graph import RegionGraph, RegionOutput, lines  # noqa: E402
from calumma.integrations.torch_compile.regions import _Folded, _Version  # noqa: E402


def test_options() -> None:
    assert not Options.parse(None).measures
    options = Options.parse({"budget": "1.5m", "threads": 2})
    assert (options.budget, options.threads, options.measures) == (90.0, 2, True)
    assert Options.parse({"trials": 5}).measures
    assert Options.parse({"prior": "none", "precision": "fp32"}) == Options(prior="none")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speed": 1}, "no such option; the backend has budget, trials"),
        ({"threads": 0}, "threads=0: give a whole number of 1 or more"),
        ({"threads": True}, "threads=True"),
        ({"threads": 1 << 20}, r"option threads=1048576: this machine has \d+ logical cores"),
        ({"budget": -1}, "option budget: '?-1'? is not a length of time"),
        ({"budget": "soon"}, "option budget: 'soon' is not a length of time"),
        ({"precision": "int8"}, "option precision='int8': there is no such precision; one of fp32, bf16"),
        ({"tolerance": -1}, "option tolerance=-1: give a relative error of 0 or more"),
        ({"tolerance": float("inf")}, "option tolerance=inf: give a relative error of 0 or more"),
        ({"tolerance": "low"}, "option tolerance='low': give a relative error of 0 or more"),
        ({"prior": 3}, "option prior=3: give the name or file of a prior"),
        ({"prior": "nowhere"}, "prior '?nowhere'?: there is no such prior"),
        ({"strategy": "luck"}, "option strategy='luck': there is no such strategy; choose one of random, "),
    ],
)
def test_wrong_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options.parse(given)


def text(function: Callable[..., Any], *arguments: Any) -> str:
    """The canonical text of what Dynamo makes of a function."""
    seen: list[str] = []

    def look(module: Any, example_inputs: Any, **_: Any) -> Any:
        graph = RegionGraph(module)

        def run(*given: Any) -> Any:
            bound = graph.bind(given)
            owned = {**dict(bound.named_parameters()), **dict(bound.named_buffers())}
            inputs = [given[i] for i in graph.inputs]
            seen.append("\n".join(lines(bound, inputs, cache.digests(owned))))
            return graph.returned(bound(*inputs), given)

        return run

    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(function, backend=look)(*arguments)
        torch.testing.assert_close(found, function(*arguments))
    (only,) = seen
    return only


def linear(bias: float) -> nn.Module:
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, 0.5)
    nn.init.constant_(module.bias, bias)
    return module


def test_text_depends_on_what_is_computed_not_on_names() -> None:
    x = torch.ones(4, 3)
    first, same, other = linear(1.0), linear(1.0), linear(2.0)
    assert text(lambda x: first(x).relu(), x) == text(lambda y: same(y).relu(), x)
    assert text(lambda x: first(x).relu(), x) != text(lambda x: other(x).relu(), x)
    assert text(lambda x: x * 2, x) != text(lambda x: x * 2.0, x)
    assert text(lambda x: x[:, 1:] + 0, x) != text(lambda x: x[:, 2:] + 0, x)
    assert text(lambda x: x + 1, x) != text(lambda x: x + 1, x.double())


def test_an_open_size_gives_the_text_of_its_value() -> None:
    x, is_open = torch.ones(4, 3), torch.ones(4, 3)
    torch._dynamo.mark_dynamic(is_open, 0)
    assert text(lambda x: x.view(x.shape[0], 3, 1) + 1, x) == text(lambda x: x.view(x.shape[0], 3, 1) + 1, is_open)


def test_a_key_depends_on_settings() -> None:
    assert cache.key(["a"], {"threads": 1}) == cache.key(["a"], {"threads": 1})
    assert (
        len({cache.key(["a"], {"threads": 1}), cache.key(["a"], {"threads": 2}), cache.key(["b"], {"threads": 1})}) == 3
    )


def test_digests_tell_contents_of_every_kind_apart() -> None:
    kinds = [torch.zeros(0), torch.tensor(1.0), torch.tensor([True]), torch.arange(3), torch.ones(2, 3).T]
    assert len(set(cache.digests({str(i): tensor for i, tensor in enumerate(kinds)}).values())) == len(kinds)
    assert cache.digests({"a": torch.arange(6).view(2, 3).T}) == cache.digests({"a": torch.tensor([0, 3, 1, 4, 2, 5])})


def test_other_memory_at_the_same_address_is_noticed() -> None:
    memory = np.zeros(4, np.float32)
    parameter = nn.Parameter(torch.from_numpy(memory))
    folded = _Folded.of(parameter)
    assert folded.holds
    memory[:] = 1
    parameter.data = torch.from_numpy(memory)
    assert (parameter.data_ptr(), parameter._version) == (folded.address, folded.version)
    assert not folded.holds


def test_regions_of_another_user_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path))
    monkeypatch.setenv("CALUMMA_CACHE_MB", "1000")
    assert cache.read("key", 1) is None
    cache.folder().mkdir(0o700)
    assert cache.read("key", 1) is None
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.warns(cache.CacheWarning, match=rf"belongs to user {user}, expected {user + 1}"):
        assert cache.read("key", 1) is None


def test_functions_of_others_are_refused() -> None:
    module = torch.fx.symbolic_trace(lambda x: x + 1)
    node = next(node for node in module.graph.nodes if node.op == "call_function")
    node.target = text
    with pytest.raises(ModelError, match=r"test_torch_compile\.text is not an operator of torch"):
        list(lines(module, [torch.ones(1)], {}))


def test_functions_that_torch_makes_by_a_closure_have_their_public_name() -> None:
    assert "torch.nn.functional.max_pool2d" in text(lambda x: nn.functional.max_pool2d(x, 2), torch.ones(1, 1, 4, 4))


def test_a_result_of_a_bounded_axis_is_cut_to_its_extent() -> None:
    def run_into(inputs: Any, outputs: Any) -> list[tuple[int, ...]]:
        outputs[0].copy_(torch.arange(8.0).reshape(2, 4))
        return [(2, 3)]

    output = RegionOutput(torch.float32, None)
    graph: Any = SimpleNamespace(inputs=(), outputs=(output,), returned=lambda computed, arguments: tuple(computed))
    artifact: Any = SimpleNamespace(inputs=(), outputs=(SimpleNamespace(shape=(2, 4)),), run_into=run_into)
    call: Any = None
    (result,) = _Version(graph, call, (), artifact)(())
    assert result.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert result.is_contiguous()
