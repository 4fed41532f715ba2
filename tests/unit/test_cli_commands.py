"""What commands hand to the API, and what they make of its answers and failures; the API is a fake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import calumma
from calumma.artifact import KernelTime, Profile, TensorSpec
from calumma.cli import main
from calumma.core.errors import ArtifactError, InternalError, ModelError
from calumma.core.values import Budget, Status
from calumma.lowering.lowering import LeftToTvm
from calumma.tuner import ModelContest, NewBest, PhaseStarted, TaskResult


class FakeApi(ModuleType):
    """Notes every call and answers with what `answers` holds: a value to return or an exception to raise."""

    def __init__(self) -> None:
        super().__init__("calumma.api")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            answer = self.answers[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "calumma.api", fake)
    monkeypatch.setattr(calumma, "api", fake, raising=False)
    return fake


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"never read here")
    return path


def task(name: str = "conv", **changes: Any) -> TaskResult:
    result = TaskResult(
        workload="0123456789abcdef",
        name=name,
        weight=2,
        template="conv2d",
        template_version=1,
        config={"tile": 4},
        tuned=True,
        checked=True,
        latency_s=1e-3,
        default_latency_s=2e-3,
        bound_s=0.5e-3,
        trials=7,
        failures={Status.BUILD_ERROR: 1},
        last_failure="build_error: no",
    )
    return replace(result, **changes)


def tuned(path: Path, *tasks: TaskResult, interrupted: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        path=path,
        tasks=tasks,
        session="20260131-120000",
        contest=ModelContest(tuned_s=0.009, default_s=0.01, ratio=0.9, rounds=5),
        interrupted=interrupted,
        import_s=1.0,
        phases_s={"run": 2.0},
        prior=None,
        note="",
    )


def test_tune_passes_every_option(
    api: FakeApi, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.so"
    api.answers["tune"] = tuned(out, task())
    arguments = "--budget 2m --trials 9 --strategy random --seed 3 --threads 1 --mcpu x86-64-v3 --shape in=1,3,8,8"
    more = ["--db", "r.sqlite", "--tolerance", "1e-6", "--precision", "bf16", "--force"]
    status = main(["tune", str(model), "-o", str(out), *more, *arguments.split()])
    assert status == 0
    [(name, args, kwargs)] = api.calls
    assert (name, args) == ("tune", (model,))
    assert callable(kwargs.pop("on_event"))
    assert kwargs == {
        "output": out,
        "overwrite": True,
        "budget": Budget(seconds=120.0, trials=9),
        "strategy": "random",
        "database": "r.sqlite",
        "seed": 3,
        "prior": "auto",
        "tolerance": 1e-6,
        "precision": "bf16",
        "shapes": {"in": (1, 3, 8, 8)},
        "threads": 1,
        "mcpu": "x86-64-v3",
    }
    text = capsys.readouterr().out
    assert f"artifact: {out}" in text
    assert "2.00x" in text
    assert "sum of tasks 2.000 ms, by default 4.000 ms" in text


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [
        ([], Budget(seconds=60.0)),
        (["--trials", "5"], Budget(trials=5)),
        (["--budget", "90"], Budget(seconds=90.0)),
    ],
)
def test_budget(
    api: FakeApi, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], budget: Budget
) -> None:
    monkeypatch.chdir(tmp_path)
    api.answers["tune"] = tuned(Path("model.so"))
    assert main(["tune", str(model), *arguments]) == 0
    [(_, _, kwargs)] = api.calls
    assert kwargs["budget"] == budget
    assert kwargs["output"] == Path("model.so")


def test_interrupted_tuning_reports_and_exits_with_130(
    api: FakeApi, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.so"
    api.answers["tune"] = tuned(out, task(), interrupted=True)
    assert main(["tune", str(model), "-o", str(out), "--quiet", "--json", "-"]) == 130
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["event"] == "result"
    assert document["interrupted"] is True
    assert document["artifact"] == str(out)
    assert captured.err == ""


def test_tune_writes_events_and_then_the_result(
    api: FakeApi, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(*args: Any, on_event: Any, **kwargs: Any) -> SimpleNamespace:
        on_event(PhaseStarted("import"))
        on_event(NewBest("0123", "conv", 1e-3, None, {"tile": 4}))
        return tuned(tmp_path / "o.so", task())

    monkeypatch.setattr(api, "tune", tune, raising=False)
    events = tmp_path / "events.json"
    assert main(["tune", str(model), "-o", str(tmp_path / "o.so"), "--json", str(events)]) == 0
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["phase_started", "new_best", "result"]
    assert lines[1]["config"] == {"tile": 4}
    assert lines[2]["tasks"][0]["name"] == "conv"


def test_task_that_failed_says_why(
    api: FakeApi, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = task("lrn", latency_s=None, default_latency_s=None)
    api.answers["tune"] = tuned(tmp_path / "o.so", failed)
    assert main(["tune", str(model), "-o", str(tmp_path / "o.so")]) == 0
    text = capsys.readouterr().out
    assert "lrn: nothing could be measured" in text
    assert "n/a" in text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ModelError("node conv_7:\n operator Foo"), 2, "calumma: error: node conv_7: operator Foo\n"),
        (
            InternalError("broken"),
            1,
            "calumma: error: InternalError: broken"
            " (a fault of calumma; --debug or CALUMMA_DEBUG=1 shows the traceback)\n",
        ),
        (KeyboardInterrupt(), 130, "calumma: error: interrupted\n"),
    ],
)
def test_failures_become_one_line(
    api: FakeApi,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    api.answers["compile"] = error
    assert main(["compile", str(model), "-o", str(tmp_path / "o.so")]) == status
    assert capsys.readouterr().err.lstrip() == message


@pytest.mark.parametrize("how", ["before", "after", "environment"])
def test_debug_shows_the_traceback(
    api: FakeApi, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    api.answers["tasks"] = ZeroDivisionError("division by zero")
    if how == "environment":
        monkeypatch.setenv("CALUMMA_DEBUG", "1")
    before, after = (["--debug"] if how == place else [] for place in ("before", "after"))
    assert main([*before, "tasks", str(model), *after]) == 1
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert text.endswith("calumma: error: ZeroDivisionError: division by zero\n")


def test_compile_reports_phases(api: FakeApi, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.so"
    api.answers["compile"] = SimpleNamespace(
        path=out,
        tasks=(1, 2, 3),
        recorded=1,
        predicted=1,
        prior="x86",
        note="",
        import_s=1.0,
        phases_s={"import": 1.0, "build": 2.5},
        reused=False,
    )
    assert main(["compile", str(model), "-o", str(out), "--no-cache"]) == 0
    assert f"3 kernels in {out}: 1 from the database, 1 by prior x86, 1 by default" in capsys.readouterr().out
    assert callable(api.calls[0][2]["on_event"])
    assert api.calls[0][2]["shapes"] is None and api.calls[0][2]["tolerance"] is None
    assert api.calls[0][2]["cache"] is False


def test_tasks_lists_and_sums(api: FakeApi, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "name": "conv",
        "anchor": "conv2d",
        "arguments": [[[1, 4], "float32"], [[1, 16, 7], "float32"]],
        "weight": 3,
        "gflop": 0.5,
        "megabytes": 2.0,
        "intensity": 250.0,
        "bound_ms": 1.25,
        "space_size": 123456,
    }
    api.answers["tasks"] = SimpleNamespace(
        rows=(SimpleNamespace(**row),),
        layout_transforms=2,
        left_to_tvm=(),
        peak_gflop_per_s=100.0,
        machine="peak 100 GFLOP/s is 99% of what the clock allows",
        import_s=1.0,
        phases_s={"import": 1.0},
    )
    assert main(["tasks", str(model)]) == 0
    text = capsys.readouterr().out
    assert "lowered by" not in text
    assert "1x16x7" in text
    assert "123,456" in text
    assert "1 tasks, 3 calls, 1.50 GFLOP, bound 3.75 ms" in text
    assert "layout transforms left: 2" in text


@pytest.mark.parametrize(
    "left, shown",
    [
        ((), ["every operator is lowered by a rule of calumma"]),
        (
            (LeftToTvm("einsum_3", "einsum", ()), LeftToTvm("pool_1", "nn.avg_pool2d", ("its layout is NHWC",))),
            ["einsum_3", "calumma has no rule for this operator", "pool_1", "its layout is NHWC"],
        ),
    ],
)
def test_tasks_explains_what_tvm_lowers(
    api: FakeApi, model: Path, capsys: pytest.CaptureFixture[str], left: tuple[LeftToTvm, ...], shown: list[str]
) -> None:
    api.answers["tasks"] = SimpleNamespace(
        rows=(), layout_transforms=0, left_to_tvm=left, peak_gflop_per_s=1.0, machine="", import_s=1.0, phases_s={}
    )
    assert main(["tasks", str(model), "--explain"]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in shown), text


class FakeArtifact:
    """y = 2 a + b."""

    inputs = tuple(TensorSpec(name, (2, 3), "float32") for name in ("a", "b"))
    outputs = (TensorSpec("head/y:0", (2, 3), "float32"),)
    metadata: ClassVar = {
        "peak_flops": 2e12,
        "tasks": [
            {"name": "fused_dense", "flops": 1.5e9, "bytes": 3e6, "bound_s": 0.75e-3},
            {"name": "fused_pool", "flops": 1e6, "bytes": 4e6, "bound_s": 0.25e-3},
        ],
    }

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [2 * feeds["a"] + feeds["b"]]

    def profile(self, feeds: dict[str, np.ndarray], repeat: int) -> Profile:
        kernels = (
            KernelTime("unblock", 1, 0.5e-3, (2, 3)),
            KernelTime("fused_dense", 2, 3e-3, (2, 16)),
            KernelTime("fused_pool", 1, 0.5e-3, (2, 1)),
        )
        return Profile(kernels, copies_s=0.1e-3, kernels_s=4.1e-3, latency_s=4e-3)


@pytest.fixture
def artifact(api: FakeApi, tmp_path: Path) -> Path:
    api.answers["load"] = FakeArtifact()
    path = tmp_path / "model.so"
    path.write_bytes(b"never read here")
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, Path]:
    for name, value in (("a", 1.0), ("b", 5.0)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 3), value, np.float32))
    return tmp_path / "a.npy", tmp_path / "b.npy"


@pytest.mark.parametrize("form", ["{a} {b}", "b={b} {a}", "a={a} b={b}"])
def test_run_feeds_files_and_saves_outputs(
    artifact: Path, arrays: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    a, b = arrays
    inputs = [part for value in form.format(a=a, b=b).split() for part in ("--input", value)]
    assert main(["run", str(artifact), *inputs, "--output", str(tmp_path / "outputs"), "--repeat", "2"]) == 0
    [saved] = (tmp_path / "outputs").iterdir()
    assert saved.name == "head_y_0.npy"
    assert (np.load(saved) == 7.0).all()


def test_run_draws_the_same_inputs_from_a_seed(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    means = []
    for seed in ("1", "1", "2"):
        assert main(["run", str(artifact), "--seed", seed, "--repeat", "1", "--json"]) == 0
        means.append(json.loads(capsys.readouterr().out)["outputs"][0]["mean"])
    assert means[0] == means[1] != means[2]


def test_run_profiles(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "profile.json"
    assert main(["run", str(artifact), "--profile", "--repeat", "1", "--json", str(report)]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["fused_dense"] == ["2", "3", "75.0%", "1,000", "2", "50%", "compute"]
    assert rows["fused_pool"] == ["1", "0.5", "12.5%", "2", "8", "50%", "memory"]
    assert rows["unblock"] == ["1", "0.5", "12.5%", "n/a", "n/a", "n/a", "n/a"]
    assert text.index("fused_dense") < text.index("unblock")
    assert "kernels 4.100 ms + copies of inputs and outputs 0.100 ms = 105.0% of the model's 4.000 ms" in text
    document = json.loads(report.read_text())
    assert [kernel["kernel"] for kernel in document["kernels"]] == ["fused_dense", "unblock", "fused_pool"]
    assert document["kernels"][0]["output"] == [2, 16]
    assert document["profile"] == pytest.approx(
        {"kernels_s": 4.1e-3, "copies_s": 0.1e-3, "latency_s": 4e-3, "agreement": 1.05, "peak_gflop_per_s": 2000.0}
    )


def test_run_refuses_what_cannot_be_an_input(
    artifact: Path, arrays: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = arrays
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "many.npz", x=np.ones(1))
    cases = {
        f"{a}": "1 given, the model has 2 inputs (a, b)",
        f"c={a}": "no input 'c'",
        **{f"a={tmp_path / name}": "not a readable .npy file" for name in ("text.npy", "empty.npy", "objects.npy")},
        f"a={tmp_path / 'absent.npy'}": "No such file or directory",
        f"a={tmp_path / 'many.npz'}": "an archive of several arrays",
    }
    for argument, message in cases.items():
        assert main(["run", str(artifact), "--input", argument]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["tune m.onnx", "run m.so", "bench m.onnx", "collect", "learn -o mine"])
def test_no_seed_is_negative(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--seed", "-1"]) == 2
    assert "'--seed': -1 is not in the range x>=0" in capsys.readouterr().err


def test_prior_wants_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prior"]) == 2
    assert capsys.readouterr().err == "calumma: error: Missing command; see `calumma prior --help`\n"


def test_bench_knows_a_wrong_name_before_it_compiles(
    api: FakeApi, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(model), "--against", "tensorflow"]) == 2
    assert "--against tensorflow: no such runtime" in capsys.readouterr().err
    assert not api.calls


def test_run_reports_a_foreign_artifact(api: FakeApi, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["load"] = ArtifactError("built for znver5")
    assert main(["run", str(artifact)]) == 2
    assert capsys.readouterr().err == "calumma: error: built for znver5\n"


def test_bench_compiles_when_no_artifact_is_given(
    api: FakeApi, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from calumma import peers

    seen: dict[str, Any] = {}

    def compare(*args: Any, **kwargs: Any) -> SimpleNamespace:
        seen.update(kwargs, args=args)
        return SimpleNamespace(table=lambda: "the table", as_dict=lambda: {"rows": []})

    monkeypatch.setattr(peers, "compare", compare)
    api.answers["compile"] = SimpleNamespace()
    assert main(["bench", str(model), "--against", "onnxruntime, torch", "--rounds", "3"]) == 0
    compiled = api.calls[0][2]["output"]
    assert seen["args"] == (model, compiled, ("onnxruntime", "torch"))
    assert seen["rounds"] == 3
    assert not compiled.parent.exists()
    assert "the table" in capsys.readouterr().out


def test_run_does_not_save_over_what_it_reads(
    artifact: Path, arrays: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = arrays
    folder = tmp_path / "outputs"
    folder.mkdir()
    command = ["run", str(artifact), "--input", str(a), "--input", f"b={b}", "-o", str(folder), "--repeat", "1"]
    saved = folder / "head_y_0.npy"
    saved.hardlink_to(a)
    content = a.read_bytes()
    assert main(command) == 2
    assert f"it is the input {a}" in capsys.readouterr().err
    assert a.read_bytes() == content
    saved.unlink()
    saved.write_text("mine")
    assert main(command) == 2
    assert "is not an array that NumPy saved" in capsys.readouterr().err
    saved.unlink()
    assert main(command) == main(command) == 0
