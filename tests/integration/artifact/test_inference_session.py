"""An artifact behind ONNX Runtime's interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calumma.artifact import Artifact, InferenceSession, LoweredModel
from calumma.core.errors import InputError
from tests.artifact_model import THREADS, check, expected, inputs


def test_inference_session(model: LoweredModel, path: Path) -> None:
    session = InferenceSession(path, threads=THREADS)
    (node,) = session.get_inputs()
    assert (node.name, node.shape, node.type) == ("data:0", [4, 8], "tensor(float)")
    assert [node.name for node in session.get_outputs()] == ["product", "half"]
    check(session.run(None, {"data:0": inputs()}), expected(model, inputs()))
    (half,) = session.run(["half"], {"data:0": inputs()})
    np.testing.assert_allclose(half, expected(model, inputs())[1], rtol=2**-8)
    product, _ = session.run([], {"data:0": inputs()})
    check(session.run(["half", "product"], {"data:0": inputs()}), [half, product])
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_inference_session_of_a_loaded_artifact(path: Path, artifact: Artifact) -> None:
    session = InferenceSession(artifact, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert session.artifact is artifact
    check(session.run(None, {"data:0": inputs()}), artifact.run({"data:0": inputs()}))
    with pytest.raises(InputError, match=r"threads=1: the loaded artifact has its own \(\d+\); give its path instead"):
        InferenceSession(artifact, threads=1)
    with pytest.raises(InputError, match="artifacts run on the CPU; name CPUExecutionProvider or leave it out"):
        InferenceSession(path, providers=["CUDAExecutionProvider"])


def test_inference_session_takes_onnx_runtimes_arguments_in_their_places(path: Path, artifact: Artifact) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    providers: Any = ["CUDAExecutionProvider", ("CPUExecutionProvider", {})]
    assert InferenceSession(artifact, options, providers).artifact is artifact
    with pytest.raises(InputError, match="artifacts run on the CPU"):
        InferenceSession(path, options, [("CUDAExecutionProvider", {})])
    options.intra_op_num_threads = 1
    session = InferenceSession(path, options, ["CPUExecutionProvider"])
    assert session.artifact.threads == 1
    feeds = {"data:0": inputs()}
    check(session.run(None, feeds, onnxruntime.RunOptions()), session.run(None, feeds))
    with pytest.raises(InputError, match=r"sess_options=4: expected onnxruntime\.SessionOptions; .* threads=4"):
        InferenceSession(path, 4)


@pytest.mark.parametrize(
    ("names", "feeds", "message"),
    [
        (["other"], {"data:0": inputs()}, "no output 'other'; it has product, half"),
        (None, {"other": inputs()}, "input 'data:0' is missing"),
        (None, {"data:0": inputs(), "other": inputs()}, "no input 'other'"),
        (None, {"data:0": inputs()[:1]}, r"has shape \(1, 8\), the model was compiled for \(4, 8\)"),
        (None, {"data:0": inputs().tolist()}, "has type float64, the model takes float32"),
    ],
)
def test_inference_session_refuses_what_does_not_fit(
    artifact: Artifact, names: list[str] | None, feeds: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        InferenceSession(artifact).run(names, feeds)
    assert "\n" not in str(raised.value)
