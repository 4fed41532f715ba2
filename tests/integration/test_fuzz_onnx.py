"""Damaged ONNX files: one line of error or a right result, and never a traceback, a crash, a hang or all the memory.

`onnx_fuzz` compiles and judges in forked children; a sample goes through the real command line.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from calumma import api
from calumma.core import hardware as host
from calumma.core.errors import ModelError
from calumma.database import MemoryStore
from calumma.frontend.importer import import_model
from calumma.graph.build import check_size
from tests.integration import onnx_mutations
from tests.integration.command_line import ROOT, calumma
from tests.integration.onnx_fuzz import TIMEOUT_S
from tests.onnx_models import Model, assert_close, reference

CI_CASES, CI_COMMANDS = 100, 2
LONG_CASES, LONG_COMMANDS = 2200, 60


def _verdicts(first: int, count: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.integration.onnx_fuzz", str(first), str(count)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60 + count * (TIMEOUT_S + 5)
    )
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(verdicts) == count, f"the parent of case {first + len(verdicts)} has died: {done.stderr[-2000:]}"
    return verdicts


def _check(verdicts: list[dict[str, Any]]) -> None:
    faults = [verdict for verdict in verdicts if verdict["verdict"] == "fault"]
    assert not faults, f"{len(faults)} faults, the first: {json.dumps(faults[0], indent=1)}"
    counts = Counter(verdict["verdict"] for verdict in verdicts)
    # A test that refuses everything, or damages nothing, proves nothing.
    assert counts["right"] >= len(verdicts) // 20, counts
    assert counts["refused"] >= len(verdicts) // 4, counts


def test_damaged_models() -> None:
    _check(_verdicts(0, CI_CASES))


@pytest.mark.long
def test_thousands_of_damaged_models() -> None:
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(_verdicts, (0, LONG_CASES // 2), (LONG_CASES // 2,) * 2)
        verdicts = [verdict for half in halves for verdict in half]
    sys.stdout.write(f"{Counter(verdict['verdict'] for verdict in verdicts)}\n")
    _check(verdicts)


def _command_line(folder: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        path = folder / "model.onnx"
        path.write_bytes(onnx_mutations.case(number).data)
        done = calumma("compile", path, "-o", folder / "out.so", "--db", folder / "db.sqlite", "--threads", 1)
        assert done.returncode in (0, 2), f"case {number}: {done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        errors = [line for line in done.stderr.splitlines() if "calumma: error: " in line]
        assert len(errors) == (done.returncode == 2), f"case {number}: {done.stderr[-2000:]}"


def test_damaged_models_on_the_command_line(tmp_path: Path) -> None:
    _command_line(tmp_path, 1000, CI_COMMANDS)


@pytest.mark.long
def test_many_damaged_models_on_the_command_line(tmp_path: Path) -> None:
    _command_line(tmp_path, 5000, LONG_COMMANDS)


def test_valid_models_that_the_fuzzer_found_to_fail() -> None:
    """Values computed beside a kernel, epilogues that bind variables, channels read shuffled and as they were."""
    m = Model()
    rows, other = m.input(6, 32), m.input(6, 16)
    dense = m.op("Add", m.op("MatMul", rows, m.random(32, 16)), m.op("Relu", other))
    constant = m.op("Add", m.op("MatMul", rows, m.random(32, 16)), m.op("Erf", m.random(16)))
    image = m.op("Relu", m.conv(m.input(1, 16, 12, 12), (16, 32)))
    beside = m.op("Add", m.conv(image, (32, 32), kernel=1), m.op("Exp", m.op("Neg", image)))
    bound = m.op("Add", m.op("Tanh", m.conv(image, (32, 32))), m.op("Sigmoid", image))
    split = m.op("Reshape", m.conv(image, (32, 24), kernel=1), np.array([1, 3, 8, 12, 12]))
    shuffled = m.op("Transpose", split, perm=[0, 2, 1, 3, 4])
    twice = m.op("Softmax", m.op("Reshape", shuffled, np.array([1, 24, 12, 12])), axis=3), m.op("Neg", shuffled)
    data = m.bytes(dense, constant, beside, bound, *twice)
    feeds = m.feeds()
    artifact = api.compile(data, threads=1, database=MemoryStore()).artifact
    assert_close(artifact.run(feeds), reference(data, feeds))


# -- what the fuzzer cannot be relied on to find in a few cases ---------------------------------------


def _refusal(nodes: list[Any], outputs: tuple[str, ...] = ("y",), **weights: np.ndarray) -> str:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError) as caught:
        import_model(proto.SerializeToString())
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


node = helper.make_node


def test_what_is_no_graph_is_refused() -> None:
    assert "reads 'z', which nothing before it gives" in _refusal([node("Relu", ["z"], ["y"])])
    cycle = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    assert "reads 'b', which nothing before it gives" in _refusal(cycle)
    assert "'y' is given twice" in _refusal([node("Relu", ["x"], ["y"]), node("Tanh", ["x"], ["y"])])
    assert "'x' is given twice" in _refusal([node("Relu", ["x"], ["x"])], ("x",))
    assert "'w' is given twice" in _refusal([node("Relu", ["x"], ["w"])], ("w",), w=np.ones(3, np.float32))
    assert "output 'z': nothing gives it" in _refusal([node("Relu", ["x"], ["y"])], ("z",))
    assert "gives no result" in _refusal([node("Relu", ["x"], [])])
    assert "of which the model names no opset" in _refusal([node("Relu", ["x"], ["y"], domain="nowhere")])
    assert "an input without a name" in _refusal([node("Concat", ["x", "", "x"], ["y"], axis=0)])
    assert "Unrecognized attribute: alpha" in _refusal([node("Relu", ["x"], ["y"], alpha=0.5)])


def test_types_that_an_operator_does_not_take_are_refused() -> None:
    message = _refusal([node("Less", ["x", "x"], ["b"]), node("Relu", ["b"], ["y"], name="gate")])
    assert "gate" in message and "unsupported type: tensor(bool)" in message


def test_names_cannot_speak_to_the_terminal() -> None:
    message = _refusal([node("Relu", ["\x1b[2J\x07"], ["y"], name="n" * 5000)])
    assert len(message) < 500


def test_shapes_of_thousands_of_dimensions_are_quoted_in_part() -> None:
    message = _refusal([node("Reshape", ["x", "size"], ["y"], name="wide")], size=np.full(3000, 2, np.int64))
    assert "node wide: operator Reshape" in message
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("operator", "size", "shape"),
    [
        ("Expand", [1 << 30, 3 << 20, 2, 3], "[1073741824, 3145728, 2, 3]"),
        ("Tile", [1 << 30, 3 << 20], "[2147483648, 9437184]"),
        ("ConstantOfShape", [1 << 30, 3 << 20], "[1073741824, 3145728]"),
    ],
)
def test_results_larger_than_the_machine_are_refused_before_they_are_computed(
    operator: str, size: list[int], shape: str
) -> None:
    operands = ["size"] if operator == "ConstantOfShape" else ["x", "size"]
    message = _refusal([node(operator, operands, ["y"])], size=np.array(size, np.int64))
    assert re.search(rf"y: float32{re.escape(shape)} takes [\d,]+ GB, this machine has [\d,]+ GB", message), message


def test_the_limit_is_the_machines_memory() -> None:
    check_size("x", "float32", (host.memory_bytes() // 4,))
    with pytest.raises(ModelError, match=r"x: float32\[\d+\] takes .* GB, this machine has"):
        check_size("x", "float32", (host.memory_bytes() // 4 + 1,))
    check_size("x", "bool", (host.memory_bytes(),))
    check_size("x", "bfloat16", (host.memory_bytes() // 2,))


def test_thousands_of_nodes_in_a_row_are_no_recursion() -> None:
    """Reading and simplifying; what TVM does with so long a function is not in question here."""
    from calumma.lowering.simplify import simplify

    names = ["x", *(f"v{i}" for i in range(2_000)), "y"]
    nodes = [node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert len(simplify(import_model(proto.SerializeToString()).graph).nodes()) == len(names)
