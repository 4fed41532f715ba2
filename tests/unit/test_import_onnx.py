"""What the ONNX importer refuses, and in which words: one line that names the place and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calumma.core.errors import InputError, ModelError
from calumma.frontend.importer import import_model
from calumma.graph.imported_model import ImportedModel

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
    assert list(from_path.phases_s) == ["read", "graph"]
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


def test_every_opset_that_onnx_knows() -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in range(1, newest + 1):
        assert [n.op for n in load(model([node("Relu")], opset=opset)).graph.nodes()] == ["input", "nn.relu"]
    for opset in (-1, 0, newest + 1):
        message = refusal(model([node("Relu")], opset=opset))
        assert f"expected 1 to {newest}; export it with opset 17" in message


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
        ({"x": (1, 3, -1)}, "shape x=1,3,-1: no dimension may be negative"),
        ({"x": (1, 3, 5), "z": (2, 3, 5)}, "shape z=2,3,5: dimension batch is 1 in input x"),
    ],
)
def test_shapes_refused(shapes: dict[str, tuple[int, ...]] | None, words: str) -> None:
    assert words in refusal(OPEN, shapes=shapes)


# -- what cannot be computed right --------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.STRING, TensorProto.COMPLEX64]
)
def test_element_types_refused(dtype: int) -> None:
    message = refusal(model([node("Identity", name="act")], dtype=dtype))
    name = TensorProto.DataType.Name(dtype).lower()
    assert f"input x: element type {name} is not supported" in message and "; " in message


def test_narrow_floats_are_computed_in_float32() -> None:
    for dtype, name in ((TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")):
        graph = load(model([node("Relu", name="act")], dtype=dtype)).graph
        assert [n.dtype for n in (*graph.inputs, *graph.outputs)] == [name, name]
        assert {n.dtype for n in graph.nodes() if n.op == "nn.relu"} == {"float32"}


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (node("Multinomial", name="odd"), "node odd: operator Multinomial draws random numbers"),
        (node("StringNormalizer", name="odd"), "node odd: operator StringNormalizer computes with strings or files"),
        (node("Relu", name="odd", domain="my.domain"), "node odd: operator Relu of domain my.domain is not supported"),
        (node("FastGelu", name="odd"), "node odd: operator FastGelu is not supported; replace it"),
        (node("Elu", name="odd", domain="my.domain", gamma=2.0), "of domain my.domain is not supported"),
        (node("Reshape", ("x", "x"), name="odd"), "node odd: operator Reshape"),
        (node("Softmax", name="odd", axis=4), "node odd: operator Softmax: axis 4 of a tensor with 2 dimensions"),
        (node("Relu", ("nothing",), name="odd"), "node odd: operator Relu reads 'nothing', which"),
        (
            node("Gemm", ("x", "s"), name="odd"),
            "node odd: operator Gemm: it cannot be computed of float32[2, 3], float32[]",
        ),
        (node("Concat", ("x", "w"), name="odd", axis=0), "node odd: operator Concat: its inputs do not fit together"),
    ],
)
def test_operators_refused(operator: onnx.NodeProto, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"w": np.ones((4, 5), np.float32), "s": np.array(1, np.float32)}
    message = refusal(model([operator], weights=weights, domains=("my.domain",)))
    assert words in message
    assert "; " in message and "ir." not in message
    assert capsys.readouterr().out == ""


def test_a_result_of_another_type_than_the_model_declares_is_refused() -> None:
    """The outputs are declared float32."""
    for operator in ("NonZero", "Shape"):
        assert "node odd" in refusal(model([node(operator, name="odd")], weights={"w": np.ones(3, np.float32)}))


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
    assert {"add", "calumma.map"} <= operators


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


def test_shape_arithmetic_is_folded() -> None:
    graph = load(shape_arithmetic(), shapes={"x": (2, 3, 4)}).graph
    assert [n.op for n in graph.nodes()] == ["input", "reshape"]
    assert graph.outputs[0].shape == (2, 12)
