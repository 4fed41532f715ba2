"""Weights of narrow floats take their own size in the file, and are the same in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import calumma

SIZE = 256


def dense(element_type: int, dtype: str) -> bytes:
    weight = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", element_type, [4, SIZE])],
        [helper.make_tensor_value_info("y", element_type, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


@pytest.mark.parametrize(
    ("element_type", "dtype", "width"),
    [(TensorProto.FLOAT16, "float16", 2), (TensorProto.BFLOAT16, "bfloat16", 2), (TensorProto.FLOAT, "float32", 4)],
)
def test_a_file_holds_weights_in_their_own_width(tmp_path: Path, element_type: int, dtype: str, width: int) -> None:
    result = calumma.compile(dense(element_type, dtype))
    result.save(tmp_path / "dense.so")
    size = (tmp_path / "dense.so").stat().st_size
    assert size < width * SIZE * SIZE + 64 * 1024
    x = np.random.default_rng(1).standard_normal((4, SIZE)).astype(np.dtype(dtype))
    (loaded,) = calumma.load(tmp_path / "dense.so").run({"x": x})
    (built,) = result.artifact.run({"x": x})
    assert loaded.dtype == np.dtype(dtype)
    assert loaded.tobytes() == built.tobytes()
