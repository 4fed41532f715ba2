"""Saving and loading: what an artifact needs, and files that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calumma import tvm_compat
from calumma.artifact import Artifact, Executable, LoweredModel, build, load, save
from calumma.core import hardware as host
from calumma.core.errors import ArtifactError, EnvironmentFault
from tests.artifact_model import THREADS, check, expected, inputs, lowered_model


def test_in_process_without_a_compiler(
    model: LoweredModel, executable: Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    artifact = Artifact.from_executable(executable, model.params, model.metadata)
    check(artifact(inputs()), expected(model, inputs()))
    with pytest.raises(EnvironmentFault, match=r"no C compiler .* install one"):
        save(executable, model.params, model.metadata, tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []


def test_new_process_needs_the_runtime_and_numpy_alone(model: LoweredModel, path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", inputs())
    code = f"""
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
import numpy as np
from calumma.artifact import load
artifact = load({str(path)!r}, {THREADS})
outputs = artifact(np.load({str(tmp_path / "x.npy")!r}))
roots = {{name.split(".")[0] for name, module in sys.modules.items() if module is not None}}
assert not roots & {{"tvm", "torch", "onnx", "onnxruntime"}}, roots
np.savez({str(tmp_path / "y.npz")!r}, *outputs)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with np.load(tmp_path / "y.npz") as outputs:
        check([outputs["arr_0"], outputs["arr_1"]], expected(model, inputs()))


def test_torch_is_not_imported_though_installed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    code = f"""
import sys
from calumma.artifact import load
load({str(path)!r}, {THREADS})
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_compiler_can_be_imported_after_loading(path: Path) -> None:
    code = f"""
from calumma import tvm_compat
from calumma.artifact import load
artifact = load({str(path)!r}, {THREADS})
tvm_compat.load().relax.ExecBuilder()
import numpy as np
artifact(np.zeros((4, 8), np.float32))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_replaced_file_loads_the_new_code(path: Path, model: LoweredModel, tmp_path: Path) -> None:
    copy = tmp_path / "model.so"
    copy.write_bytes(path.read_bytes())
    old = load(copy, THREADS)
    other = lowered_model(scale=3.0)
    save(build(other, tvm_compat.target_for(), THREADS), other.params, other.metadata, copy)
    new = load(copy, THREADS)
    check(new(inputs()), expected(other, inputs()))
    check(old(inputs()), expected(model, inputs()))


def test_metadata_of_the_file_is_json(path: Path) -> None:
    data = path.read_bytes()
    start = data.rindex(b'{"plan"')
    header, _ = json.JSONDecoder().raw_decode(data[start:].decode(errors="replace"))
    assert header["metadata"] == {"model": "test", "scale": 1.0}
    assert header["versions"] == tvm_compat.PINS


def test_wrong_cpu_is_found_before_code_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_info", lambda: {"model name": "Old CPU", "flags": "sse4_1"})
    monkeypatch.setattr("calumma.artifact.runtime.load_library", lambda descriptor: pytest.fail("code was loaded"))
    with pytest.raises(ArtifactError, match=r"this CPU \(Old CPU\) lacks .*avx2.*; compile it here"):
        load(path)


def test_wrong_tvm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_compat, "PINS", {"apache-tvm": "0.28.0"})
    with pytest.raises(ArtifactError, match=r"built with apache-tvm 0\.27.*, this calumma needs apache-tvm 0\.28\.0"):
        load(path)


def test_foreign_and_damaged_files(path: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"\x7fELF" + bytes(1000))
    with pytest.raises(ArtifactError, match="not an artifact"):
        load(foreign)
    damaged = tmp_path / "damaged.so"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged: checksum of the (code|weights) does not match"):
        load(damaged)
    with pytest.raises(ArtifactError, match="No such file"):
        load(tmp_path / "nothing.so")


def test_unwritable_target(model: LoweredModel, executable: Executable, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no folder"):
        save(executable, model.params, model.metadata, tmp_path / "no" / "model.so")
    with pytest.raises(ArtifactError, match=r"cannot write .*: Is a directory"):
        (tmp_path / "folder").mkdir()
        save(executable, model.params, model.metadata, tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_failing_linker(
    model: LoweredModel, executable: Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'ld: cannot find crti.o' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"cannot link the artifact: ld: cannot find crti\.o"):
        save(executable, model.params, model.metadata, tmp_path / "model.so")
