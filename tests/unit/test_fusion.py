"""Fusion of chains: within what TVM compiles in time, and with right results."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compiled_model import compiled
from tests.onnx_models import Model, assert_close, reference

# isort: split
from tvm import s_tir

from calumma import tvm_compat
from calumma.frontend.importer import import_model
from calumma.pipeline.extraction import ExtractedModel, extract_tasks
from calumma.space import loops


def chain(operator: str, length: int, *shape: int) -> bytes:
    """So many operators in a row on one input."""
    m = Model()
    x = m.input(*shape)
    for _ in range(length):
        x = m.op(operator, x)
    return m.bytes(x)


def extracted(model: bytes) -> ExtractedModel:
    return extract_tasks(model, tvm_compat.target_for("x86-64-v3"))


@pytest.mark.parametrize("operator, function", [("Tanh", np.tanh), ("Sigmoid", lambda x: 1 / (1 + np.exp(-x)))])
def test_a_chain_is_built_in_time_and_computes_what_numpy_says(operator, function):
    artifact = compiled(import_model(chain(operator, 7, 2, 20)))
    x = np.random.default_rng(0).standard_normal((2, 20), dtype=np.float32)
    expected = x.astype(np.float64)
    for _ in range(7):
        expected = function(expected)
    (actual,) = artifact.run({artifact.inputs[0].name: x})
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def weights(model: bytes) -> list[int]:
    """How often each distinct kernel is called."""
    return [task.weight for task in extracted(model).parts.tasks]


def test_what_fits_is_one_kernel_and_what_does_not_is_cut():
    assert weights(chain("Tanh", 4, 2, 20)) == [1]
    assert weights(chain("Tanh", 9, 2, 20)) == [2, 1], "4, 4, 1: none is alone but the last"
    assert weights(chain("Abs", 600, 4)) == [4, 1], "128 four times, 88"


def test_a_cut_chain_behind_a_convolution_leaves_it_its_epilogue():
    m = Model()
    x = m.conv(m.input(1, 32, 6, 6), (32, 32))
    for _ in range(6):
        x = m.op("Tanh", x)
    names = [task.name for task in extracted(m.bytes(x)).parts.tasks]
    assert any(name.startswith("fused_conv2d") and "tanh" in name for name in names), names
    assert any("tanh" in name and "conv2d" not in name for name in names), names


def test_the_arguments_of_a_cut_kernel_are_read_once():
    for function in extracted(chain("Tanh", 6, 2, 20)).parts.functions.values():
        sch = s_tir.Schedule(function)
        assert all(loops.points(sch, block) == 40 for block in loops.blocks_of(sch))


def test_a_diamond_counts_its_longest_side():
    m = Model()
    x = m.input(4)
    for _ in range(20):
        x = m.op("Mul", x, m.op("Abs", x))
    assert len(extracted(m.bytes(x)).parts.tasks) <= 3, "40 kernels in a row, expanded 2^20 times"


def test_an_epilogue_that_doubles_is_cut_where_it_would_be_written_out():
    """What is behind a convolution becomes one expression: twenty doublings would be a million operations."""
    m = Model()
    x = m.conv(m.input(1, 32, 4, 4), (32, 32), kernel=1)
    for i in range(20):
        x = m.op("Add" if i % 2 else "Mul", x, x)
    extraction = extracted(m.bytes(x))
    kernels = [task for task in extraction.parts.tasks if task.flops]
    assert len(kernels) == 2 and kernels[0].name.startswith("fused_conv2d"), [task.name for task in kernels]


def test_what_is_read_many_times_is_stored_before_it():
    """A tanh of a vector for every row, a sigmoid for every pixel around one, a tanh in two orders."""
    m = Model()
    row, rows, plane, square = m.input(1, 24), m.input(50, 24), m.input(1, 3, 4, 4), m.input(12, 12)
    added = m.op("Relu", m.op("Add", m.op("Relu", m.op("Tanh", row)), m.op("Abs", rows)))
    grown = m.op(
        "Resize", m.op("Sigmoid", plane), np.zeros(0, np.float32), np.array([1, 1, 4, 4], np.float32), mode="nearest"
    )
    turned = m.op("Tanh", square)
    both = m.op("Sub", turned, m.op("Transpose", turned, perm=[1, 0]))
    model = m.bytes(added, grown, both)
    names = [task.name for task in extracted(model).parts.tasks]
    assert names[0] == "fused_tanh_relu", names
    assert not any(("tanh" in name and "add" in name) or ("sigmoid" in name and "resize" in name) for name in names)
    assert not any("tanh" in name and "subtract" in name for name in names), names
    artifact, feeds = compiled(import_model(model)), m.feeds()
    actual = artifact.run(feeds)
    assert_close(list(actual), reference(model, feeds))


def test_what_is_read_once_or_costs_little_is_fused_all_the_same():
    m = Model()
    row, rows = m.input(1, 24), m.input(50, 24)
    cheap = m.op("Add", m.op("Relu", row), rows)
    parts = [m.op("Tanh", m.op("Mul", rows, np.float32(i + 2))) for i in range(3)]
    assert len(extracted(m.bytes(cheap, m.op("Concat", *parts, axis=1))).parts.tasks) == 2


def test_a_gate_is_computed_once_per_channel():
    m = Model()
    x = m.conv(m.input(1, 32, 6, 6), (32, 32), kernel=1)
    gate = m.op("Sigmoid", m.conv(m.op("GlobalAveragePool", x), (32, 32), kernel=1))
    names = [task.name for task in extracted(m.bytes(m.op("Mul", x, gate))).parts.tasks]
    assert any(name.endswith("sigmoid") for name in names), names
    assert not any("sigmoid" in name and "multiply" in name for name in names), names


def test_the_kernel_of_many_parts_is_built():
    """Of 100 arguments; the checks of 300 alone would keep LLVM busy for half a minute."""
    m, parts = Model(opset=18), 100
    pieces = m.op("Split", m.input(2, 2 * parts), outputs=parts, axis=1, num_outputs=parts)
    artifact = compiled(import_model(m.bytes(m.op("Concat", *reversed(pieces), axis=1))))
    feeds = m.feeds()
    (actual,) = artifact.run(feeds)
    np.testing.assert_array_equal(actual, feeds["input_0"].reshape(2, parts, 2)[:, ::-1].reshape(2, -1))


def test_a_chain_goes_on_behind_a_split():
    m = Model()
    x = m.input(2, 40)
    for _ in range(4):
        x = m.op("Tanh", x)
    left, right = m.op("Split", x, outputs=2, axis=1)
    for _ in range(4):
        left = m.op("Tanh", left)
    artifact = compiled(import_model(m.bytes(left, right)))
    data = np.random.default_rng(0).standard_normal((2, 40), dtype=np.float32)
    expected = data.astype(np.float64)
    for _ in range(4):
        expected = np.tanh(expected)
    halves = artifact.run({artifact.inputs[0].name: data})
    np.testing.assert_allclose(halves[1], expected[:, 20:], rtol=1e-5)
    for _ in range(4):
        expected = np.tanh(expected)
    np.testing.assert_allclose(halves[0], expected[:, :20], rtol=1e-5)
