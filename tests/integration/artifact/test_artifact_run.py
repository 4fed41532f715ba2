"""Calling an artifact: inputs and outputs, threads, profiles."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from calumma.artifact import Artifact, LoweredModel
from calumma.core import hardware as host
from calumma.core.errors import ArtifactError, InputError
from tests.artifact_model import OUTPUTS, THREADS, X, check, expected, inputs


def test_loaded_artifact(model: LoweredModel, artifact: Artifact) -> None:
    assert artifact.inputs == (X,)
    assert artifact.outputs == OUTPUTS
    assert artifact.metadata == {"model": "test", "scale": 1.0}
    assert artifact.threads == THREADS
    check(artifact(inputs()), expected(model, inputs()))
    check(artifact.run({"data:0": inputs(1)}), expected(model, inputs(1)))
    check(artifact(**{"data:0": np.asfortranarray(inputs(2))}), expected(model, inputs(2)))


def test_outputs_belong_to_the_caller(model: LoweredModel, artifact: Artifact) -> None:
    first = artifact.run({"data:0": inputs(1)})
    artifact.run({"data:0": inputs(2)})
    check(first, expected(model, inputs(1)))
    assert all(output.flags.writeable for output in first)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"input 'data:0' is missing; the model takes data:0 float32\[4, 8\]"),
        ({"x": inputs()}, "input 'data:0' is missing"),
        ({"data:0": inputs(), "x": inputs()}, "the model has no input 'x'; it takes data:0"),
        ({"data:0": inputs()[:2]}, r"has shape \(2, 8\), the model was compiled for \(4, 8\)"),
        (
            {"data:0": inputs().astype(np.float64)},
            r"has type float64, the model takes float32; .*\.astype\('float32'\)",
        ),
    ],
)
def test_wrong_inputs(artifact: Artifact, feeds: dict[str, np.ndarray], message: str) -> None:
    for call in (artifact.run, artifact.profile):
        with pytest.raises(ArtifactError, match=message):
            call(feeds)


def test_wrong_calls(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="2 inputs given, the model takes 1"):
        artifact(inputs(), inputs())
    with pytest.raises(ArtifactError, match="'data:0' is given twice"):
        artifact(inputs(), **{"data:0": inputs()})
    with pytest.raises(InputError, match="repeat=0"):
        artifact.profile({"data:0": inputs()}, repeat=0)


def test_four_python_threads(model: LoweredModel, artifact: Artifact) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(200):
                check(artifact(inputs(seed)), expected(model, inputs(seed)))
        except BaseException as error:  # noqa: BLE001 - handed to the test below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.skipif(host.physical_cores() < 2, reason="needs two cores")
def test_number_of_threads(path: Path) -> None:
    code = f"""
import threading
import numpy as np
from calumma.artifact import load, runtime
from calumma.core.errors import EnvironmentFault
x = np.zeros((4, 8), np.float32)
pool = lambda: runtime.ffi().get_global_func("runtime.NumThreads")()
two = load({str(path)!r}, 2)
two(x)
assert pool() == 2, pool()
one = load({str(path)!r}, 1)
one(x)
assert pool() == 1, pool()
two(x)
assert pool() == 2, pool()
sizes = []
def other(*artifacts):
    for artifact in artifacts:
        try:
            artifact(x)
            sizes.append(pool())
        except EnvironmentFault as error:
            sizes.append(str(error))
thread = threading.Thread(target=other, args=(two, one, two))
thread.start()
thread.join()
assert sizes == [2, 1, 2], sizes
"""
    environment = {name: value for name, value in os.environ.items() if name != "TVM_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


@pytest.mark.skipif(host.physical_cores() < 2, reason="needs two cores")
def test_pool_started_too_small_is_an_error(path: Path) -> None:
    code = f"""
import numpy as np
from calumma.artifact import load
from calumma.core.errors import EnvironmentFault
x = np.zeros((4, 8), np.float32)
load({str(path)!r}, 1)(x)
try:
    load({str(path)!r}, 2)(x)
except EnvironmentFault as error:
    assert "already runs a TVM pool of 1 threads, 2 were asked for" in str(error), error
else:
    raise AssertionError("ran with the wrong number of threads")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_profile(artifact: Artifact) -> None:
    profile = artifact.profile({"data:0": inputs()}, repeat=3)
    assert [(time.kernel, time.calls, time.output) for time in profile.kernels] == [
        ("dense", 1, (4, 16)),
        ("add", 2, (4, 16)),
        ("halve", 1, (4, 16)),
        ("widen", 1, (4, 16)),
    ]
    assert all(time.seconds > 0 for time in profile.kernels)
    assert min(profile.copies_s, profile.kernels_s, profile.latency_s) > 0


def test_profile_needs_the_runtime_alone_and_leaves_the_model_as_it_was(path: Path) -> None:
    code = f"""
import sys
import numpy as np
from calumma.artifact import load
x = {{"data:0": np.random.default_rng(0).standard_normal((4, 8), dtype=np.float32)}}
artifact = load({str(path)!r})
before = artifact.run(x)
profile = artifact.profile(x, repeat=1)
assert len(profile.kernels) == 4
for one, other in zip(before, artifact.run(x)):
    assert one.tobytes() == other.tobytes()
loaded = {{"tvm", "torch", "onnx", "xgboost"}} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
