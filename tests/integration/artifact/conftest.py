"""The small model built, saved and loaded: once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma import tvm_compat
from calumma.artifact import Artifact, Executable, LoweredModel, build, load, save
from tests.artifact_model import THREADS, lowered_model


@pytest.fixture(scope="session")
def model() -> LoweredModel:
    tvm_compat.set_threads(THREADS)
    return lowered_model()


@pytest.fixture(scope="session")
def executable(model: LoweredModel) -> Executable:
    return build(model, tvm_compat.target_for(), THREADS)


@pytest.fixture(scope="session")
def path(model: LoweredModel, executable: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.so"
    save(executable, model.params, model.metadata, path)
    return path


@pytest.fixture(scope="session")
def artifact(path: Path) -> Artifact:
    return load(path, THREADS)
