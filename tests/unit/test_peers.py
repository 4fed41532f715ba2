"""Messages, inputs, differences and results of the comparison; no other process."""

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calumma import tvm_compat
from calumma.core.errors import InputError, ModelError
from calumma.peers import (
    InputSpec,
    RaceResult,
    Row,
    Spread,
    input_specs,
    max_relative_difference,
    mobile,
    peers,
    protocol,
    race,
    random_inputs,
)
from calumma.peers.race import _change
from calumma.peers.runtimes import RUNTIMES


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_message_round_trip(pipe, dtype):
    reader, writer = pipe
    arrays = [np.ones((), dtype), np.zeros((0, 3), dtype), np.arange(6).reshape(2, 3).astype(dtype).T]
    protocol.send(writer, {"op": "set_inputs", "names": ["a", "b", "c"]}, arrays)
    message, received = protocol.receive(reader, timeout_s=5)
    assert message == {"op": "set_inputs", "names": ["a", "b", "c"]}
    for sent, got in zip(arrays, received, strict=True):
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)


def test_objects_are_not_sent(pipe):
    with pytest.raises(ValueError, match="allow_pickle"):
        protocol.send(pipe[1], {}, [np.array([object()])])


def test_half_a_message_times_out(pipe):
    reader, writer = pipe
    os.write(writer, (100).to_bytes(8, "little") + b"{")
    with pytest.raises(TimeoutError):
        protocol.receive(reader, timeout_s=0.05)


def test_closed_pipe_ends_the_conversation():
    reader, writer = os.pipe()
    os.write(writer, b"\x01")
    os.close(writer)
    with pytest.raises(EOFError):
        protocol.receive(reader)
    os.close(reader)


def _embedding_model(path: Path) -> Path:
    table = numpy_helper.from_array(np.zeros((11, 4), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("Add", ["rows", "x"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [table],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_input_specs(tmp_path):
    model = _embedding_model(tmp_path / "m.onnx")
    assert input_specs(model, {"ids": [1, 3]}) == (
        InputSpec("ids", (1, 3), "int64", bound=11),
        InputSpec("x", (1, 3, 4), "float32"),
    )


def test_open_dimension_says_how_to_fix_it(tmp_path):
    with pytest.raises(InputError, match=r"dimension 0 \(batch\) of input ids .* --shape ids="):
        input_specs(_embedding_model(tmp_path / "m.onnx"))


def test_shape_of_an_unknown_input(tmp_path):
    with pytest.raises(InputError, match=r"--shape idz: .* its inputs are ids, x"):
        input_specs(_embedding_model(tmp_path / "m.onnx"), {"idz": [1, 3]})


def test_not_an_onnx_file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ModelError, match="not a readable ONNX file"):
        input_specs(path)


def test_random_inputs_follow_the_seed():
    specs = [InputSpec("image", (1, 3, 40, 50), "float32"), InputSpec("ids", (1, 64), "int64", bound=7)]
    first, again, other = random_inputs(specs, 0), random_inputs(specs, 0), random_inputs(specs, 1)
    for name in ("image", "ids"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert first["image"].shape == (1, 3, 40, 50) and first["image"].dtype == np.float32
    assert set(np.unique(first["ids"])) == set(range(7))


def test_random_inputs_survive_average_pooling():
    spec = InputSpec("image", (1, 3, 224, 224), "float32")
    means = np.array([random_inputs([spec], seed)["image"].mean(axis=(0, 2, 3)) for seed in range(8)])
    assert means.std() > 0.05  # white noise would have 0.004


def test_text_cannot_be_drawn():
    with pytest.raises(InputError, match="only numbers and booleans"):
        random_inputs([InputSpec("text", (1,), "object")], 0)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1e-9, 0.0], [0.0, 0.0], math.inf),
        ([math.nan, 2.0], [1.0, 2.0], math.inf),
        ([math.inf, 2.0], [math.inf, 2.0], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
    ],
)
def test_max_relative_difference(ours, theirs, expected):
    assert max_relative_difference([np.array(ours)], [np.array(theirs)]) == expected


def test_the_worst_output_counts():
    good, bad = np.ones(3, np.float32), np.full(3, 1.5, np.float32)
    assert max_relative_difference([good, bad], [good, good]) == 0.5
    assert max_relative_difference([good], [good, good]) == math.inf


def test_outputs_of_other_shapes_have_changed():
    few, many = np.ones(2, np.float32), np.ones(3, np.float32)
    assert _change([[few], [many]]) == math.inf
    assert _change([[few, few], [many, few]]) == 0.0


def _row(label: str, *rounds_s: float) -> Row:
    return Row(label, "1.0", Spread.of(rounds_s), rounds_s, difference=1e-6)


def test_ratio_is_paired_by_round():
    # The machine was twice as slow in the last round, for both.
    result = RaceResult(2, (_row("a", 1.0, 1.0, 2.0), _row("b", 2.0, 2.0, 4.0)), "b", 0.5, 1.0)
    assert result.ratio("a", "b") == Spread(0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="no contestant 'c'"):
        result.ratio("a", "c")


def test_result_as_table_and_json():
    rows = (
        _row("ours", 0.001),
        replace(_row("theirs", 0.002), note="held to AVX2"),
        Row("absent", reason="absent is not installed", note="held"),
    )
    result = RaceResult(2, rows, "theirs", 0.5, 1.0)
    assert result.ratio("ours", "absent") is None
    head, ours, theirs, absent, *notes = result.table().splitlines()
    assert head.split()[0] == "runtime" and ours.split()[:3] == ["ours", "1.0", "1.000"]
    assert "0.500" in theirs and absent.split() == ["absent", "n/a"]
    assert notes[-2:] == ["theirs: held to AVX2", "absent: absent is not installed"]
    entries = {row["label"]: row for row in result.as_dict()["rows"]}
    assert entries["theirs"]["ratio"]["median"] == 0.5
    assert entries["absent"]["ratio"] is None and entries["absent"]["latency_s"] is None


def test_a_table_says_when_outputs_are_too_small_to_compare():
    assert "say nothing" in RaceResult(2, (_row("a", 1.0),), "a", 1.0, 2e-7).table()
    assert "say nothing" not in RaceResult(2, (_row("a", 1.0),), "a", 1.0, 2e-2).table()


def test_peers_by_name():
    model = Path("m.onnx")
    found = peers(["openvino", "torch", "openvino"], model)
    assert [(c.label, c.timed, bool(c.excluded)) for c in found] == [
        ("openvino", True, False),
        ("torch-eager", True, True),
        ("torch-compile", True, True),
        ("onnxruntime", False, False),
    ]
    assert peers(["torch-eager"], None, "module:function")[0].source == "module:function"
    assert "ONNX file" in peers(["onnxruntime"], None)[0].excluded
    with pytest.raises(InputError, match="--against tensorflow: no such runtime"):
        peers(["tensorflow"], model)
    everything = [contestant.runtime for contestant in peers(["all"], model)]
    assert len(everything) == len(set(everything)) and set(everything) < set(RUNTIMES)
    assert {"onnxruntime", "torch-compile", "litert", "ncnn", "mnn", "iree"} < set(everything)
    assert "openvino-bf16" not in everything


def test_peers_are_held_to_the_vectors_of_the_cpu_that_is_asked_for(monkeypatch):
    widths = {None: 512, "x86-64-v4": 512, "x86-64-v3": 256, "x86-64": 128}
    monkeypatch.setattr(tvm_compat, "target_for", lambda mcpu=None: SimpleNamespace(vector_bits=widths[mcpu]))
    names = ["openvino", "torch-compile", "iree", "onnxruntime"]

    def found(mcpu):
        return {c.label: c for c in peers(names, Path("m.onnx"), "module:function", mcpu)}

    held = found("x86-64-v3")
    assert {label: contestant.mcpu for label, contestant in held.items()} == dict.fromkeys(names, "x86-64-v3")
    assert held["openvino"].environment["OV_CPU_MAX_ISA"] == held["openvino"].environment["ONEDNN_MAX_CPU_ISA"]
    assert held["torch-compile"].environment["ATEN_CPU_CAPABILITY"] == "avx2"
    assert held["torch-compile"].note == held["iree"].note == "held to AVX2"
    assert "not held" in held["onnxruntime"].note and "MLAS" in held["openvino"].note
    for wide in (None, "x86-64-v4"):
        assert not any(c.environment or c.note for c in found(wide).values())
    assert all("not held" in c.note for c in found("x86-64").values())


def test_ncnn_s_inputs_and_outputs_in_the_model_s_order():
    assert mobile._in_order(["out10", "out2", "out0"]) == ["out0", "out2", "out10"]


def test_a_race_needs_something_to_race():
    with pytest.raises(InputError, match="a race needs"):
        race([], [{}], threads=1)
