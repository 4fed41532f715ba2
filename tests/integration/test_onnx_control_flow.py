"""If, Loop and Scan from ONNX, beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import calumma
from calumma.core.errors import ArtifactError, ModelError

F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node


def value(name: str, kind: int = F, shape: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], **constants: Any) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )


def model(top: onnx.GraphProto, opset: int = 17) -> bytes:
    made = helper.make_model(top, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return bytes(made.SerializeToString())


def check(data: bytes, *feeds: dict[str, Any], kernels: Sequence[str] = (), without: Sequence[str] = ()) -> None:
    """Compile once; every run is what ONNX Runtime gives, shapes and types included."""
    artifact = calumma.compile(data).artifact
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for feed in feeds:
        wanted, found = session.run(None, feed), artifact.run(feed)
        for got, expected in zip(found, wanted, strict=True):
            assert got.dtype == expected.dtype and got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    steps = str(artifact._plan.to_json()["steps"])
    assert all(name in steps for name in kernels)
    assert not any(name in steps for name in without)


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def corner(source: str, result: str) -> list[onnx.NodeProto]:
    """The first element of a tensor, without dimensions."""
    flat, index = f"{result}_flat", f"{result}_index"
    return [
        node("Flatten", [source], [flat], axis=0),
        node("Constant", [], [index], value_ints=[0, 0]),
        node("GatherND", [flat, index], [result]),
    ]


def test_branches() -> None:
    """Chosen by a constant, by an input, by a value; nested; with results of different shapes, one of them empty."""
    constant = node(
        "If",
        ["always"],
        ["a"],
        then_branch=graph([node("Relu", ["x"], ["r"])], [], [value("r")]),
        else_branch=graph([node("RandomNormal", [], ["r"], shape=[3])], [], [value("r")]),
    )
    inner = node(
        "If",
        ["positive"],
        ["n"],
        then_branch=graph([node("Mul", ["shared", "two"], ["m"])], [], [value("m")]),
        else_branch=graph([node("Identity", ["shared"], ["m"])], [], [value("m")]),
    )
    by_input = node(
        "If",
        ["flag"],
        ["b", "c"],
        then_branch=graph([inner, node("Neg", ["x"], ["k"])], [], [value("n"), value("k")]),
        else_branch=graph(
            [node("Add", ["x", "w"], ["m"]), node("Identity", ["x"], ["k"])], [], [value("m"), value("k")], w=x(2, 4)
        ),
    )
    resized = node(
        "If",
        ["flag"],
        ["d"],
        then_branch=graph([node("Concat", ["x", "shared"], ["j"], axis=0)], [], [value("j")]),
        else_branch=graph([node("Slice", ["x", "zero", "zero"], ["j"])], [], [value("j")]),
    )
    nodes = [
        node("Exp", ["x"], ["shared"]),
        *corner("x", "top"),
        node("Greater", ["top", "limit"], ["positive"]),
        constant,
        by_input,
        resized,
        node("Sub", ["d", "one"], ["e"]),
    ]
    data = model(
        graph(
            nodes,
            [value("x", F, [2, 4]), value("flag", B, [])],
            [value("a"), value("b"), value("c"), value("d"), value("e")],
            always=True,
            two=np.float32(2),
            one=np.float32(1),
            limit=np.float32(1.5),
            zero=np.array([0]),
        )
    )
    feeds = [{"x": x(2, 4, seed=s), "flag": np.array(f)} for s in range(4) for f in (True, False)]
    check(data, *feeds, kernels=["'then'"])


def loop(
    body: list[onnx.NodeProto],
    carried: list[str],
    outputs: list[str],
    names: list[str],
    trips: str = "n",
    condition: str = "",
    rows: Sequence[int] | None = None,
) -> onnx.NodeProto:
    """A Loop whose body takes `i`, `go` and `v_<name>` for each carried name, and gives `on` and `outputs`."""
    inputs = [value("i", I, []), value("go", B, []), *(value(f"v_{name}") for name in carried)]
    shapes = [None] * len(carried) + [rows] * (len(outputs) - len(carried))
    results = [value("on", B, []), *(value(name, F, shape) for name, shape in zip(outputs, shapes, strict=True))]
    return node("Loop", [trips, condition, *carried], names, body=graph(body, inputs, results))


def test_loops_of_constant_length() -> None:
    """Small: unrolled; long: kept; with a value that grows: unrolled; none at all; rows stacked in each.

    The last has no trip count: a counter that it carries ends it. Its weights are carried too, and never change.
    """
    body = [
        node("Identity", ["go"], ["on"]),
        node("Gather", ["table", "i"], ["f"]),
        node("Add", ["v_x", "f"], ["s"]),
        node("Tanh", ["s"], ["t"]),
        node("Mul", ["t", "shared"], ["r"]),
    ]
    grow = [node("Identity", ["go"], ["on"]), node("Concat", ["v_g", "x"], ["r"], axis=0)]
    nodes = [node("Exp", ["x"], ["shared"])]
    nodes += [
        loop(body, ["x"], ["r", "t"], [f"{count}_last", f"{count}_rows"], count, rows=[2, 3])
        for count in ("few", "many", "none")
    ]
    nodes.append(loop(grow, ["g"], ["r"], ["grown"], "twenty"))
    count = [
        node("Add", ["v_k", "step"], ["k1"]),
        node("Less", ["k1", "end"], ["on"]),
        node("Identity", ["v_w"], ["w1"]),
        node("MatMul", ["v_x", "v_w"], ["p"]),
        node("Tanh", ["p"], ["t"]),
        node("Neg", ["t"], ["u"]),
    ]
    nodes.append(
        loop(count, ["k", "x", "w"], ["k1", "t", "w1", "u"], ["at", "state", "same", "negated"], "", rows=[2, 3])
    )
    outputs = [*(f"{count}_{what}" for count in ("few", "many", "none") for what in ("last", "rows")), "grown"]
    outputs += ["at", "state", "same", "negated"]
    data = model(
        graph(
            nodes,
            [value("x", F, [2, 3])],
            [value(name) for name in outputs],
            table=x(40, seed=3),
            k=np.float32(0),
            step=np.float32(0.25),
            end=np.float32(7),
            w=x(3, 3, seed=4),
            few=3,
            many=40,
            none=0,
            twenty=20,
            g=np.zeros((0, 3), np.float32),
        )
    )
    check(data, {"x": x(2, 3)}, kernels=["write_row"])


def test_loops_that_end_when_a_value_says_so() -> None:
    """A condition of the model's own, none to begin with, a trip count that is an input, rows up to a bound."""
    halve = [
        node("Mul", ["v_x", "half"], ["r"]),
        *corner("r", "m"),
        node("Greater", ["m", "limit"], ["on"]),
    ]
    append = [
        *halve,
        node("Slice", ["r", "zero", "one"], ["one_row"]),
        node("Concat", ["v_q", "one_row"], ["p"], axis=0),
    ]
    nodes = [
        *corner("x", "m0"),
        node("Greater", ["m0", "limit"], ["begin"]),
        loop(halve, ["x"], ["r"], ["a"], "", condition="begin"),
        loop(halve, ["x"], ["r"], ["b"], "n"),
        loop([*halve, node("Neg", ["r"], ["minus"])], ["x"], ["r", "minus"], ["c", "rows"], "nine", "begin", [2, 3]),
        loop(append, ["x", "q"], ["r", "p"], ["d", "queue"], "nine", condition="begin"),
        node("Relu", ["queue"], ["positive"]),
    ]
    data = model(
        graph(
            nodes,
            [value("x", F, [2, 3]), value("n", I, [])],
            [value(name) for name in ("a", "b", "c", "rows", "d", "queue", "positive")],
            half=np.float32(0.5),
            limit=np.float32(0.1),
            nine=9,
            zero=np.array([0]),
            one=np.array([1]),
            q=np.ones((1, 3), np.float32),
        )
    )
    feeds = [{"x": scale * x(2, 3), "n": np.array(n)} for scale, n in ((1, 0), (1, 2), (100, 3), (0.01, 7), (1e5, 50))]
    check(data, *feeds)


def test_scans_in_both_directions_and_along_axes() -> None:
    body = graph(
        [
            node("Add", ["s", "p"], ["u"]),
            node("Mul", ["u", "q"], ["t"]),
            node("Identity", ["t"], ["row"]),
            *corner("q", "number"),
        ],
        [value("s"), value("p"), value("q")],
        [value("t", F, [4]), value("row", F, [4]), value("number", F, [])],
    )
    options = {
        "num_scan_inputs": 2,
        "scan_input_axes": [0, -1],
        "scan_input_directions": [0, 1],
        "scan_output_axes": [1, 0],
        "scan_output_directions": [1, 0],
        "body": body,
    }
    nodes = [
        node("Scan", ["s0", "long", "wide"], ["last", "rows", "numbers"], **options),
        node("Slice", ["long", "zero", "three"], ["short"]),
        node("Slice", ["wide", "zero", "three", "one"], ["narrow"]),
        node("Scan", ["s0", "short", "narrow"], ["last3", "rows3", "numbers3"], **options),
    ]
    data = model(
        graph(
            nodes,
            [value("s0", F, [4]), value("long", F, [30, 4]), value("wide", F, [4, 30])],
            [value(name + end) for end in ("", "3") for name in ("last", "rows", "numbers")],
            zero=np.array([0]),
            three=np.array([3]),
            one=np.array([1]),
        )
    )
    check(data, {"s0": x(4), "long": x(30, 4, seed=1), "wide": x(4, 30, seed=2)}, kernels=["write_row"])


def test_a_branch_that_cannot_be_compiled_is_an_error_when_a_run_takes_it() -> None:
    """As in ONNX Runtime, which looks at a branch when it is taken; the artifact goes on working."""
    choice = node(
        "If",
        ["flag"],
        ["y"],
        then_branch=graph([node("Reshape", ["x", "five"], ["r"])], [], [value("r")]),
        else_branch=graph([node("Relu", ["x"], ["r"])], [], [value("r")]),
    )
    data = model(graph([choice], [value("x", F, [2, 3]), value("flag", B, [])], [value("y")], five=np.array([5, 1])))
    artifact = calumma.compile(data).artifact
    for _ in range(2):
        with pytest.raises(
            ArtifactError, match=r"a branch that could not be compiled is taken: node .*Reshape"
        ) as caught:
            artifact(x(2, 3), np.array(True))
        assert "\n" not in str(caught.value)
        np.testing.assert_array_equal(artifact(x(2, 3), np.array(False)), np.maximum(x(2, 3), 0))
    with pytest.raises(ArtifactError, match="could not be compiled"):
        artifact.profile({"x": x(2, 3), "flag": np.array(True)}, repeat=1)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([loop([node("Identity", ["go"], ["on"])], ["x"], ["v_x", "v_x"], ["y", "z"])], "of which there is no limit"),
        (
            [
                loop(
                    [node("Identity", ["go"], ["on"]), node("Concat", ["v_x", "x"], ["r"], axis=0)], ["x"], ["r"], ["y"]
                )
            ],
            r"carried value 0 is float32\[2, 3\] before an iteration and float32\[4, 3\] after it",
        ),
        (
            [
                node(
                    "If",
                    ["flag"],
                    ["y"],
                    then_branch=graph([node("Neg", ["t"], ["r"])], [], [value("r")]),
                    else_branch=graph([node("Flatten", ["x"], ["f"]), node("Squeeze", ["t"], ["r"])], [], [value("r")]),
                )
            ],
            "'t' is read, and nothing before it gives it",
        ),
        (
            [loop([node("SequenceEmpty", [], ["s"]), node("Identity", ["go"], ["on"])], ["x"], ["v_x"], ["y"])],
            "operator SequenceEmpty computes with sequences, which are not supported",
        ),
    ],
)
def test_what_is_refused_by_name(nodes: list[onnx.NodeProto], message: str) -> None:
    data = model(graph(nodes, [value("x", F, [2, 3]), value("n", I, []), value("flag", B, [])], [value("y")]))
    with pytest.raises(ModelError, match=message) as caught:
        calumma.compile(data)
    assert "\n" not in str(caught.value)
