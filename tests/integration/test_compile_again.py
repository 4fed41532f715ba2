"""`calumma compile` in processes of its own: what it imports and tells, and what it takes from its cache.

Every test has records and caches of its own.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from calumma import api, tvm_compat
from calumma.artifact import Artifact, load
from calumma.core import hardware
from calumma.core.content_cache import CacheWarning
from calumma.core.values import Candidate, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import MemoryStore
from calumma.results import CompileResult
from calumma.tasks import roofline
from calumma.tvm_compat import codegen
from tests.integration.command_line import ROOT, calumma
from tests.onnx_models import Model

pytestmark = pytest.mark.xdist_group("compile_again")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = Model()
    path = tmp_path / "network.onnx"
    path.write_bytes(network.bytes(network.op("Relu", network.conv(network.input(1, 3, 12, 12), (3, 16)))))
    return path


def compiled(model: Path, *options: object, **environment: str) -> dict[str, Any]:
    """Compile a model beside it, with records and caches there, and return what the command's JSON says."""
    folder = model.parent
    places = {"CALUMMA_CACHE": "cache", "XDG_CACHE_HOME": "probes", "CALUMMA_DB": "records.sqlite"}
    given = {"CALUMMA_CACHE_MB": "100", **{name: str(folder / place) for name, place in places.items()}, **environment}
    done = calumma("compile", model, "-o", folder / "model.so", *options, "--json", **given)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


def test_an_onnx_model_is_compiled_without_torch_and_every_second_is_told(model: Path, tmp_path: Path) -> None:
    """Neither the command nor the probe of the machine, a process of its own, imports it."""
    package = tmp_path / "packages" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("open(__file__ + '.imported', 'w').close()")
    found = compiled(model, PYTHONPATH=os.pathsep.join([str(package.parent), str(ROOT), str(ROOT / "src")]))
    assert [path.name for path in package.iterdir()] == ["__init__.py"]
    assert list((tmp_path / "probes" / "calumma" / "roofline").iterdir())
    assert list(found["phases_s"])[:4] == ["start", "load", "reuse", "import"]
    assert found["phases_s"]["start"] > 0 and found["peak_memory_bytes"] > 50e6


def run(artifact: Artifact, feeds: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """The first output, for inputs of ones by default. In a Python thread of its own: TVM's pool there is small."""
    given = feeds or {spec.name: np.ones(spec.shape, spec.dtype) for spec in artifact.inputs}
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(artifact.run, given).result()[0]


def output(model: Path) -> np.ndarray:
    return run(load(model.parent / "model.so", threads=1))


def entry(model: Path) -> Path:
    (file,) = (model.parent / "cache" / "artifacts").iterdir()
    return file


def test_the_same_model_is_not_compiled_twice(model: Path) -> None:
    """Two processes at once may compile it; what a third takes from the cache is such a file, and only a sound one."""
    with ThreadPoolExecutor(2) as pool:
        first, _ = found = list(pool.map(lambda _: compiled(model), range(2)))
    assert not any("warning" in result["stderr"] for result in found)
    expected = output(model)
    again = compiled(model)
    assert again["reused"] and list(again["phases_s"]) == ["start", "load", "reuse"]
    np.testing.assert_array_equal(output(model), expected)
    told = ("recorded", "prior", "predicted", "note")
    assert {name: again[name] for name in told} == {name: first[name] for name in told}
    assert [task["default"] for task in again["tasks"]] == [task["default"] for task in first["tasks"]]

    damaged = bytearray(entry(model).read_bytes())
    damaged[len(damaged) // 3] ^= 1
    entry(model).write_bytes(damaged)
    anew = compiled(model)
    assert not anew["reused"] and "is damaged" in anew["stderr"] and "made anew" in anew["stderr"]
    np.testing.assert_array_equal(output(model), expected)


def test_what_decides_an_artifact_decides_whether_it_is_used_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALUMMA_CACHE_MB", "100")
    store, out = MemoryStore(), tmp_path / "model.so"

    def reused(source: Path | bytes = model, **options: Any) -> bool:
        given = {"threads": 1, "database": store, "prior": "none", **options}
        return api.compile(source, output=out, **given).reused

    result = api.compile(model, output=out, threads=1, database=store, prior="none")
    written = out.read_bytes()
    assert not result.reused and reused() and out.read_bytes() == written
    assert not reused(cache=False)
    with monkeypatch.context() as environment:
        environment.setenv("CALUMMA_CACHE_MB", "0")
        assert not reused()
    for options in ({"threads": 2}, {"tolerance": 0}, {"mcpu": "x86-64-v3"}, {"precision": "bf16"}):
        if options != {"precision": "bf16"} or "avx512_bf16" in hardware.cpu_flags():
            assert not reused(**options), options
    assert not reused(model.read_bytes())  # its name is in the artifact
    assert reused()

    anew = api.compile(model, output=out, threads=1, database=store, prior="none")
    assert anew.reused and anew.tasks == result.tasks
    np.testing.assert_array_equal(run(anew.artifact), run(result.artifact))

    row = result.lowered.metadata["tasks"][0]
    candidate = Candidate(Workload(row["workload"], "text"), row["template"], row["version"], row["config"])
    measured = MeasureResult(Status.OK, (1e-3,))
    target = tvm_compat.target_for()
    store.append([MeasureRecord(candidate, measured, target.hardware, 1, "warm", tvm_compat.toolchain())])
    assert not reused(), "a record of one of its workloads"
    assert reused()
    limits = hardware.limits_file(roofline.limits_name(target, 1))
    text = limits.read_text()
    monkeypatch.setattr(hardware, "limits_file", lambda name: tmp_path / name)
    (tmp_path / limits.stem).write_text(text.replace("\n", "\n "))
    assert not reused(), "limits that are kept differently"
    assert reused()
    model.write_bytes(model.read_bytes() + b"\x32\x00")  # a producer's empty field
    assert not reused(), "other bytes"


def test_a_kernel_with_the_same_schedule_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the weights: for files, by one model after another; code for this process is LLVM's in any case."""
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALUMMA_CACHE_MB", "100")
    built: list[str] = []
    build = codegen.build

    def noted(mod: Any, target: Any) -> Any:
        built.extend(variable.name_hint for variable in mod.get_global_vars())
        return build(mod, target)

    monkeypatch.setattr(codegen, "build", noted)

    def trained(seed: int, **options: Any) -> tuple[bool, bool, CompileResult, Model, bytes]:
        """Whether all kernels of a model were built, and whether any was."""
        network = Model(seed=seed)
        x = network.op("Relu", network.conv(network.input(1, 16, 10, 10), (16, 16)))
        data = network.bytes(network.conv(x, (16, 32), 1))
        built.clear()
        given = {"threads": 1, "database": MemoryStore(), "prior": "none", **options}
        result = api.compile(data, output=tmp_path / "model.so", **given)
        kernels = {row.name for row in result.tasks}
        return kernels <= set(built), bool(kernels & set(built)), result, network, data

    every, *_ = trained(0)
    assert every
    _, some, again, network, data = trained(1)
    assert not some and not again.reused
    feeds = network.feeds()
    (expected,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)
    for artifact in (load(tmp_path / "model.so", 1), again.artifact):
        np.testing.assert_allclose(run(artifact, feeds), expected, rtol=1e-3, atol=1e-4)
    assert not trained(2, tolerance=0)[1], "the same schedules"
    assert trained(2, mcpu="x86-64-v2")[0]
    assert trained(3, cache=False)[0]
    for kernel in (tmp_path / "cache" / "kernels").iterdir():
        kernel.write_bytes(kernel.read_bytes()[1:])
    with pytest.warns(CacheWarning, match="cached kernel .* is damaged"):
        assert trained(4)[0]
