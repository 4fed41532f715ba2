"""`calumma compile` in processes of its own: what it imports and tells, and what it takes from its cache.

Every test has records and caches of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command_line import ROOT, calumma
from tests.onnx_models import Model

pytestmark = pytest.mark.xdist_group("compile_again")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = Model()
    path = tmp_path / "model.onnx"
    path.write_bytes(network.bytes(network.op("Relu", network.conv(network.input(1, 3, 12, 12), (3, 16)))))
    return path


def compiled(model: Path, *options: object, **environment: str) -> dict[str, Any]:
    """Compile a model beside it, with records and caches there, and return what the command's JSON says."""
    folder = model.parent
    places = {"XDG_CACHE_HOME": str(folder / "cache"), "CALUMMA_DB": str(folder / "records.sqlite")}
    done = calumma("compile", model, "-o", folder / "model.so", *options, "--json", **{**places, **environment})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "stderr": done.stderr}


def test_an_onnx_model_is_compiled_without_torch_and_every_second_is_told(model: Path, tmp_path: Path) -> None:
    """Neither the command nor the probe of the machine, a process of its own, imports it."""
    package = tmp_path / "packages" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("open(__file__ + '.imported', 'w').close()")
    found = compiled(model, PYTHONPATH=os.pathsep.join([str(package.parent), str(ROOT), str(ROOT / "src")]))
    assert [path.name for path in package.iterdir()] == ["__init__.py"]
    assert list((tmp_path / "cache" / "calumma" / "roofline").iterdir())
    assert list(found["phases_s"])[:3] == ["start", "load", "import"]
    assert found["phases_s"]["start"] > 0 and found["peak_memory_bytes"] > 50e6
