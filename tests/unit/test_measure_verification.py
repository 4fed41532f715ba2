"""Inputs for verification and the judgement of outputs."""

from __future__ import annotations

import numpy as np
import pytest

from calumma.measure import verification as v


def test_arguments_are_reproducible_and_differ_from_each_other() -> None:
    first = v.random_array((8, 16), "float32", 1, 0)
    assert np.array_equal(first, v.random_array((8, 16), "float32", 1, 0))
    assert not np.array_equal(first, v.random_array((8, 16), "float32", 1, 1))
    assert first.dtype == np.float32
    assert first.min() < 0 < first.max()


def test_positive_arguments_are_positive() -> None:
    assert v.random_array((64,), "float32", 1, 0, positive=True).min() > 0


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_integers_stay_inside_any_axis(dtype: str) -> None:
    assert set(np.unique(v.random_array((64,), dtype, 1, 0).astype(int))) == {0, 1}


def test_arguments_are_as_large_as_a_function_wants_them() -> None:
    floats = v.random_array((64,), "float32", 1, 0, magnitude=0.25)
    np.testing.assert_array_equal(floats, v.random_array((64,), "float32", 1, 0) / 4)
    assert set(np.unique(v.random_array((256,), "int32", 1, 0, magnitude=3))) == {0, 1, 2, 3}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int32", "int64", "bool"])
def test_an_unwritten_output_is_wrong(dtype: str) -> None:
    reference = np.ones((4, 4), dtype)
    assert v.judge([reference.copy()], [reference], [dtype]) == ""
    assert v.judge([v.poisoned((4, 4), dtype)], [reference], [dtype]) != ""


def test_one_wrong_element_in_a_million_is_wrong() -> None:
    reference = np.ones(1_000_000, np.float32)
    output = reference.copy()
    output[123_456] = 1.01
    assert "relative error 0.01" in v.judge([output], [reference], ["float32"])


def test_rounding_is_right() -> None:
    reference = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert v.judge([reference * np.float32(1.0005)], [reference], ["float32"]) == ""


def test_the_second_output_counts_too() -> None:
    ones = np.ones(4, np.float32)
    assert v.judge([ones, 2 * ones], [ones, ones], ["float32"] * 2).startswith("output 1")


def test_zeros_and_infinities_prove_nothing() -> None:
    assert v.usable([np.ones(3, np.float32)])
    assert not v.usable([np.zeros(3, np.float32)])
    assert not v.usable([np.array([1.0, np.inf], np.float32)])
