"""Races between real runtimes in their own processes, and the benchmark built on them."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest

from benchmarks import batch, before_after, models, modern_networks, networks, output, suite
from benchmarks.networks import Graph
from calumma import artifact, tvm_compat
from calumma.core.errors import ArtifactError, InputError
from calumma.peers import (
    Contestant,
    RaceResult,
    Row,
    Spread,
    compare,
    input_specs,
    peers,
    race,
    random_inputs,
)

pytestmark = pytest.mark.xdist_group("measures")


def _small_model(path: Path, seed: int = 0) -> Path:
    g = Graph("small", seed)
    g.classifier(g.op("Relu", g.conv("x", "conv", (3, 8), 3, bias=True)), "fc", 8, classes=10)
    onnx.save(g.model(("x", onnx.TensorProto.FLOAT, [1, 3, 16, 16]), ("y", [1, 10])), path)
    return path


def _inputs(model: Path) -> list[dict[str, np.ndarray]]:
    specs = input_specs(model)
    return [random_inputs(specs, 0), random_inputs(specs, 1)]


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "calumma.peers.peer_worker" in child.cmdline()]


def test_race(tmp_path):
    model = _small_model(tmp_path / "a.onnx")
    other = _small_model(tmp_path / "b.onnx", seed=1)
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    entries = [
        Contestant("ort", "onnxruntime", str(model)),
        *peers(["openvino", "torch"], model)[:-1],
        Contestant("other weights", "onnxruntime", str(other)),
        Contestant("broken", "onnxruntime", str(tmp_path / "garbage.onnx")),
        Contestant("untimed", "onnxruntime", str(model), timed=False),
    ]
    states = []

    def progress(text: str) -> None:
        if text.startswith("round"):
            states.append({worker.status() for worker in _workers()})

    result = race(entries, _inputs(model), threads=1, rounds=3, turn_s=0.01, progress=progress)
    rows = {row.label: row for row in result.rows}
    assert states == [{psutil.STATUS_STOPPED}] * 3, "between turns every runtime is stopped"
    assert not _workers()
    assert result.reference == "ort" and result.output_change > 0.01
    assert len(rows["ort"].rounds_s) == len(rows["openvino"].rounds_s) == 3
    assert rows["ort"].difference == 0 and rows["openvino"].difference < 1e-5
    assert rows["other weights"].difference > 0.01
    assert result.ratio("ort", "openvino").median > 0
    assert "torch source" in rows["torch-eager"].reason
    assert rows["broken"].latency_s is None and "garbage.onnx failed" in rows["broken"].reason
    assert rows["untimed"].latency_s is None and not rows["untimed"].reason and rows["untimed"].difference == 0


def test_runtimes_of_the_extra_peers(tmp_path):
    """Each is right where its package is installed, and says what is missing where it is not."""
    model = _small_model(tmp_path / "a.onnx")
    packages = {"ncnn": "ncnn", "mnn": "MNN", "iree": "iree", "litert": "ai_edge_litert"}
    result = race(peers(list(packages), model), _inputs(model), threads=1, rounds=1, turn_s=0.01)
    for label, package in packages.items():
        row = result.row(label)
        if importlib.util.find_spec(package) is None:
            assert row.reason == f'{package} is not installed (pip install "calumma[peers]")'
        elif label == "litert":
            assert row.reason.startswith("no a.tflite beside the ONNX file")
        else:
            assert row.difference < 1e-5 and row.latency_s.median > 0


def test_a_process_that_dies_leaves_the_race(tmp_path):
    model = _small_model(tmp_path / "a.onnx")

    def kill_the_first(text: str) -> None:
        if text == "round 2/3":
            os.kill(min(worker.pid for worker in _workers()), signal.SIGKILL)

    entries = [Contestant(label, "onnxruntime", str(model)) for label in ("dies", "stays")]
    result = race(entries, _inputs(model), threads=1, rounds=3, turn_s=0.01, progress=kill_the_first)
    assert "SIGKILL" in result.row("dies").reason and result.row("dies").latency_s is None
    assert len(result.row("stays").rounds_s) == 3
    assert result.reference == "stays" and result.ratio("dies", "stays") is None


def test_outputs_are_compared_with_a_reference_that_is_named(tmp_path):
    model, other = _small_model(tmp_path / "a.onnx"), _small_model(tmp_path / "b.onnx", seed=1)
    entries = [Contestant(label, "onnxruntime", str(path)) for label, path in {"a": model, "b": other}.items()]
    entries.append(Contestant("a again", "onnxruntime", str(model), timed=False))
    result = race(entries, _inputs(model), threads=1, rounds=1, turn_s=0.01, reference="a again")
    assert result.reference == "a again"
    assert (result.row("a").difference, result.row("a").bit_equal) == (0, True)
    assert result.row("b").difference > 0.01 and result.row("b").bit_equal is False
    with pytest.raises(InputError, match="no contestant 'c'"):
        race(entries, _inputs(model), threads=1, reference="c")


def test_no_process_survives_a_killed_race(tmp_path):
    model = _small_model(tmp_path / "a.onnx")
    script = (
        "import sys; from pathlib import Path; from calumma.peers import *; model = Path(sys.argv[1]);"
        "race(peers(['onnxruntime'], model), [random_inputs(input_specs(model), 0)], threads=1, rounds=10**6,"
        " turn_s=0.01, progress=lambda text: print(text, flush=True))"
    )
    command = [sys.executable, "-c", script, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert any(line.startswith("round") for line in parent.stdout)
        workers = psutil.Process(parent.pid).children()
        parent.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_symbolic_dimensions_are_fixed(tmp_path):
    path = _small_model(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
    specs = input_specs(path, {"x": (2, 3, 16, 16)})
    result = race(peers(["onnxruntime", "openvino"], path), [random_inputs(specs, 0)], threads=1, rounds=1, turn_s=0.01)
    assert [row.reason for row in result.rows] == ["", ""]
    assert result.row("openvino").difference < 1e-5


def _product(folder: Path, error: float = 0.0) -> tuple[Path, Path]:
    """A matrix product as an ONNX file and as an artifact, whose weights are wrong by `error`."""
    g = Graph("product")
    g.op("MatMul", "x", g.normal("w", (16, 32), 1.0))
    model = g.model(("x", onnx.TensorProto.FLOAT, [8, 16]), ("y", [8, 32]))
    onnx.save(model, folder / "product.onnx")
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    tvm_compat.set_threads()
    tvm_compat.load()
    from tvm import relax, te

    x, w = te.placeholder((8, 16)), te.placeholder((16, 32))
    k = te.reduce_axis((0, 16))
    kernel = te.create_prim_func([x, w, te.compute((8, 32), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k))])
    builder = relax.BlockBuilder()
    arguments = [
        relax.Var("x", relax.TensorType((8, 16), "float32")),
        relax.Var("w", relax.TensorType((16, 32), "float32")),
    ]
    with builder.function("main", arguments):
        with builder.dataflow():
            product = builder.add_func(kernel, "product")
            call = relax.call_tir(product, relax.Tuple(arguments), relax.TensorType((8, 32), "float32"))
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    spec = artifact.TensorSpec
    params = (weights + np.float32(error),)
    lowered = artifact.LoweredModel(
        builder.get(), params, (spec("x", (8, 16), "float32"),), (spec("y", (8, 32), "float32"),), {}
    )
    artifact.save(artifact.build(lowered, tvm_compat.target_for(), 1), params, {}, folder / "product.so")
    return folder / "product.onnx", folder / "product.so"


def test_compare_an_artifact(tmp_path):
    model, path = _product(tmp_path)
    result = compare(model, path, ["openvino"], threads=1, rounds=2, turn_s=0.01)
    ours, theirs, reference = result.rows
    assert (ours.label, theirs.label, reference.label) == ("calumma", "openvino", result.reference)
    assert ours.difference < 1e-5 and len(ours.rounds_s) == 2 and ours.version
    assert result.ratio("calumma", "openvino").median > 0 and reference.latency_s is None


def test_a_wrong_artifact_shows(tmp_path):
    model, path = _product(tmp_path, error=0.5)
    assert compare(model, path, threads=1, rounds=1, turn_s=0.01).row("calumma").difference > 0.1


def test_an_artifact_that_cannot_run_is_an_error(tmp_path):
    model = _small_model(tmp_path / "a.onnx")
    (tmp_path / "a.so").write_bytes(b"no artifact")
    with pytest.raises(ArtifactError, match=r"a\.so: cannot be run"):
        compare(model, tmp_path / "a.so", threads=1, rounds=1, turn_s=0.01)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _run(model: str | Path | bytes, feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def _change(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max() / np.abs(second).max())


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "densenet121"])
def test_light_models_show_errors(cache, name):
    path = suite.path(name)
    assert path.parent == cache and suite.path(name) == path
    first, second = _run(str(path), suite.inputs(name))
    assert all(np.isfinite(array).all() for array in first)
    assert 0.3 < first[-1].std() < 3, "logits of about unit deviation: no softmax saturates"
    assert _change(first[-1], second[-1]) > 0.03
    if name != "densenet121":  # which ends without a softmax
        logits = first[1].reshape(-1)
        np.testing.assert_allclose(first[0].reshape(-1), np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)


def test_the_suite_is_the_same_every_time(cache, monkeypatch):
    once = suite.path("squeezenet").read_bytes()
    monkeypatch.setenv("CALUMMA_CACHE", str(cache / "again"))
    assert suite.path("squeezenet").read_bytes() == once
    assert len(suite.names()) == 18
    with pytest.raises(InputError, match="no model 'lenet' in the suite"):
        suite.path("lenet")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_written_cnns_show_errors(cache, name):
    first, second = _run(str(suite.path(name)), suite.inputs(name))
    assert 0.3 < first[0].std() < 3
    assert _change(first[0], second[0]) > 0.03


@pytest.mark.parametrize("name", ["mobilenet_v2", "yolov8n"])
def test_torch_modules_compute_the_same(cache, monkeypatch, name):
    monkeypatch.chdir(output.ROOT)  # where the process of torch finds the benchmarks
    entries = peers(["torch-eager"], suite.path(name), suite.torch_source(name))
    row = race(entries, suite.inputs(name), threads=1, rounds=1, turn_s=0.01).row("torch-eager")
    if importlib.util.find_spec("torch") is None:
        assert row.reason.startswith("torch is not installed")
    else:
        assert row.difference < 1e-4


@pytest.mark.parametrize(
    "model",
    [
        networks.bert(layers=2, width=32, heads=4, tokens=16, vocabulary=50),
        networks.vit_b_16(layers=2, width=32, heads=4, patch=8, size=32),
        modern_networks.convnext_tiny(size=32),
        modern_networks.whisper_encoder(layers=2, width=32, heads=4, frames=32),
    ],
    ids=["bert", "vit", "convnext", "whisper"],
)
def test_written_transformers_show_errors(model):
    onnx.checker.check_model(model, full_check=True)
    specs = input_specs(model)
    first, second = _run(model.SerializeToString(), [random_inputs(specs, seed) for seed in (0, 1)])
    assert 0.3 < first[0].std() < 3
    assert _change(first[0], second[0]) > 0.03


def test_the_detector_shows_errors(cache):
    """Scores and boxes are compared each by itself, and few scores are saturated."""
    first, second = _run(str(suite.path("yolov8n")), suite.inputs("yolov8n"))
    scores, boxes = first
    assert scores.shape == (1, 80, 2100) and boxes.shape == (1, 4, 2100)
    assert _change(scores, second[0]) > 0.03 and _change(boxes, second[1]) > 0.03
    assert ((scores > 0.01) & (scores < 0.99)).mean() > 0.5


def _bench_row(model: str, tuned: float, untuned: float, **more: object) -> models.Row:
    return {
        "model": model,
        "error": "",
        "race": None,
        "vs_onnxruntime": tuned,
        "untuned_vs_onnxruntime": untuned,
        "tuned_vs_untuned": tuned / untuned,
        "speedup_vs_best": 1 / tuned,
        "difference": 1e-6,
        "wrong": False,
        "latency_s": {"calumma": 0.010},
        "compile": {"import_s": 1.5},
        "tune": {"latency_s": 0.009},
        **more,
    }


def test_metrics():
    found = models.metrics(
        [_bench_row("resnet50", 0.5, 1.0), _bench_row("vgg19", 2.0, 4.0, difference=0.5, wrong=True)]
    )
    assert found["geomean_vs_onnxruntime"] == pytest.approx(1.0)
    assert found["worst_vs_onnxruntime"] == 2.0
    assert found["untuned_geomean_vs_onnxruntime"] == pytest.approx(2.0)
    assert found["worst_tuned_vs_untuned"] == 0.5
    assert found["worst_speedup_vs_best"] == 0.5
    assert found["import_s_resnet50"] == 1.5
    assert found["sum_of_tasks_vs_model"] == pytest.approx(0.9)
    assert (found["models"], found["models_failed"], found["models_wrong"]) == (2, 0, 1)
    assert "conv_share_of_peak" not in found


def test_speedups_over_each_peer():
    """The best peer is the fastest of those that are right."""

    def row(label: str, latency_s: float, difference: float = 1e-6, note: str = "") -> Row:
        return Row(label, "1.0", Spread.of([latency_s]), (latency_s,), difference, note=note)

    peers_ = [row("onnxruntime", 3.0, 0.0), row("openvino", 2.0, note="held to AVX2"), row("mnn", 0.5, difference=0.1)]
    absent = Row("ncnn", reason="ncnn is not installed")
    result = RaceResult(1, (row("calumma", 1.0), row("calumma-untuned", 4.0), *peers_, absent), "onnxruntime", 1.0, 1.0)
    found = models.ratios(result)
    assert found["speedups"]["calumma"] == {"onnxruntime": 3.0, "openvino": 2.0}
    assert (found["speedup_vs_best"], found["untuned_speedup_vs_best"]) == (2.0, 0.5)
    rows = [{"model": "bert", "error": "", "race": result.as_dict(), **found}]
    metrics = models.metrics(rows)
    assert metrics["geomean_speedup_vs_openvino"] == 2.0 and metrics["untuned_worst_speedup_vs_best"] == 0.5
    assert models.notes(rows) == [
        "openvino: held to AVX2 (bert)",
        "ncnn: ncnn is not installed (bert)",
        "mnn: wrong outputs, not counted (bert)",
    ]
    assert "0.50 / 2.00" in models._peer_table(rows)


def _kernel(name: str, limit: str | None, ms: float, gflop_per_s: float | None, share: float = 0.2) -> dict:
    kernel = {"kernel": name, "output": [1, 16], "calls": 1, "ms": ms, "share": share}
    return kernel | {"gflop_per_s": gflop_per_s, "limit": limit}


def test_layers_near_their_peak():
    near, far = _kernel("fused_conv2d", "compute", 3.0, 95.0), _kernel("fused_dense", "compute", 1.0, 50.0)
    no_layers = [
        _kernel("fused_conv2d1", "compute", 1.0, 10.0, share=0.01),
        _kernel("fused_dense1", "memory", 1.0, 10.0),
        _kernel("unblock", None, 1.0, None),
    ]
    row = models.layers([near, far, *no_layers], peak_gflop_per_s=100.0)
    assert row["layers_at_90_share"] == pytest.approx(0.75)
    assert row["conv_share_of_peak"] == pytest.approx((0.95 * 3.0 + 0.10 * 1.0) / 4.0)
    assert "layers_at_90_share" not in models.layers(no_layers, 100.0)

    rows = [_bench_row("vgg19", 1.0, 1.0) | row, _bench_row("resnet50", 1.0, 1.0) | models.layers([near], 100.0)]
    (below,) = models.layers_below_90(rows)
    assert (below["model"], below["kernel"], below["of_peak"]) == ("vgg19", "fused_dense", pytest.approx(0.5))
    found = models.metrics(rows)
    assert found["layers_at_90_share"] == pytest.approx((0.75 + 1.0) / 2) and found["layers_below_90"] == 1
    assert found["conv_share_of_peak"] == pytest.approx(0.95)


def test_a_model_that_failed_is_counted():
    failed = {"model": "bert", "error": "calumma compile: exit status 2", "race": None}
    found = models.metrics([failed])
    assert found == {"models": 1, "models_failed": 1, "models_wrong": 0}


def test_resume_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    path = tmp_path / "models.json"
    settings = {"budget": "120s", "against": ["onnxruntime"], "rounds": 10, "threads": 1, "mcpu": None}
    rows = [_bench_row("resnet50", 0.5, 1.0)]
    output.write(path, models.metrics(rows), rows, output.environment(1), settings=settings)
    options = ["--models", "resnet50", "--against", "onnxruntime", "--threads", "1", "--json", str(path), "--resume"]
    monkeypatch.setattr(models, "_measure", None)  # nothing is measured again
    assert models.main(options) == 0
    assert "geomean_vs_onnxruntime" in capsys.readouterr().out
    assert output.read(path)["rows"][0]["vs_onnxruntime"] == 0.5
    options[1] = "vgg19"  # another part of the suite
    monkeypatch.setattr(models, "_measure", lambda name, _: _bench_row(name, 0.25, 1.0))
    assert models.main(options) == 0
    assert [row["model"] for row in output.read(path)["rows"]] == ["resnet50", "vgg19"]
    assert models.main([*options, "--budget", "60s"]) == 2
    assert "made with" in capsys.readouterr().err


def test_unknown_names_are_refused_at_once(capsys):
    assert models.main(["--models", "lenet"]) == 2
    assert models.main(["--against", "tensorflow"]) == 2
    assert "lenet" in (text := capsys.readouterr().err) and "tensorflow" in text


def test_two_source_trees_are_compared(tmp_path, monkeypatch, capsys):
    """The other tree is this one under another path: the same code, so the same bits."""
    small, path = _small_model(tmp_path / "small.onnx"), tmp_path / "models.json"
    monkeypatch.setattr(suite, "path", lambda name: small)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "src").symlink_to(output.ROOT / "src")
    options = ["--models", "bert", "--untuned-only", "--rounds", "2", "--threads", "1", "--json", str(path)]
    assert models.main([*options, "--against-source", str(tmp_path / "tree")]) == 0
    document = output.read(path)
    found = document["metrics"]
    assert found["after_vs_before"] == pytest.approx(found["after_vs_before_worst"]) and found["after_vs_before"] > 0
    assert (found["models"], found["models_failed"], found["bit_equal"]) == (1, 0, 1)
    assert found["max_relative_difference"] == 0
    assert "| bert " in capsys.readouterr().out
    for wrong, reason in ((tmp_path, "no src/calumma"), (output.ROOT, "this is the source tree")):
        assert models.main([*options, "--against-source", str(wrong)]) == 2
        assert reason in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        models.main(["--against-source", str(tmp_path / "tree")])


def test_the_metrics_of_two_source_trees():
    rows = [
        {"model": name, "error": "", "ratio": {"median": ratio}, "difference": difference, "bit_equal": not difference}
        for name, ratio, difference in [("bert", 0.5, 0.0), ("vgg19", 2.0, 0.1)]
    ]
    found = before_after.metrics([*rows, {"model": "resnet50", "error": "calumma compile: exit status 1"}])
    assert found["after_vs_before"] == pytest.approx(1.0) and found["after_vs_before_worst"] == 2.0
    assert (found["models"], found["models_failed"], found["models_wrong"], found["bit_equal"]) == (3, 1, 1, 1)


def test_a_batch_that_is_left_open_takes_any_number_of_samples():
    model = networks.bert(layers=1, width=32, heads=2, tokens=8, vocabulary=50)
    samples = [random_inputs(input_specs(model), seed) for seed in range(3)]
    alone = _run(model.SerializeToString(), samples)
    together = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    ((found,),) = _run(batch.with_open_batch(model).SerializeToString(), [together])
    np.testing.assert_allclose(found, np.concatenate([outputs[0] for outputs in alone]), rtol=1e-5, atol=1e-5)


def test_batches_are_raced(tmp_path, monkeypatch, capsys):
    small, path = _small_model(tmp_path / "small.onnx"), tmp_path / "batch.json"
    monkeypatch.setattr(suite, "path", lambda name: small)
    options = ["--models", "bert", "--batches", "3", "--thread-counts", "1", "--rounds", "1", "--json", str(path)]
    assert batch.main([*options, "--against", "onnxruntime"]) == 0
    document = output.read(path)
    (row,) = document["rows"]
    assert (row["model"], row["batch"], row["threads"], row["error"]) == ("bert", 3, 1, "")
    assert row["samples_per_s"]["calumma"] == pytest.approx(3 / row["latency_s"]["calumma"])
    assert row["difference"] < 1e-5
    assert document["metrics"]["points"] == 1 and document["metrics"]["worst_vs_onnxruntime"] > 0
    assert "best peer / ours" in capsys.readouterr().out
    for wrong in (["--models", "vit_b_16"], ["--against", "tensorflow"]):
        assert batch.main(wrong) == 2
    with pytest.raises(SystemExit, match="2"):
        batch.main(["--batches", "1,none"])


def test_json_has_no_infinity(tmp_path):
    path = tmp_path / "x.json"
    output.write(path, {"a": float("inf")}, [{"b": (float("nan"), 1)}], output.environment(1))
    document = output.read(path)
    assert document["metrics"] == {"a": None} and document["rows"] == [{"b": [None, 1]}]
    assert {"versions", "cpu", "threads", "commit", "date"} <= document["environment"].keys()
    with pytest.raises(InputError, match="not the JSON of a benchmark"):
        output.read(tmp_path / "missing.json")


def test_readme_section(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    output.replace_section(path, "results", output.markdown(["model", "ms"], [["resnet50", "12.3"]]))
    text = path.read_text()
    assert text.startswith("before\n<!-- results -->\n| model") and text.endswith("<!-- /results -->\nafter\n")
    assert "| resnet50 | 12.3 |" in text and "old" not in text
    with pytest.raises(InputError, match="no <!-- other -->"):
        output.replace_section(path, "other", "")
