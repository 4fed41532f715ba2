"""What the torch importer refuses, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")

from calumma.core.errors import EnvironmentFault, InputError, ModelError  # noqa: E402
from calumma.frontend.importer import import_model  # noqa: E402

X = torch.zeros(2, 4)


class Function(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())


def test_module_and_program_give_the_same_graph() -> None:
    module = network().eval()
    imported = import_model(module, example_inputs=(X,))
    program = import_model(torch.export.export(module, (X,)))
    assert imported.name == "Sequential"
    assert list(imported.phases_s) == ["export", "graph"]
    assert imported.model_hash == program.model_hash
    assert [n.op for n in imported.graph.nodes()] == [n.op for n in program.graph.nodes()]
    assert [(n.name, n.shape, n.dtype) for n in imported.graph.inputs] == [("input", (2, 4), "float32")]


def test_the_hash_follows_the_weights() -> None:
    module = network()
    before = import_model(module, example_inputs=(X,)).model_hash
    with torch.no_grad():
        module[0].bias += 1
    assert import_model(module, example_inputs=(X,)).model_hash != before


def test_training_mode_is_left_as_it_was() -> None:
    module = network().train()
    module[1].eval()
    imported = import_model(module, example_inputs=(X,))
    assert [part.training for part in module.modules()] == [True, True, False, True]
    assert "nn.dropout" not in {n.op for n in imported.graph.nodes()}


def test_arguments_of_the_wrong_kind() -> None:
    module = network().eval()
    with pytest.raises(InputError, match="Sequential: a module needs example_inputs"):
        import_model(module)
    with pytest.raises(InputError, match="an ExportedProgram has its shapes"):
        import_model(torch.export.export(module, (X,)), example_inputs=(X,))
    with pytest.raises(InputError, match="shapes belong to an ONNX model"):
        import_model(module, example_inputs=(X,), shapes={"x": (2, 4)})


@pytest.mark.parametrize(
    ("function", "inputs", "words"),
    [
        (lambda x: x * 2, (X.to(torch.complex64),), "node .*: torch.complex64 is not supported"),
        (lambda x: x.to(torch.float8_e4m3fn).float(), (X,), "node .*: torch.float8_e4m3fn is not supported"),
        (torch.special.airy_ai, (X,), "operator special_airy_ai is not supported; write it"),
        (lambda x: x if x.sum() > 0 else -x, (X,), "Function: torch.export.export fails"),
        (lambda x: x.nonzero(), (X,), "is not fixed, it depends on values; give the result a size"),
        (lambda x: x + torch.rand(2, 4), (X,), "operator rand draws random numbers"),
    ],
)
def test_refused(function: Any, inputs: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        import_model(Function(function), example_inputs=inputs)
    assert "\n" not in str(caught.value)


def test_a_program_of_training_is_refused() -> None:
    program = torch.export.export(network().train(), (X,))
    with pytest.raises(ModelError, match=r"is of training; call .eval\(\)"):
        import_model(program)


def test_dynamic_shapes_are_refused() -> None:
    program = torch.export.export(network().eval(), (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(ModelError, match="is not fixed; export without dynamic_shapes"):
        import_model(program)


def test_another_release_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.1" if name == "torch" else "")
    with pytest.raises(EnvironmentFault, match=r"torch 2.9.1 is installed, expected 2.13"):
        import_model(network(), example_inputs=(X,))
