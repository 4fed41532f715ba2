"""The extensions of `examples/`, used as a user would: in a process of its own, through the public interface."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import isas
from tests.onnx_models import Model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def environment(folder: Path, module: str, path: Path | None = None) -> dict[str, str]:
    """Variables of a process with an extension, and with records of its own."""
    found = [str(path)] if path is not None else []
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*found, *sys.path]),
        "CALUMMA_EXTENSIONS": module,
        "CALUMMA_DB": str(folder / "records.sqlite"),
        "COLUMNS": "200",
    }


def run(code: str, extension: str, folder: Path) -> str:
    """Run a program that finds calumma's extension by its name in the environment; returns what it printed."""
    example, _, module = extension.partition(":")
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(folder, module, EXAMPLES / example),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def wave(folder: Path) -> None:
    """A one-dimensional convolution with bias and ReLU, its input and what it should give, in `folder`."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((40, 12, 5), dtype=np.float32), rng.standard_normal(40, dtype=np.float32)
    x = rng.standard_normal((2, 12, 50), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight", "bias"], ["y"], pads=[2, 2], strides=[2]),
            helper.make_node("Relu", ["y"], ["z"]),
        ],
        "wave",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (2, 40, 25))],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "wave.onnx").write_bytes(model.SerializeToString())
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=2)[:, :, ::2]
    expected = np.maximum(np.einsum("ncxk,ock->nox", windows, weight) + bias[:, None], 0)
    np.savez(folder / "wave.npz", x=x, expected=expected)


def test_the_how_to_page_makes_the_example() -> None:
    page = (ROOT / "docs/howto/new-operator.md").read_text()
    written = [block.strip("\n") for block in re.findall(r"```python file=conv1d\.py\n(.*?)```", page, flags=re.DOTALL)]
    assert "\n\n\n".join(written) + "\n" == (EXAMPLES / "operator/conv1d.py").read_text()


@pytest.mark.parametrize("isa", isas.ISAS)
def test_an_operator_computes_what_numpy_says(isa: str, tmp_path: Path) -> None:
    wave(tmp_path)
    mcpu = None if isa == isas.NATIVE else isa
    code = f"""
import numpy as np, calumma
from calumma.api import tasks
known = np.load("wave.npz")
listing = tasks("wave.onnx", threads=2, mcpu={mcpu!r})
assert listing.rows[0].anchor == "conv1d" and not listing.left_to_tvm, listing
(z,) = calumma.compile("wave.onnx", threads=2, mcpu={mcpu!r}).artifact.run({{"x": known["x"]}})
np.testing.assert_allclose(z, known["expected"], rtol=1e-4, atol=1e-4)
"""
    run(code, "operator:conv1d", tmp_path)


def test_workers_measure_an_operators_configurations(tmp_path: Path) -> None:
    wave(tmp_path)
    code = """
import calumma
from calumma.database import MemoryStore
store = MemoryStore()
result = calumma.tune("wave.onnx", budget=calumma.Budget(trials=4), threads=2, database=store)
records = store.records()
assert len({tuple(r.candidate.config.values()) for r in records if r.candidate.template == "conv1d"}) >= 3
assert all(r.result.status == "ok" for r in records), [r.result.reason for r in records]
"""
    run(code, "operator:conv1d", tmp_path)


def test_without_the_extension_a_convolution_over_two_axes_is_made_of_it(tmp_path: Path) -> None:
    wave(tmp_path)
    command = [sys.executable, "-m", "calumma", "tasks", "wave.onnx", "--explain"]
    shown = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path, ""), capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"^conv2d +conv2d ", shown, re.MULTILINE) and "conv1d" not in shown, shown


@pytest.mark.parametrize("isa", isas.ISAS)
def test_a_contraction_reads_half_precision(isa: str, tmp_path: Path) -> None:
    options = f'threads=2, precision="fp16", mcpu={None if isa == isas.NATIVE else isa!r}'
    m = Model()
    x = m.op("Relu", m.conv(m.input(1, 32, 10, 10), (32, 48), 1))
    y = m.op("Relu", m.conv(x, (48, 48)))
    z = m.linear(m.op("Flatten", m.op("GlobalAveragePool", y)), (48, 10))
    (tmp_path / "model.onnx").write_bytes(m.bytes(z))
    code = f"""
import numpy as np, calumma
x = np.random.default_rng(0).standard_normal((1, 32, 10, 10), dtype=np.float32)
full = calumma.compile("model.onnx", threads=2)
half = calumma.compile("model.onnx", {options})
(name,) = (spec.name for spec in full.artifact.inputs)
(a,), (b,) = (c.artifact.run({{name: x}}) for c in (full, half))
assert 0 < np.abs(a - b).max() < 1e-2 * np.abs(a).max()
from calumma.pipeline import CompileOptions
from calumma.pipeline.preparation import prepare
prepared = prepare("model.onnx", CompileOptions({options}))
assert [str(p.dtype) for p in prepared.graph.params].count("float16") == 3
if {isa == isas.NATIVE}:  # workers measure and verify it too
    tuned = calumma.tune("model.onnx", {options}, budget=calumma.Budget(trials=4))
    (c,) = tuned.artifact.run({{name: x}})
    assert np.abs(a - c).max() < 1e-2 * np.abs(a).max()
"""
    run(code, "contraction:half", tmp_path)


@pytest.mark.skipif("x86-64-v3" not in isas.RUNNABLE, reason="this CPU cannot run code for a Haswell")
def test_a_cpu_has_costs_of_its_own(tmp_path: Path) -> None:
    wave(tmp_path)
    code = """
import numpy as np, calumma
from calumma import tvm_compat
known = np.load("wave.npz")
(z,) = calumma.compile("wave.onnx", threads=2, mcpu="haswell").artifact.run({"x": known["x"]})
np.testing.assert_allclose(z, known["expected"], rtol=1e-4, atol=1e-4)
ours, theirs = tvm_compat.target_for("haswell"), tvm_compat.target_for("x86-64-v3")
assert (ours.costs.tile.accumulators, ours.registers, ours.lanes) == (10, 16, 8)
assert theirs.costs.tile.accumulators != 10
assert type(ours).from_text(ours.to_text()) == ours
"""
    run(code, "cpu:haswell", tmp_path)


def test_an_extension_that_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    wave(tmp_path)
    command = [sys.executable, "-m", "calumma", "tasks", "wave.onnx"]
    variables = environment(tmp_path, "no_such_module")
    process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "extension no_such_module cannot be imported" in process.stderr
    assert "Traceback" not in process.stderr
