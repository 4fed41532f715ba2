"""What the ONNX importer refuses, and in which words: one line that names the place and what to do."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calumma.core.errors import InputError, ModelError
from calumma.frontend.importer import ImportedModel, import_model

Shape = Sequence[int | str | None]


def node(
    operator: str, inputs: Sequence[str] = ("x",), outputs: Sequence[str] = ("y",), **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Shape] | None = None,
    *,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    inputs = {"x": (2, 3)} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def load(proto: onnx.ModelProto, **arguments: Any) -> ImportedModel:
    return import_model(proto.SerializeToString(), **arguments)


def refusal(source: Any, **arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        import_model(source.SerializeToString() if isinstance(source, onnx.ModelProto) else source, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


RELU = model([node("Relu")])
DENSE = model([node("MatMul", ("x", "w"))], {"x": (2, 64)}, weights={"w": np.ones((64, 8), np.float32)})


# -- files --------------------------------------------------------------------------------------------


def test_path_string_and_bytes_give_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "dense.onnx"
    onnx.save(DENSE, path)
    from_path, from_text, from_bytes = import_model(path), import_model(str(path)), import_model(path.read_bytes())
    assert from_path.name == "dense"
    assert from_path.model_hash == from_text.model_hash == from_bytes.model_hash
    assert list(from_path.phases_s) == ["read", "slim", "convert", "graph"]
    (source,) = from_path.graph.inputs
    assert (source.name, source.shape, source.dtype) == ("x", (2, 64), "float32")
    assert from_path.graph.output_names == ["y"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (DENSE.SerializeToString()[:-100], "not a complete ONNX model"),
        (np.random.default_rng(0).bytes(5000), "not a complete ONNX model"),
        (b"PK\x03\x04....", "zip archive"),
        (b"<!DOCTYPE html><html></html>", "text document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    ],
)
def test_not_a_model(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    assert words in refusal(path)
    assert str(path) in refusal(path)


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.onnx")
    assert "a directory" in refusal(tmp_path)


def test_another_type_of_model() -> None:
    with pytest.raises(InputError, match="a model of type int cannot be imported: give the path"):
        import_model(3)
    with pytest.raises(InputError, match="example_inputs belong to"):
        import_model(RELU.SerializeToString(), example_inputs=())


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in a file beside it."""
    path = tmp_path / "external.onnx"
    weights = {"w": np.arange(512, dtype=np.float32).reshape(64, 8), "b": np.arange(8, dtype=np.float32)}
    proto = model([node("MatMul", ("x", "w"), ("m",)), node("Add", ("m", "b"))], {"x": (2, 64)}, weights=weights)
    onnx.save_model(proto, path, save_as_external_data=True, location="external.data", size_threshold=0)
    return path


def test_external_data(external: Path) -> None:
    imported = import_model(external)
    constants = {n.name or "b": n.value for n in imported.graph.nodes() if n.value is not None}
    np.testing.assert_array_equal(constants["w"], np.arange(512, dtype=np.float32).reshape(64, 8))
    np.testing.assert_array_equal(constants["b"], np.arange(8))
    data = external.with_name("external.data")
    data.write_bytes(bytes(data.stat().st_size))
    assert import_model(external).model_hash != imported.model_hash


def test_external_data_missing_cut_off_or_outside(external: Path) -> None:
    assert "give the path of the model" in refusal(external.read_bytes())
    data = external.with_name("external.data")
    data.write_bytes(data.read_bytes()[:1000])
    assert "holds 1,000 of its 2,048 bytes" in refusal(external)
    data.unlink()
    assert "external.data', which does not exist" in refusal(external)
    for location in ("../external.data", "/etc/hostname"):
        proto = onnx.load(external, load_external_data=False)
        for tensor in proto.graph.initializer:
            next(e for e in tensor.external_data if e.key == "location").value = location
        external.write_bytes(proto.SerializeToString())
        assert "outside the model's folder" in refusal(external)


def test_damaged_weight() -> None:
    proto = onnx.ModelProto.FromString(DENSE.SerializeToString())
    proto.graph.initializer[0].raw_data = b"\0" * 12
    assert "weight w [64, 8]: damaged" in refusal(proto)


@pytest.mark.parametrize("opset", [6, 22])
def test_opset_out_of_range(opset: int) -> None:
    assert f"opset {opset}, expected 7 to 21; export it with opset 17" in refusal(model([node("Relu")], opset=opset))


# -- shapes -------------------------------------------------------------------------------------------

OPEN = model([node("Add", ("x", "z"))], {"x": ("batch", 3, "width"), "z": ("batch", 3, None)})


def test_shapes_fix_open_dimensions() -> None:
    imported = load(OPEN, shapes={"x": (4, 3, 5), "z": (4, 3, 5)})
    assert [n.shape for n in imported.graph.inputs] == [(4, 3, 5), (4, 3, 5)]
    assert [n.shape for n in imported.graph.outputs] == [(4, 3, 5)]
    assert load(OPEN, shapes={"x": (2, 3, 5), "z": (2, 3, 5)}).model_hash != imported.model_hash


def test_a_symbol_fixed_in_one_input_is_fixed_in_all() -> None:
    proto = model([node("Add", ("x", "z"))], {"x": ("batch", 3), "z": ("batch", 3)})
    assert [n.shape for n in load(proto, shapes={"z": (7, 3)}).graph.inputs] == [(7, 3), (7, 3)]


@pytest.mark.parametrize("symbol", ["?", "-1", "None"])
def test_what_exporters_write_for_any_open_dimension_ties_nothing_together(symbol: str) -> None:
    proto = model([node("Relu")], {"x": (symbol, 3, symbol)})
    assert "open dimensions in x[?,3,?]; give shape x=?,3,?" in refusal(proto)
    assert [n.shape for n in load(proto, shapes={"x": (1, 3, 5)}).graph.inputs] == [(1, 3, 5)]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (None, "open dimensions in x[batch,3,width], z[batch,3,?]; give shape x=BATCH,3,WIDTH, shape z"),
        ({"x": (4, 3, 5)}, "open dimensions in z[4,3,?]; give shape z=4,3,?"),
        ({"data": (1, 3)}, "shape data: no such input; the inputs are x[batch,3,width], z[batch,3,?]"),
        ({"x": (1, 3)}, "shape x=1,3: 2 dimensions, but the input is x[batch,3,width] with 3"),
        ({"x": (1, 4, 5)}, "shape x=1,4,5: dimension 1 is fixed to 3 in the model"),
        ({"x": (1, 3, 0)}, "shape x=1,3,0: every dimension must be at least 1"),
        ({"x": (1, 3, 5), "z": (2, 3, 5)}, "shape z=2,3,5: dimension batch is 1 in input x"),
    ],
)
def test_shapes_refused(shapes: dict[str, tuple[int, ...]] | None, words: str) -> None:
    assert words in refusal(OPEN, shapes=shapes)


# -- what cannot be computed right --------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.STRING, TensorProto.COMPLEX64]
)
def test_element_types_refused(dtype: int) -> None:
    message = refusal(model([node("Relu", name="act")], dtype=dtype))
    assert f"input x is {TensorProto.DataType.Name(dtype).lower()}, which is not supported; export" in message


def test_half_precision_inside_names_the_node() -> None:
    half = model([node("Cast", outputs=("h",), name="to_half", to=TensorProto.FLOAT16), node("Relu", ("h",))])
    assert "node to_half (Cast): its result is float16" in refusal(half)
    weight = model([node("MatMul", ("x", "w"), name="dense")], weights={"w": np.ones((3, 4), np.float16)})
    assert "node dense (MatMul): weight w is float16" in refusal(weight)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (node("Multinomial", name="odd"), "node odd: operator Multinomial is not supported; replace it"),
        (node("Relu", name="odd", domain="my.domain"), "node odd: operator Relu of domain my.domain is not supported"),
        (node("FastGelu", name="odd"), "node odd: operator FastGelu is not supported"),
        pytest.param(
            node("NonZero", name="odd"),
            "node odd: operator NonZero gives a shape that depends on values",
            marks=pytest.mark.processes,
        ),
        (node("LSTM", ("x", "w", "w"), name="odd", hidden_size=3), "node odd: operator LSTM is recurrent"),
        (node("QuantizeLinear", ("x", "s"), name="odd"), "node odd: operator QuantizeLinear is quantised arithmetic"),
        (
            node("Relu", ("nothing",), name="odd"),
            "node odd: operator Relu reads 'nothing', which",
        ),
        (node("Gemm", ("x", "s"), name="odd"), "node odd: operator Gemm cannot be converted"),
        (node("Add", ("x", "w"), name="odd"), "node odd: operator Add cannot be converted"),
    ],
)
def test_operators_refused(operator: onnx.NodeProto, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"w": np.ones((4, 5), np.float32), "s": np.array(1, np.float32)}
    assert words in refusal(model([operator], weights=weights, domains=("my.domain",)))
    assert capsys.readouterr().out == ""


def test_resize_by_a_scale_that_gives_no_whole_size_is_refused() -> None:
    resize = node("Resize", ("x", "", "s"), name="up", mode="linear")
    proto = model([resize], {"x": (1, 3, 6, 8)}, weights={"s": np.array([1, 1, 1.7, 1], np.float32)})
    assert "node up: operator Resize: scales" in refusal(proto)


def test_operators_no_output_needs_are_not_looked_at() -> None:
    imported = load(model([node("Relu"), node("Multinomial", outputs=("unused",))]))
    assert [n.op for n in imported.graph.nodes()] == ["input", "nn.relu"]


# -- what becomes of a model --------------------------------------------------------------------------


def test_names_survive() -> None:
    proto = model([node("Relu", ("a.b:0/x",), ("1/out:0",), name="act/1")], {"a.b:0/x": (2, 3)}, outputs=("1/out:0",))
    graph = load(proto).graph
    assert [n.name for n in graph.inputs] == ["a.b:0/x"]
    assert [n.name for n in graph.outputs] == ["act/1"]
    assert graph.output_names == ["1/out:0"]


def test_initialisers_that_are_inputs_are_constants() -> None:
    proto = model(DENSE.graph.node, {"x": (2, 64), "w": (64, 8)}, weights={"w": np.ones((64, 8), np.float32)})
    proto.ir_version = 3
    assert [n.name for n in load(proto).graph.inputs] == ["x"]


def test_own_and_standard_functions_are_inlined() -> None:
    proto = model([node("Twice", outputs=("t",), domain="own"), node("Celu", ("t",))], domains=("own",))
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(
        helper.make_function("own", "Twice", ["a"], ["b"], [node("Add", ("a", "a"), ("b",))], opsets)
    )
    operators = {n.op for n in load(proto).graph.nodes()}
    assert {"add", "exp"} <= operators


def shape_arithmetic() -> onnx.ModelProto:
    """y = reshape(x, [shape(x)[0], -1])."""
    nodes = [
        node("Shape", ("x",), ("s",)),
        node("Gather", ("s", "zero"), ("b",)),
        node("Unsqueeze", ("b", "axis"), ("u",)),
        node("Concat", ("u", "rest"), ("t",), axis=0),
        node("Reshape", ("x", "t")),
    ]
    weights = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    return model(nodes, {"x": ("n", 3, 4)}, weights=weights)


@pytest.mark.processes
def test_shape_arithmetic_is_folded_in_a_process_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        graph = load(shape_arithmetic(), shapes={"x": (2, 3, 4)}).graph
    assert [n.op for n in graph.nodes()] == ["input", "reshape"]
    assert graph.outputs[0].shape == (2, 12)
    assert not caplog.records


def test_the_original_is_kept_when_slimming_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", fail)
    with caplog.at_level(logging.WARNING):
        graph = load(shape_arithmetic(), shapes={"x": (2, 3, 4)}).graph
    assert graph.outputs[0].shape == (2, 12)
    assert "onnxslim failed, the model is taken as it is" in caplog.text


def test_models_without_shape_arithmetic_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(subprocess, "run")
    load(DENSE)
