"""The benchmark of a new user's first steps: a step that fails ends the benchmark, with the step's output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import first_steps, suite


def step(code: str, produces: Path | None = None) -> first_steps._Step:
    return first_steps._Step("example", [sys.executable, "-c", code], produces)


@pytest.mark.processes
def test_a_step_that_works_has_a_time(tmp_path: Path) -> None:
    made = tmp_path / "made"
    seconds = first_steps._timed(step("open('made', 'w').write('x')", made), tmp_path, {})
    assert 0 < seconds < 60


@pytest.mark.processes
def test_a_step_that_fails_shows_its_output(tmp_path: Path) -> None:
    with pytest.raises(first_steps.StepFailed, match=r"step example ended with status 3:\nout of milk"):
        first_steps._timed(step("print('out of milk'); raise SystemExit(3)"), tmp_path, {})


@pytest.mark.processes
def test_a_step_that_writes_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(first_steps.StepFailed, match="has not written made"):
        first_steps._timed(step("print('done')", tmp_path / "made"), tmp_path, {})


def test_a_failed_step_ends_the_benchmark_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["first_steps", "--quick", "--json", str(tmp_path / "result.json")])
    monkeypatch.setattr(suite, "path", lambda name: tmp_path / f"{name}.onnx")
    monkeypatch.setattr(
        first_steps, "_timed", lambda step, *_: (_ for _ in ()).throw(first_steps.StepFailed(step.name))
    )
    assert first_steps.main() == 1
    assert "wheel" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()
