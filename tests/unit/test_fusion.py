"""Fusion of chains: within what TVM compiles in time, and with right results."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compiled_model import compiled
from tests.onnx_models import Model

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


def test_what_fits_is_one_kernel_and_what_does_not_is_cut():
    assert len(extracted(chain("Tanh", 4, 2, 20)).parts.tasks) == 1
    assert sum(task.weight for task in extracted(chain("Tanh", 9, 2, 20)).parts.tasks) == 3
    kernels = extracted(chain("Abs", 600, 4)).parts.tasks
    assert sum(task.weight for task in kernels) == 5, "256, one apart, 256, one apart, 86"


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
