"""bf16: networks whose contractions read bfloat16, from a model to outputs near float32's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

import calumma
from calumma import api
from calumma.artifact import Artifact
from calumma.cli import main
from calumma.core.contraction import BFLOAT16
from calumma.core.errors import InputError
from calumma.core.values import Budget, Status
from calumma.database import MemoryStore
from calumma.peers import peers, race
from calumma.pipeline import CompileOptions
from calumma.pipeline.preparation import prepare
from tests import isas
from tests.onnx_models import Model, assert_close, reference

runs_bfloat16 = pytest.mark.skipif(isas.target().dot_product(BFLOAT16) is None, reason="this CPU has no AVX512_BF16")
OTHER = "cooperlake"
"""A CPU that has AVX512_BF16, for what is compiled and not run: on any machine."""
TOLERANCE = 2e-2


def residual_network(m: Model) -> tuple[str, ...]:
    """An image of 3 channels, holes in the blocks, pooling, a residual, Winograd's window, a concatenation, a dense
    layer; a value that contractions and others read is an output too."""
    x = m.op("Relu", m.conv(m.input(1, 3, 18, 18), (3, 24), strides=[2, 2]))
    x = m.op("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1])
    y = m.op("Relu", m.conv(x, (24, 40)))
    z = m.op("Relu", m.op("Add", m.conv(y, (40, 40), 1), y))
    joined = m.op("Concat", z, m.conv(z, (40, 24)), axis=1)
    pooled = m.op("GlobalAveragePool", m.op("Relu", m.conv(joined, (64, 48), 1)))
    return m.linear(m.op("Flatten", pooled), (48, 10)), z


def transformer_block(m: Model) -> tuple[str, ...]:
    """Products with constant weights and without, GELU, which binds variables, a depth that is odd."""
    x = m.input(1, 12, 32)
    scores = m.op("Softmax", m.op("MatMul", m.linear(x, (32, 32)), m.op("Transpose", x, perm=[0, 2, 1])), axis=-1)
    y = m.op("Add", m.linear(m.op("MatMul", scores, x), (32, 32)), x)
    hidden = m.linear(y, (32, 33))
    half = m.op("Mul", hidden, np.float32(0.5))
    gelu = m.op("Mul", half, m.op("Add", m.op("Erf", m.op("Div", hidden, np.float32(2**0.5))), np.float32(1)))
    return (m.linear(m.op("Relu", m.linear(gelu, (33, 48))), (48, 32)),)


def run(artifact: Artifact, feeds: dict[str, NDArray]) -> list[NDArray]:
    """Run in a Python thread of its own: a thread's pool of workers never grows, and other tests ask for pools of 1."""
    with ThreadPoolExecutor(1) as thread:
        return list(thread.submit(artifact.run, feeds).result())


NETWORKS = {"residual": residual_network, "transformer": transformer_block}


def build(name: str) -> tuple[Model, bytes]:
    model = Model()
    return model, model.bytes(*NETWORKS[name](model))


@runs_bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_near_float32s(name):
    model, data = build(name)
    narrow = api.compile(data, precision="bf16", threads=2, database=MemoryStore())
    full = api.compile(data, threads=2, database=MemoryStore())
    feeds = model.feeds()
    expected = reference(data, feeds)
    outputs = run(narrow.artifact, feeds)
    assert_close(outputs, expected, TOLERANCE)
    # Weights are rounded: were the outputs float32's, nothing would have been narrow.
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(outputs, expected, strict=True)) > 1e-4
    assert sum(p.nbytes for p in narrow.lowered.params) < 0.8 * sum(p.nbytes for p in full.lowered.params)


def test_only_what_contractions_read_is_narrow():
    """The first layer's image and the outputs are float32; between layers there are no kernels that only convert."""
    _, data = build("residual")
    prepared = prepare(data, CompileOptions(threads=2, mcpu=OTHER, precision="bf16"))
    names = [task.name for task in prepared.tasks]
    assert not any(name.startswith(("narrow", "widen")) for name in names)
    (first,) = (task for task in prepared.tasks if task.arguments[0][0] == (1, 3, 18, 18))
    assert [dtype for _, dtype in first.arguments] == ["float32", "float32", "float32", "bfloat16"]
    contractions = [task for task in prepared.tasks if task.anchor in ("conv2d", "matmul") and task is not first]
    assert sum(task.weight for task in contractions) == 5
    assert all([dtype for _, dtype in task.arguments[:2]] == ["bfloat16"] * 2 for task in contractions)


def test_of_two_joined_convolutions_one_is_stored():
    m = Model()
    x = m.op("Relu", m.conv(m.input(1, 32, 8, 8), (32, 32)))
    data = m.bytes(m.op("Relu", m.op("Add", m.conv(x, (32, 64), 1), m.conv(x, (32, 64), 1))))
    prepared = prepare(data, CompileOptions(threads=2, mcpu=OTHER, precision="bf16"))
    joins = [task for task in prepared.tasks if "widen" in task.name]
    assert [[dtype for _, dtype in task.arguments] for task in joins] == [
        ["bfloat16", "bfloat16", "float32", "bfloat16", "float32"]
    ]


def test_what_one_contraction_is_joined_with_itself_stays_in_its_kernel():
    m = Model()
    x = m.linear(m.input(4, 32), (32, 32))
    prepared = prepare(
        m.bytes(m.op("Mul", x, m.op("Sigmoid", x))), CompileOptions(threads=2, mcpu=OTHER, precision="bf16")
    )
    assert [task.anchor for task in prepared.tasks] == ["injective", "matmul"]


def test_it_is_another_workload_and_another_tuned_model():
    _, data = build("residual")
    full, narrow = (
        prepare(data, CompileOptions(threads=2, mcpu=OTHER, precision=precision)) for precision in ("fp32", "bf16")
    )
    contractions = {task.workload.hash for task in narrow.tasks if task.anchor in ("conv2d", "matmul")}
    assert not contractions & {task.workload.hash for task in full.tasks if task.arguments[0][0] != (1, 3, 18, 18)}
    assert (full.metadata({}, {})["precision"], narrow.metadata({}, {})["precision"]) == ("fp32", "bf16")


def test_a_dot_product_costs_half():
    """Bounds count a pair of products as one: the instruction does both."""
    m = Model()
    data = m.bytes(m.op("MatMul", m.input(256, 1024), m.random(1024, 1024)))
    bounds = [
        max(prepare(data, CompileOptions(threads=2, mcpu=OTHER, precision=precision)).bounds.values())
        for precision in ("fp32", "bf16")
    ]
    assert bounds[1] == pytest.approx(bounds[0] / 2, rel=0.01)


@runs_bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_tuned_schedules_are_verified_and_right(name):
    model, data = build(name)
    store = MemoryStore()
    result = api.tune(data, budget=Budget(trials=24), precision="bf16", threads=1, database=store, prior="none")
    assert {record.result.status for record in store.records()} == {Status.OK}
    feeds = model.feeds()
    assert_close(run(result.artifact, feeds), reference(data, feeds), TOLERANCE)


@runs_bfloat16
def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALUMMA_DB", str(tmp_path / "user.sqlite"))
    model, data = build("residual")
    path, out = tmp_path / "model.onnx", tmp_path / "model.so"
    path.write_bytes(data)
    assert main(["compile", str(path), "-o", str(out), "--precision", "bf16", "--threads", "2"]) == 0
    artifact = calumma.load(out, threads=2)
    assert artifact.metadata["precision"] == "bf16"
    feeds = model.feeds()
    assert_close(run(artifact, feeds), reference(data, feeds), TOLERANCE)
    assert main(["run", str(out), "--repeat", "2", "--profile", "--threads", "1"]) == 0
    assert "bf16" in capsys.readouterr().out


@runs_bfloat16
def test_a_region_of_torch_compile(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALUMMA_DB", str(tmp_path / "user.sqlite"))
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32)).eval()
    x = torch.randn(8, 64)
    with torch.inference_mode():
        expected = model(x).numpy()
        outputs = [
            torch.compile(model, backend="calumma", options={"precision": precision, "threads": 1})(x).numpy()
            for precision in ("fp32", "bf16")
        ]
    errors = [np.abs(output - expected).max() / np.abs(expected).max() for output in outputs]
    assert errors[0] < 1e-5 < 1e-4 < errors[1] < TOLERANCE


@pytest.mark.parametrize("mcpu", isas.LEVELS)
def test_a_cpu_without_it_is_refused(mcpu, tmp_path, capsys):
    _, data = build("transformer")
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    options = ["--precision", "bf16", "--mcpu", mcpu]
    assert main(["compile", str(path), "-o", str(tmp_path / "model.so"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith(f"precision='bf16': {mcpu} has no bfloat16 dot product, which it needs; use fp32")
    with pytest.raises(InputError, match="precision='int8': there is no such precision; one of fp32, bf16"):
        api.tasks(path, precision="int8")


@runs_bfloat16
def test_openvino_in_bf16_is_a_peer(tmp_path):
    model, data = build("residual")
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    pytest.importorskip("openvino")
    # In processes of their own: once OpenVINO has run in this one, a signal ends it.
    result = race(peers(["openvino", "openvino-bf16"], path), [model.feeds()], threads=2, rounds=1, turn_s=0.01)
    assert result.row("openvino").difference < 1e-5
    assert 1e-4 < result.row("openvino-bf16").difference <= TOLERANCE
