"""The benchmark of the `torch.compile` backend: its exit status is about results, never about seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="the benchmarks' models are calibrated with it")

from benchmarks import torch_compile

RIGHT = {"model": "bert", "error": "", "notes": [], "difference": 1e-6, "wrong": False, "vs_eager": 5.0}


@pytest.mark.parametrize(
    ("row", "status", "failed", "wrong"),
    [
        (RIGHT | {"second_process_s": 1e6}, 0, 0, 0),  # slow, and right
        (RIGHT | {"difference": 0.1, "wrong": True}, 1, 0, 1),
        ({"model": "bert", "error": "calumma: no result", "notes": []}, 1, 1, 0),
    ],
    ids=["slow", "wrong", "failed"],
)
def test_exit_status(
    row: dict[str, Any], status: int, failed: int, wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_compile, "_measure", lambda name, options: row)
    report = tmp_path / "result.json"
    assert torch_compile.main(["--models", "bert", "--json", str(report)]) == status
    metrics = json.loads(report.read_text())["metrics"]
    assert (metrics["models"], metrics["models_failed"], metrics["models_wrong"]) == (1, failed, wrong)


def test_an_unknown_model_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert torch_compile.main(["--models", "bart"]) == 2
    assert capsys.readouterr().err.startswith("--models bart: not of this benchmark: resnet18, ")
