"""Reductions, matrix products, transforms and what is made of them, in every form that ONNX has had."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from calumma.frontend.importer import import_model
from tests import isas
from tests.compiled_model import compiled
from tests.integration.test_import_onnx import Zoo

REDUCTIONS = [
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
]
CONTRIB: dict[str, Any] = {"domain": "com.microsoft"}


def run(zoo: Zoo) -> list[NDArray]:
    return compiled(import_model(zoo.proto().SerializeToString())).run(zoo.feeds)


@pytest.mark.parametrize("opset", [11, 18])
def test_reductions(opset: int) -> None:
    """Axes as an attribute, later as an input; none of them; none to be reduced."""
    zoo = Zoo(opset)
    x = zoo.feed(np.abs(zoo.random(3, 4, 5)) + np.float32(0.1))
    for operator in REDUCTIONS:
        for axes, keepdims in (([1], 1), ([-1, 0], 0), (None, 1), (None, 0)):
            given = [] if axes is None or opset < 18 else [np.array(axes)]
            attributes: dict[str, Any] = {} if axes is None or given else {"axes": axes}
            zoo.add(operator, x, *given, keepdims=keepdims, **attributes)
        if opset >= 18:
            for noop in (0, 1):
                zoo.add(operator, x, np.zeros(0, np.int64), noop_with_empty_axes=noop)
    zoo.check(isas.NATIVE)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_reductions_of_what_is_no_number_and_of_nothing(isa: str) -> None:
    zoo = Zoo(18)
    nan, inf = np.nan, np.inf
    rows = [[nan, 1, 2, 3], [inf, 1, 2, 3], [-inf] * 4, [inf, -inf, 0, 0], [-200, -200, -201, -999]]
    x, empty = zoo.feed(np.array(rows, np.float32)), zoo.feed(np.zeros((2, 0, 3), np.float32))
    for operator in REDUCTIONS:
        zoo.add(operator, x, np.array([1]))
        if operator != "ReduceMean":
            zoo.add(operator, empty, np.array([1]), keepdims=0)
    for integers in (np.arange(-6, 6, dtype=np.int32).reshape(3, 4), np.arange(12, dtype=np.int64).reshape(3, 4)):
        for operator in ("ReduceSum", "ReduceMax", "ReduceMin"):
            zoo.add(operator, zoo.feed(integers), np.array([0]))
    zoo.add("ReduceMean", zoo.feed(np.arange(-7, 5, dtype=np.int32).reshape(3, 4)), np.array([1]))
    zoo.check(isa)


def test_axes_that_are_known_at_run_time() -> None:
    zoo = Zoo(18)
    x = zoo.feed(zoo.random(3, 4, 4))
    zoo.shapes[zoo.add("ReduceSum", x, zoo.feed(np.array([-1])), keepdims=0)] = (3, 4)
    zoo.shapes[zoo.add("ReduceMax", x, zoo.feed(np.array([1, 2])))] = (3, 1, 1)
    zoo.shapes[zoo.add("ReduceL1", x, zoo.feed(np.zeros(0, np.int64)), noop_with_empty_axes=1)] = (3, 4, 4)
    total = zoo.add("ReduceSumSquare", x, zoo.feed(np.array([1])))
    zoo.shapes[zoo.add("Sqrt", zoo.add("Identity", total))] = (3, 1, 4)  # which says all there is to know of the total
    for axis in (0, -1):
        zoo.add("CumSum", x, zoo.feed(np.array(axis)), exclusive=1)
    limit = zoo.feed(np.array(10, np.float32))
    turns = zoo.add("Div", zoo.add("Range", np.float32(0), limit, np.float32(1)), limit)
    zoo.shapes[zoo.add("Sub", zoo.add("Cos", turns), zoo.add("Mul", turns, np.float32(0.5)))] = (10,)
    zoo.check(isas.NATIVE)


def test_softmax_of_a_lone_row_of_float64() -> None:
    zoo = Zoo(18)
    for size in (1, 37, 64):
        x = zoo.feed(zoo.rng.standard_normal(size) * 3)
        zoo.add("LogSoftmax", x, axis=0)
        zoo.add("Softmax", x, axis=-1)
    zoo.check(isas.NATIVE, 1e-12)


def test_indices_of_extrema_and_running_sums() -> None:
    zoo = Zoo(14)
    x = zoo.feed(np.round(zoo.random(3, 4, 5) * 2))
    for operator in ("ArgMax", "ArgMin"):
        for last in (0, 1):
            zoo.add(operator, x, axis=-1, keepdims=0, select_last_index=last)
    for dtype in ("float32", "int32", "int64"):
        name = zoo.feed((zoo.random(3, 4, 5) * 9).astype(dtype))
        for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
            zoo.add("CumSum", name, np.array(1), exclusive=exclusive, reverse=reverse)
    zoo.check(isas.NATIVE)


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_of_a_matrix_and_along_an_axis(opset: int) -> None:
    zoo = Zoo(opset)
    x = zoo.feed(zoo.random(2, 3, 4, 5))
    odd = zoo.feed(np.array([[-np.inf, 0, 1], [np.nan, 1, 2], [1e4, 1, 2], [-np.inf] * 3], np.float32))
    for operator in ("Softmax", "LogSoftmax", "Hardmax"):
        zoo.add(operator, x)
        for axis in (0, 2, -1):
            zoo.add(operator, x, axis=axis)
        if operator != "Hardmax":
            zoo.add(operator, odd, axis=-1)
    zoo.check(isas.NATIVE)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_matrix_products(isa: str) -> None:
    zoo = Zoo(13)
    vector, row, matrix, batch = (zoo.feed(zoo.random(*shape)) for shape in ((4,), (1, 4), (4, 6), (2, 3, 4)))
    for left, right in ((vector, vector), (vector, matrix), (batch, vector), (batch, matrix), (row, matrix)):
        zoo.add("MatMul", left, right)
    zoo.add("MatMul", row, zoo.feed(zoo.random(4, 1)))  # one number
    zoo.add("MatMul", zoo.feed(zoo.random(5, 1, 4)), zoo.feed(zoo.random(5, 4, 1)))
    zoo.add("MatMul", vector, zoo.random(4, 3))
    zoo.add("MatMul", zoo.feed(np.arange(12, dtype=np.int32).reshape(3, 4)), np.arange(8, dtype=np.int32).reshape(4, 2))
    square = zoo.feed(zoo.random(4, 4))
    for addend in ((), (np.float32(1.5),), (zoo.random(4, 1),), (zoo.random(3),)):
        zoo.add("Gemm", square, zoo.random(3, 4), *addend, transA=1, transB=1, alpha=0.5, beta=0.3)
    zoo.add("FusedMatMul", batch, zoo.feed(zoo.random(2, 6, 4)), transB=1, alpha=0.5, **CONTRIB)
    zoo.add("Det", zoo.feed(zoo.random(3, 4, 4)))
    zoo.add("Det", zoo.feed(np.array([[0, 1], [1, 0]], np.float32)))
    zoo.add("Det", zoo.feed(np.zeros((2, 2), np.float32)))
    zoo.check(isa)


def test_einstein_sums() -> None:
    zoo = Zoo(12)
    shapes = {
        "m": (3, 4),
        "n": (4, 6),
        "b": (2, 3, 4),
        "q": (2, 5, 3, 4),
        "k": (2, 7, 3, 4),
        "s": (4, 4),
        "o": (2, 1, 4),
    }
    arrays = {name: zoo.random(*shape) for name, shape in shapes.items()}
    names = {name: zoo.feed(array) for name, array in arrays.items()}
    sums = [("ij, jk -> ik", "mn"), ("ij,jk", "mn"), ("ij->ji", "m"), ("ij->", "m"), ("ii->i", "s"), ("ii", "s")]
    sums += [("bij,jk->bik", "bn"), ("bqhd,bkhd->bhqk", "qk"), ("...ij,...jk->...ik", "bn"), ("b...->b...", "b")]
    sums += [("bij,bij->b", "bb"), ("ij,kl->ijkl", "mn"), ("...a,...a->...", "bo"), ("ij,jk,jl->il", "mns")]
    for equation, operands in sums:
        zoo.add("Einsum", *(names[name] for name in operands), equation=equation)
    for found, (equation, operands) in zip(run(zoo), sums, strict=True):
        wanted = np.einsum(equation, *(arrays[name] for name in operands))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=equation)


@pytest.mark.parametrize("opset", [17, 20])
def test_fourier_transforms(opset: int) -> None:
    zoo = Zoo(opset)
    real, parts = zoo.feed(zoo.random(2, 9, 1)), zoo.feed(zoo.random(2, 9, 2))
    forms: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        (real, None, {"onesided": 1}),
        (parts, None, {}),
        (parts, None, {"inverse": 1}),
        (parts, np.array(6), {}),
        (real, np.array(12), {}),
    )
    for x, length, attributes in forms:
        axis: tuple[list[Any], dict[str, Any]] = ([], {"axis": 1}) if opset == 17 else ([np.array(1)], {})
        zoo.add("DFT", x, length, *axis[0], **axis[1], **attributes)
    signal, window = zoo.feed(zoo.random(2, 64, 1)), np.hanning(16).astype(np.float32)
    zoo.add("STFT", signal, np.array(8), window)
    zoo.add("STFT", signal, np.array(8), None, np.array(16), onesided=0)
    zoo.add("STFT", signal, np.array(8), zoo.feed(window))
    zoo.check(isas.NATIVE)


def test_losses() -> None:
    zoo = Zoo(13)
    x, labels = zoo.feed(zoo.random(3, 5, 2)), zoo.feed(np.array([[0, 4], [2, 2], [1, -1]]))
    weight = np.abs(zoo.random(5))
    for reduction in ("none", "sum", "mean"):
        zoo.add("SoftmaxCrossEntropyLoss", x, labels, weight, outputs=2, reduction=reduction, ignore_index=-1)
        zoo.add("NegativeLogLikelihoodLoss", x, labels, reduction=reduction, ignore_index=-1)
    zoo.check(isas.NATIVE)


def test_transformers_of_onnx_runtime() -> None:
    zoo = Zoo(17)
    x, skip = zoo.feed(zoo.random(2, 5, 8)), zoo.feed(zoo.random(2, 5, 8))
    scale, shift, bias = (zoo.random(8) for _ in range(3))
    zoo.nodes.append(
        onnx.helper.make_node(
            "SkipLayerNormalization",
            [x, skip, *map(zoo.weight, (scale, shift, bias))],
            ["skipped", "", "", "sum"],
            epsilon=1e-5,
            **CONTRIB,
        )
    )
    zoo.add("SkipLayerNormalization", x, skip, scale, **CONTRIB)
    words = zoo.feed(np.array([[1, 2, 3, 0], [4, 5, 6, 2]], np.int32))
    segments, mask = (
        zoo.feed(np.array([[0, 0, 1, 1], [0, 1, 1, 0]], np.int32)),
        zoo.feed(np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)),
    )
    tables = [zoo.random(rows, 8) for rows in (9, 6, 2)]
    zoo.add("EmbedLayerNormalization", words, segments, *tables, scale, shift, mask, outputs=2, **CONTRIB)
    weight, projected = zoo.random(8, 24), zoo.random(24)
    hidden = zoo.feed(np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int32))
    zoo.add("Attention", x, weight, projected, num_heads=2, unidirectional=1, **CONTRIB)
    zoo.add("Attention", x, weight, projected, hidden, num_heads=4, scale=0.3, mask_filter_value=-5.0, **CONTRIB)
    for operator, others in (("Gelu", ()), ("BiasGelu", (bias,)), ("FastGelu", (bias,)), ("QuickGelu", ())):
        zoo.add(operator, x, *others, **CONTRIB)
    data = zoo.proto()
    kept = [output for output in data.graph.output if output.name]
    del data.graph.output[:]
    data.graph.output.extend(kept)
    zoo.proto = lambda **_: data  # type: ignore[method-assign]
    zoo.check(isas.NATIVE)
