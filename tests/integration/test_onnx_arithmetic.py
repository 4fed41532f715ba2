"""Elementwise operators, casts and quantised numbers, of every type and with what no number is."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calumma.core.errors import ModelError
from calumma.frontend.importer import import_model
from tests import isas
from tests.compiled_model import compiled
from tests.integration.test_import_onnx import Zoo

SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-5, -0.3, 0.999, -88.0, 100.0, 1e30, -1e30, 3.0],
    np.float32,
)
INTEGERS = ("int8", "int32", "int64", "uint8", "uint32", "uint64")


def run(zoo: Zoo) -> list[NDArray]:
    return compiled(import_model(zoo.proto().SerializeToString())).run(zoo.feeds)


def test_remainder_of_floats_with_the_sign_of_the_divisor() -> None:
    zoo = Zoo(28)
    for dtype in (np.float32, np.float64):
        left, right = (grid.astype(dtype) for grid in np.meshgrid(SPECIAL, [3.0, -0.7, np.inf, -np.inf, 0.0, np.nan]))
        rest = zoo.add("Mod", zoo.feed(left), zoo.feed(right))
        zoo.add("Less", zoo.add("Reciprocal", rest), np.zeros((), dtype))  # of a zero it tells the sign
    zoo.check(isas.NATIVE, by_standard=True)


@pytest.mark.parametrize("isa", isas.ISAS)
def test_what_is_no_number_goes_through(isa: str) -> None:
    zoo = Zoo(20)
    x, y = zoo.feed(SPECIAL), zoo.feed(np.roll(SPECIAL, 5))
    names = (
        "Abs Ceil Exp Floor Log Neg Sqrt Tanh Sigmoid Relu Acos Acosh Asin Asinh Atan Atanh Cos Sin Tan Erf Round Sign"
    )
    for operator in names.split():
        zoo.add(operator, x)
    for operator in [
        "Reciprocal",
        "Softsign",
        "Softplus",
        "HardSwish",
        "HardSigmoid",
        "Selu",
        "Elu",
        "Celu",
        "ThresholdedRelu",
        "Shrink",
    ]:
        zoo.add(operator, x)
    zoo.add("LeakyRelu", x, alpha=-0.3)
    zoo.add("Gelu", zoo.feed(zoo.random(20)), approximate="tanh")
    for operator in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Less", "GreaterOrEqual"):
        zoo.add(operator, x, y)
    zoo.add("Mod", x, y, fmod=1)
    zoo.add("PRelu", x, y)
    zoo.add("Max", x, y, np.float32(1))
    for low, high in ((-1.5, None), (None, 0.7), (0.7, -1.5), (np.nan, 0.7)):
        zoo.add("Clip", x, *(bound if bound is None else np.float32(bound) for bound in (low, high)))
    zoo.add("IsNaN", x)
    for negative, positive in ((1, 1), (0, 1), (1, 0), (0, 0)):
        zoo.add("IsInf", x, detect_negative=negative, detect_positive=positive)
    zoo.add("Cast", x, to=TensorProto.BOOL)
    zoo.check(isa)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around_and_are_divided_as_onnx_runtime_does(dtype: str) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    values = np.array([info.min, info.max, *rng.integers(max(info.min, -99), 99, 30)], dtype)
    zoo = Zoo(18)
    x, y = zoo.feed(values), zoo.feed(np.roll(values, 3))
    for operator in ("Add", "Sub", "Mul", "Max", "Min", "Equal", "Less", "BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        zoo.add(operator, x, y)
    for operator in ("Abs", "Sign", "BitwiseNot", *(("Neg",) if info.min else ())):
        zoo.add(operator, x)
    zoo.add("Clip", x, np.array(3, dtype), np.array(9, dtype))
    divisor = zoo.feed(np.where(np.isin(zoo.feeds[y], [0, -1] if info.min else [0]), 7, zoo.feeds[y]).astype(dtype))
    zoo.add("Div", x, divisor)
    zoo.add("Mod", x, divisor)
    if not info.min:
        zoo.add("BitShift", x, np.array(2, dtype), direction="LEFT")
        zoo.add("BitShift", x, np.array(1, dtype), direction="RIGHT")
    zoo.check(isas.NATIVE)


def test_a_division_by_zero_is_zero_and_the_lowest_by_minus_one_wraps() -> None:
    zoo = Zoo(18)
    expected = []
    for dtype in INTEGERS:
        lowest = np.iinfo(dtype).min
        x, y = zoo.feed(np.array([lowest, 5, 7], dtype)), zoo.feed(np.array([-1, 0, 2]).astype(dtype))
        for operator, results in (("Div", [lowest, 0, 3]), ("Mod", [0, 0, 1])):
            zoo.add(operator, x, y)
            expected.append(np.array(results, dtype))
    wide = zoo.feed(np.array([1, 3, 255, 255], np.uint8))
    zoo.add("BitShift", wide, zoo.feed(np.array([7, 8, 200, 3], np.uint8)), direction="LEFT")
    expected.append(np.array([128, 0, 0, 248], np.uint8))
    for found, wanted in zip(run(zoo), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_powers_of_mixed_types() -> None:
    zoo = Zoo(15)
    i, f = zoo.feed(np.arange(-3, 4, dtype=np.int32)), zoo.feed(np.linspace(0.5, 2, 7, dtype=np.float32))
    zoo.add("Pow", i, zoo.feed(np.array([2, 3, 0, 5, 7, 10, 2], np.int64)))
    zoo.add("Pow", i, np.int32(2))
    zoo.add("Pow", f, i)
    zoo.add("Pow", f, np.int64(3))
    zoo.add("Pow", i, f)
    zoo.check(isas.NATIVE)


@pytest.mark.parametrize("operator", ["Add", "Div"])
def test_broadcasting_before_opset_7(operator: str) -> None:
    zoo = Zoo(6)
    x, inner = zoo.random(2, 3, 4, 5), zoo.random(3, 4)
    name = zoo.feed(x)
    zoo.add(operator, name, zoo.weight(inner), broadcast=1, axis=1)
    zoo.add(operator, name, zoo.weight(x[0, 0]), broadcast=1)
    function = np.add if operator == "Add" else np.divide
    for found, wanted in zip(run(zoo), (function(x, inner[:, :, None]), function(x, x[0, 0])), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_casts_between_all_types() -> None:
    kinds = ("INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "BOOL", "FLOAT", "DOUBLE")
    values = np.array([0, 1, 1.9, 100.7, 0.5, 127, -1.9, -100.7, -128])
    zoo = Zoo(21)
    for dtype in (*INTEGERS, "bool", "float16", "float32", "float64"):
        x = zoo.feed(values[: 6 if dtype.startswith("u") else None].astype(dtype))
        for kind in kinds:
            zoo.add("Cast", x, to=getattr(TensorProto, kind))
    odd = zoo.feed(np.array([np.nan, np.inf, -np.inf, 1e10, -1e10], np.float32))
    zoo.add("Cast", odd, to=TensorProto.INT32)
    zoo.add("Cast", odd, to=TensorProto.INT64)
    zoo.check(isas.NATIVE, tolerance=0)


SMALL_FLOATS = {
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
    "FLOAT8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "FLOAT16": np.float16,
    "BFLOAT16": ml_dtypes.bfloat16,
}


def test_floats_are_rounded_to_the_nearest_of_few_bits() -> None:
    """Values of float16, what lies between them, and what is beyond, against NumPy."""
    exact = np.arange(0, 1 << 16, 7, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = exact[np.isfinite(exact)] * np.float32(1.0009)
    x = np.concatenate([exact, between, SPECIAL, np.array([65519, 65520, 3.4e38, 1e-40], np.float32)])
    zoo = Zoo(21)
    name = zoo.feed(x.astype(np.float32))
    expected = []
    for kind, dtype in SMALL_FLOATS.items():
        for saturate in (1, 0) if "8" in kind else (1,):
            attributes: dict[str, Any] = {} if saturate else {"saturate": 0}
            narrow = zoo.add("Cast", name, to=getattr(TensorProto, kind), **attributes)
            zoo.add("Cast", narrow, to=TensorProto.FLOAT)
            with np.errstate(all="ignore"):
                most = float(ml_dtypes.finfo(dtype).max)
                held = np.clip(x, -most, most) if saturate and "8" in kind else x
                expected.append(held.astype(dtype).astype(np.float32))
    proto = zoo.proto()
    wide = [output for output in proto.graph.output if output.type.tensor_type.elem_type == TensorProto.FLOAT]
    del proto.graph.output[:]
    proto.graph.output.extend(wide)
    results = compiled(import_model(proto.SerializeToString())).run(zoo.feeds)
    for output, found, wanted in zip(wide, results, expected, strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=output.name)


def test_quantised_numbers() -> None:
    zoo = Zoo(21)
    x = zoo.feed(np.concatenate([zoo.random(2, 3, 8) * 3, np.tile(SPECIAL[:8] * 0.02, (1, 3, 1))]))
    scales, points = np.array([0.02, 0.1, 0.3], np.float32), np.array([3, 1, 2])
    for dtype in ("int8", "uint8", "int16", "uint16"):
        q = zoo.add("QuantizeLinear", x, np.float32(0.05), np.array(3, dtype))
        zoo.add("DequantizeLinear", q, np.float32(0.05), np.array(3, dtype))
        if dtype.endswith("t8"):  # of 16 bits, ONNX Runtime lets infinity overflow
            zoo.add("QuantizeLinear", x, scales, points.astype(dtype), axis=-2)
    zoo.add("QuantizeLinear", x, np.float32(0.05))
    blocks = np.abs(zoo.random(3, 3, 2)) + np.float32(0.01)
    q = zoo.add("QuantizeLinear", x, blocks, np.arange(18).reshape(3, 3, 2).astype(np.int8), axis=2, block_size=4)
    zoo.add("DequantizeLinear", q, blocks, axis=2, block_size=4)
    zoo.add("DequantizeLinear", zoo.feed(np.arange(-5, 5, dtype=np.int32)), np.float32(0.1))
    zoo.add("DynamicQuantizeLinear", zoo.feed(zoo.random(4, 5)), outputs=3)
    zoo.check(isas.NATIVE)


def test_contractions_of_quantised_numbers_are_exact() -> None:
    zoo = Zoo(13)
    a = zoo.feed(zoo.rng.integers(0, 255, (2, 5, 300), np.uint8))
    b = zoo.rng.integers(-128, 127, (300, 6), np.int8)
    az, bz, each = np.uint8(12), np.int8(-3), np.arange(-2, 4, dtype=np.int8)
    for others in ((), (az,), (az, bz), (az, each)):
        zoo.add("MatMulInteger", a, b, *others)
    scales = [np.float32(s) for s in (0.01, 0.02, 0.9)]
    zoo.add("QLinearMatMul", a, scales[0], az, b, scales[1], bz, scales[2], np.uint8(100))
    image = zoo.feed(zoo.rng.integers(0, 255, (1, 4, 7, 8), np.uint8))
    weight = zoo.rng.integers(-127, 127, (6, 4, 3, 3), np.int8)
    own = np.arange(1, 7, dtype=np.float32) * np.float32(0.004)
    bias = zoo.rng.integers(-900, 900, 6, np.int32)
    y = (np.float32(0.2), np.uint8(128))
    zoo.add("ConvInteger", image, weight.view(np.uint8), az, np.uint8(9), strides=[2, 2], pads=[1, 0, 1, 2])
    zoo.add("ConvInteger", image, weight.view(np.uint8)[:, :2], az, np.uint8(9), group=2)
    zoo.add("QLinearConv", image, scales[0], az, weight, own, np.zeros(6, np.int8), *y, bias, strides=[2, 1])
    without_ties = (0.0213, 0.0317)
    left, right = ((zoo.feed(zoo.rng.integers(0, 255, 9, np.uint8)), np.float32(s), az) for s in without_ties)
    zoo.add("QLinearAdd", *left, *right, *y, domain="com.microsoft")
    zoo.add("QLinearMul", *left, *right, *y, domain="com.microsoft")
    zoo.check(isas.NATIVE)


@pytest.mark.parametrize(
    ("operator", "operands", "attributes", "flaw"),
    [
        ("Mod", [np.ones(2, np.float32)] * 2, {}, "wants fmod=1"),
        (
            "QuantizeLinear",
            [np.ones((2, 3), np.float32), np.ones(2, np.float32)],
            {"axis": 1},
            "scales (2,) for axis 1",
        ),
        ("Clip", [np.ones(3, np.float32), np.ones(3, np.float32)], {}, "a bound has shape (3,)"),
    ],
)
def test_what_is_refused(operator: str, operands: list[Any], attributes: dict[str, Any], flaw: str) -> None:
    names = [f"x{i}" for i in range(len(operands))]
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names, operands, strict=True)
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)], "g", given, [onnx.ValueInfoProto(name="y")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=8)
    with pytest.raises(ModelError, match="operator") as refusal:
        import_model(model.SerializeToString())
    assert flaw in str(refusal.value)
