"""Results whose shape depends on values: many outputs of one model, compared with ONNX Runtime for several inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import calumma
from calumma.artifact import Artifact
from calumma.core.errors import InputError
from tests.integration import command_line

Feeds = dict[str, NDArray]


class Model:
    """An ONNX model under construction: every result is an output."""

    def __init__(self, opset: int = 18) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray] = {}

    def add(self, operator: str, *operands: Any, outputs: int = 1, **attributes: Any) -> str:
        """A node of names, arrays and None (left out); returns the name of its first result."""
        names = ["" if x is None else x if isinstance(x, str) else self.weight(x) for x in operands]
        results = [f"{operator}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, results, **attributes))
        return results[0]

    def weight(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def bytes(self, feeds: Feeds) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in feeds.items()
            ],
            [onnx.ValueInfoProto(name=name) for node in self.nodes for name in node.output],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9
        ).SerializeToString()


def compiled(model: bytes, output: Path | None = None) -> Artifact:
    return calumma.compile(model, output=output, prior="none").artifact


def check(outputs: list[NDArray], names: list[str], expected: list[NDArray]) -> None:
    for name, ours, theirs in zip(names, outputs, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


def check_all(model: bytes, feeds: list[Feeds]) -> Artifact:
    """Compile a model and compare all outputs with ONNX Runtime's."""
    artifact = compiled(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for values in feeds:
        check(artifact.run(values), names, session.run(None, values))
    return artifact


# -- selecting ------------------------------------------------------------------------------------


def selecting() -> tuple[bytes, list[Feeds]]:
    rng = np.random.default_rng(0)
    m = Model()
    m.add("Shape", m.add("NonZero", "x"))
    m.add("Relu", m.add("Neg", m.add("Compress", "x", "mask", axis=1)))
    m.add("Compress", "x", "mask", axis=-2)
    m.add("Compress", "x", np.array([True, False, True]), axis=0)
    m.add("Compress", "x", "mask")
    m.add("Size", m.add("NonZero", "mask"))
    m.add("NonZero", "n")
    for ordered in (0, 1):
        m.add("Unique", "x", outputs=4, sorted=ordered)
        m.add("Unique", "n", outputs=4, sorted=ordered, axis=1)
    m.add("TopK", "x", "k", outputs=2, axis=1)
    m.add("TopK", "n", "k", outputs=2, axis=0, largest=0)
    feeds: list[Feeds] = []
    for k, x, mask in (
        (2, rng.integers(-1, 2, (5, 6)), rng.integers(0, 2, 4)),
        (0, np.zeros((5, 6)), np.zeros(4)),
        (3, np.ones((5, 6)), np.ones(4)),
    ):
        feeds.append(
            {
                "x": x.astype(np.float32),
                "n": np.concatenate([x[:3] + 1, x[:3] + 1], axis=1).astype(np.int64),
                "mask": mask.astype(bool),
                "k": np.array([k], np.int64),
            }
        )
    return m.bytes(feeds[0]), feeds


def test_selection() -> None:
    artifact = check_all(*selecting())
    assert artifact.outputs[0].bounded_axes == (1,)
    assert artifact.outputs[0].shape == (2, 30)


def test_special_values() -> None:
    """NaN is not zero, one NaN is as another, the largest of all; -0.0 is zero."""
    x = np.array([2, np.nan, -0.0, np.inf, 0.0, np.nan, -np.inf, 2], np.float32)
    m = Model()
    m.add("NonZero", "x")
    m.add("Unique", "x", outputs=4)
    m.add("TopK", "x", "k", outputs=2)
    m.add("TopK", "x", "k", outputs=2, largest=0)
    feeds = {"x": x, "k": np.array([8])}
    order = np.argsort(x, kind="stable")
    falling = np.array([1, 5, 3, 0, 7, 2, 4, 6])
    expected = [np.flatnonzero(x)[None], *np.unique(x, return_index=True, return_inverse=True, return_counts=True)]
    expected += [x[falling], falling, x[order], order]
    outputs = compiled(m.bytes(feeds)).run(feeds)
    for ours, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8"])
def test_best_of_long_rows(dtype: str) -> None:
    """Few of many are inserted, many are sorted; equal ones come in order; axes in the middle; k as an attribute."""
    values = np.random.default_rng(1).integers(0, 100, (3, 200, 2)).astype(dtype)
    m = Model(11)
    for k, largest in ((1, 1), (5, 0), (50, 1), (200, 0)):
        m.add("TopK", "x", np.array([k]), outputs=2, axis=1, largest=largest)
    check_all(m.bytes({"x": values}), [{"x": values}])


def test_opset_1_takes_k_as_an_attribute() -> None:
    x = np.random.default_rng(2).standard_normal((4, 9)).astype(np.float32)
    m = Model(9)
    m.add("TopK", "x", outputs=2, k=3)
    m.add("Slice", "x", starts=[1, -3], ends=[100, -1], axes=[0, 1])
    m.add("Slice", "x", starts=[1], ends=[2])
    m.add("Compress", "x", "mask", axis=1)
    mask = np.arange(9) % 3 == 0
    check_all(m.bytes({"x": x, "mask": mask}), [{"x": x, "mask": mask}, {"x": x, "mask": ~mask}])


# -- boxes ----------------------------------------------------------------------------------------


def test_boxes() -> None:
    rng = np.random.default_rng(3)
    boxes, scores = rng.random((2, 30, 4)).astype(np.float32), rng.random((2, 3, 30)).astype(np.float32)
    boxes[0, 3] = boxes[0, 4]
    boxes[0, 5, 2:] = 0
    m = Model(11)
    for centred in (0, 1):
        m.add("NonMaxSuppression", "boxes", "scores", "most", "iou", "score", center_point_box=centred)
        m.add("NonMaxSuppression", "boxes", "scores", np.array([4]), "iou", center_point_box=centred)
        m.add("NonMaxSuppression", "boxes", "scores", "most", center_point_box=centred)
    m.add("NonMaxSuppression", "boxes", "scores")
    rounded = np.round(scores, 1)
    feeds = [
        {
            "boxes": boxes,
            "scores": values,
            "most": np.array([most]),
            "iou": np.array([iou], np.float32),
            "score": np.array([score], np.float32),
        }
        for values, most, iou, score in (
            (scores, 100, 0.3, 0.5),
            (rounded, 3, 0.0, 0.5),
            (rounded, 0, 0.5, 0.0),
            (scores, 5, 1.0, 2.0),
        )
    ]
    check_all(m.bytes(feeds[0]), feeds)


# -- slices ---------------------------------------------------------------------------------------


def test_slices() -> None:
    """Bounds, axes and steps from outside; of each alone; negative, clamped, empty, backwards."""
    m = Model()
    m.add("Slice", "x", "starts", "ends", "axes", "steps")
    m.add("Slice", "x", "starts", "ends", np.array([1, 0]), np.array([2, -1]))
    m.add("Slice", "x", "starts", np.array([5, 6]))
    m.add("Slice", "x", np.array([-1, 0]), "ends", np.array([0, 1]), "steps")
    m.add("Slice", "x", np.array([1, -1]), np.array([100, -100]), np.array([0, 1]), np.array([2, -2]))
    m.add("Slice", "x", np.array([4]), np.array([1]))
    m.add("Slice", "x", np.array([1, -3]), np.array([2**63 - 1, 2**31 - 1]))
    big = np.iinfo(np.int64).max
    x = np.arange(30, dtype=np.float32).reshape(5, 6)
    feeds = [
        {name: np.array(value, np.int64) for name, value in zip(("starts", "ends", "axes", "steps"), row, strict=True)}
        | {"x": x}
        for row in (
            ((0, 1), (5, 4), (0, 1), (1, 1)),
            ((1, -4), (-1, big), (-1, 0), (2, 3)),
            ((-1, 100), (-big, 0), (1, 0), (-1, -2)),
            ((3, 2), (3, 1), (0, 1), (1, 4)),
            ((-100, -100), (100, 100), (1, 0), (big, 1)),
        )
    ]
    check_all(m.bytes(feeds[0]), feeds)


# -- what becomes of them -------------------------------------------------------------------------


def test_a_saved_artifact_gives_the_same_shapes(tmp_path: Path) -> None:
    """Its file, ONNX Runtime's calls, the command line, memory of others."""
    model, feeds = selecting()
    path = tmp_path / "model.so"
    compiled(model, path)
    artifact = calumma.load(path)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    ours = calumma.InferenceSession(path)
    for values in feeds:
        expected = session.run(None, values)
        check(artifact.run(values), names, expected)
        check(ours.run(names[:2], values), names[:2], expected[:2])
        aligned = [_aligned(values[spec.name]) for spec in artifact.inputs]
        largest = [_aligned(np.zeros(spec.shape, spec.dtype)) for spec in artifact.outputs]
        shapes = artifact.run_into(aligned, largest)
        check([a[tuple(map(slice, shape))] for a, shape in zip(largest, shapes, strict=True)], names, expected)
    assert ours.get_outputs()[0].shape == [2, None]
    for name, array in feeds[1].items():
        np.save(tmp_path / f"{name}.npy", array)
    given = [f"--input={name}={tmp_path / name}.npy" for name in feeds[1]]
    done = command_line.calumma("run", path, *given, "--repeat=1", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    check([np.load(tmp_path / "out" / f"{name}.npy") for name in names], names, session.run(None, feeds[1]))


def _aligned(array: NDArray) -> NDArray:
    memory = np.zeros(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def carrying() -> tuple[bytes, list[Feeds]]:
    rng = np.random.default_rng(4)
    m = Model()
    found = m.add("NonZero", "x")
    places = m.add("Transpose", found)
    values = m.add("GatherND", "x", places)
    rows = m.add("Gather", "x", m.add("Gather", found, np.array(0)), axis=0)
    m.add("Add", m.add("Mul", values, values), np.float32(1))
    m.add("Where", m.add("Greater", values, np.float32(0)), m.add("Abs", values), np.float32(0))
    m.add("Clip", m.add("Mul", rows, np.arange(6, dtype=np.float32)), np.float32(-1))
    m.add("Concat", values, m.add("Neg", values), values, axis=0)
    m.add("Concat", places, places, m.add("Neg", places), axis=1)
    m.add("Reshape", rows, np.array([-1, 2, 3]))
    m.add("Reshape", rows, np.array([0, 3, 2]))
    m.add("Reshape", m.add("Reshape", rows, np.array([-1])), np.array([-1, 6]))
    m.add("Reshape", found, np.array([1, 2, -1]))
    m.add("Flatten", rows)
    m.add("Squeeze", m.add("Unsqueeze", rows, np.array([0, -1])), np.array([0, 3]))
    m.add("Slice", rows, np.array([-2]), np.array([100]), np.array([0]))
    m.add("Slice", found, np.array([-1]), np.array([-100]), np.array([1]), np.array([-1]))
    m.add("Slice", found, np.array([0]), np.array([1]))
    m.add("Split", rows, np.array([2, 4]), outputs=2, axis=1)
    m.add("Pad", rows, np.array([0, 1, 0, 2]))
    m.add("Tile", found, np.array([2, 1]))
    m.add("Expand", m.add("Unsqueeze", values, np.array([0])), np.array([3, 1]))
    m.add("OneHot", m.add("Gather", found, np.array(1)), np.array(6), np.array([0, 1]), axis=0)
    best = m.add("TopK", rows, np.array([2]), outputs=2, axis=1)
    m.add("GatherElements", rows, best.removesuffix("0") + "1", axis=1)
    m.add("ScatterND", "x", places, m.add("Neg", values))
    m.add("ScatterND", "x", m.add("Sub", places, np.array([5, 6])), values, reduction="add")
    flat = m.add("Reshape", "x", np.array([-1]))
    index = m.add("Squeeze", m.add("NonZero", flat), np.array([0]))
    m.add("ScatterElements", np.ones(30, np.float32), index, m.add("Gather", flat, index))
    m.add("TopK", values, m.add("Min", m.add("Shape", values), np.array([3])), outputs=2)
    m.add("Compress", rows, m.add("Greater", values, np.float32(0)), axis=0)
    m.add("Compress", rows, m.add("Greater", values, np.float32(0)))
    m.add("NonZero", m.add("Relu", rows))
    m.add("Add", m.add("Size", rows), m.add("Shape", found, start=-1))
    feeds = [
        {"x": x.astype(np.float32)}
        for x in (rng.integers(-1, 2, (5, 6)), np.eye(5, 6), np.zeros((5, 6)), np.ones((5, 6)))
    ]
    return m.bytes(feeds[0]), feeds


def test_operators_that_allow_for_extents() -> None:
    check_all(*carrying())


def computing_shapes() -> tuple[bytes, list[Feeds]]:
    """Shapes that are put together from extents, as exporters write them."""
    m = Model()
    found = m.add("Transpose", m.add("NonZero", "x"))
    rows = m.add("Gather", "x", m.add("Gather", found, np.array(0), axis=1), axis=0)
    count = m.add("Gather", m.add("Shape", rows), np.array(0))
    width = m.add("Gather", m.add("Shape", rows), np.array(1))
    length = m.add("Unsqueeze", count, np.array([0]))
    m.add("Reshape", rows, m.add("Concat", length, np.array([3]), np.array([-1]), axis=0))
    m.add("Reshape", m.add("Unsqueeze", rows, np.array([1])), np.array([0, -1]))
    m.add("Reshape", rows, m.add("Concat", m.add("Mul", length, np.array([2])), np.array([3]), axis=0))
    m.add("Reshape", rows, m.add("Concat", np.array([-1]), m.add("Unsqueeze", width, np.array([0])), axis=0))
    m.add("Expand", np.ones((1, 4), np.float32), m.add("Concat", length, np.array([1]), axis=0))
    m.add("Expand", rows, m.add("Concat", np.array([2]), m.add("Shape", rows), axis=0))
    m.add("ConstantOfShape", m.add("Slice", m.add("Shape", rows), np.array([0]), np.array([1])))
    m.add("Range", np.array(0), count, np.array(1))
    m.add("Add", m.add("Range", np.array(3), m.add("Size", rows), np.array(4)), np.array(1))
    half = m.add("Div", m.add("Add", count, np.array(1)), np.array(2))
    m.add("Range", np.array(0), m.add("Sub", half, np.array(2)), np.array(1))
    m.add("TopK", m.add("Gather", rows, np.array(0), axis=1), m.add("Min", length, np.array([4])), outputs=2)
    feeds = [{"x": x.astype(np.float32)} for x in (np.eye(5, 6), np.eye(5, 6, 5), np.ones((5, 6)))]
    return m.bytes(feeds[0]), feeds


def test_shapes_put_together_from_extents() -> None:
    artifact = check_all(*computing_shapes())
    assert artifact.outputs[-1].shape == (4,)  # of the best, no more can be asked for


def reducing() -> tuple[bytes, list[Feeds]]:
    """What reads all of a bounded axis gets it filled with what changes nothing; images and rows go one by one."""
    rng = np.random.default_rng(5)
    m = Model()
    found = m.add("NonZero", "x")
    values = m.add("Neg", m.add("GatherND", "x", m.add("Transpose", found)))
    rows = m.add("Add", m.add("Unsqueeze", values, np.array([1])), rng.random((1, 6), np.float32))
    for operator in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"):
        positive = m.add("Abs", rows) if operator == "LogSum" else rows
        m.add(f"Reduce{operator}", positive, np.array([0]), keepdims=0)
    m.add("ReduceSum", rows, np.array([1]))
    m.add("ReduceMean", rows)
    m.add("ReduceMax", found, np.array([-1]))
    m.add("ReduceProd", rows, np.array([], np.int64), noop_with_empty_axes=1)
    m.add("ArgMax", rows, axis=0)
    m.add("ArgMin", rows, axis=0, keepdims=0)
    m.add("ArgMax", rows, axis=1)
    m.add("Softmax", rows, axis=0)
    m.add("LogSoftmax", rows)
    m.add("CumSum", rows, np.array(0), exclusive=1)
    m.add("CumSum", rows, np.array(1), reverse=1)
    m.add("MatMul", rows, rng.random((6, 3), np.float32))
    m.add("MatMul", m.add("Transpose", rows), rows)
    m.add("Gemm", rows, rng.random((3, 6), np.float32), rng.random(3, np.float32), transB=1)
    m.add("LayerNormalization", rows, np.ones(6, np.float32))
    images = m.add("Reshape", rows, np.array([-1, 1, 2, 3]))
    m.add("Conv", images, rng.random((4, 1, 2, 2), np.float32))
    m.add("MaxPool", images, kernel_shape=[2, 2])
    m.add("Resize", images, None, np.array([1, 1, 2, 2], np.float32))
    feeds = [{"x": x.astype(np.float32)} for x in (rng.integers(-1, 2, (5, 6)), np.eye(5, 6), np.ones((5, 6)))]
    return m.bytes(feeds[0]), feeds


def test_operators_that_read_all_of_an_axis() -> None:
    check_all(*reducing())


def test_what_would_read_behind_the_end_is_refused() -> None:
    m = Model()
    found = m.add("NonZero", "x")
    m.add("Add", found, m.add("NonZero", "y"))
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match=r"node Add:Add_2_0: operator Add: the extent of axis 1 is known at run time"):
        compiled(m.bytes({"x": x, "y": x}))
    m = Model()
    m.add("Unique", m.add("Compress", "x", "mask"))
    with pytest.raises(InputError, match=r"operator Unique: the extent of axis 0 is known at run time only"):
        compiled(m.bytes({"x": x, "mask": np.zeros(4, bool)}))
    m = Model()
    m.add("Range", "a", "b", "c")
    with pytest.raises(InputError, match=r"operator Range: .* is computed at run time"):
        compiled(m.bytes({name: np.array(1) for name in "abc"}))
    m = Model()
    m.add("Compress", "x", "mask", axis=0)
    with pytest.raises(InputError, match=r"operator Compress: the extent of axis 0 .* the tensor has no elements"):
        compiled(m.bytes({"x": np.zeros((2, 0), np.float32), "mask": np.zeros(2, bool)}))
