"""Building, saving, loading and running a model with real kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calumma import tvm_compat
from calumma.artifact import (
    Artifact,
    Executable,
    InferenceSession,
    LoweredModel,
    TensorSpec,
    build,
    load,
    save,
)
from calumma.core import hardware as host
from calumma.core.errors import ArtifactError, EnvironmentFault, InputError, InternalError

THREADS = min(2, host.physical_cores())
X = TensorSpec("data:0", (4, 8), "float32")
OUTPUTS = (TensorSpec("product", (2, 32), "float32"), TensorSpec("half", (4, 16), "float32"))


def lowered_model(scale: float = 1.0) -> LoweredModel:
    """x (4, 8), w (8, 16), b (16) -> dense = scale * (x w + b); reshape(dense + dense, (2, 32)), bf16(dense / 2).

    The dense kernel runs in parallel, the second kernel is called twice, the third has two outputs, one of them bf16.
    """
    tvm = tvm_compat.load()
    from tvm import relax, te

    def dense():
        x, w, b = te.placeholder((4, 8)), te.placeholder((8, 16)), te.placeholder((16,))
        k = te.reduce_axis((0, 8))
        product = te.compute((4, 16), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), name="product")
        total = te.compute(
            (4, 16), lambda i, j: (product[i, j] + b[j]) * tvm.tirx.const(scale, "float32"), name="total"
        )
        schedule = tvm.s_tir.Schedule(te.create_prim_func([x, w, b, total]))
        row, column = schedule.get_loops(schedule.get_sblock("total"))
        schedule.parallel(row)
        schedule.vectorize(column)
        return schedule.mod["main"]

    def add():
        a, b = te.placeholder((4, 16)), te.placeholder((4, 16))
        return te.create_prim_func([a, b, te.compute((4, 16), lambda i, j: a[i, j] + b[i, j])])

    def halve():
        a = te.placeholder((4, 16))
        same, half = te.compute(
            (4, 16), lambda i, j: (a[i, j], (a[i, j] * tvm.tirx.const(0.5, "float32")).astype("bfloat16"))
        )
        return te.create_prim_func([a, same, half])

    def widen():
        a = te.placeholder((4, 16), dtype="bfloat16")
        return te.create_prim_func([a, te.compute((4, 16), lambda i, j: a[i, j].astype("float32"))])

    def tensor(*shape: int, dtype: str = "float32"):
        return relax.TensorType(shape, dtype)

    builder = relax.BlockBuilder()
    x, w, b = relax.Var("x", tensor(4, 8)), relax.Var("w", tensor(8, 16)), relax.Var("b", tensor(16))
    zero = relax.Var("zero", tensor(4, 16))
    with builder.function("main", [x, w, b, zero]):
        with builder.dataflow():
            kernels = {f.__name__: builder.add_func(f(), f.__name__) for f in (dense, add, halve, widen)}

            def call(name: str, *arguments, result):
                return builder.emit(relax.call_tir(kernels[name], relax.Tuple(list(arguments)), result))

            total = call("dense", x, w, b, result=tensor(4, 16))
            same = call("add", total, zero, result=tensor(4, 16))
            pair = call("halve", same, result=[tensor(4, 16), tensor(4, 16, dtype="bfloat16")])
            double = call("add", builder.emit(relax.TupleGetItem(pair, 0)), total, result=tensor(4, 16))
            flat = builder.emit(relax.op.reshape(double, (2, 32)))
            half = call("widen", builder.emit(relax.TupleGetItem(pair, 1)), result=tensor(4, 16))
            result = builder.emit_output(relax.Tuple([flat, half]))
        builder.emit_func_output(result)
    rng = np.random.default_rng(0)
    weights = (
        rng.standard_normal((8, 16), np.float32),
        rng.standard_normal(16, np.float32),
        np.zeros((4, 16), np.float32),
    )
    return LoweredModel(builder.get(), weights, (X,), OUTPUTS, {"model": "test", "scale": scale})


def expected(model: LoweredModel, x: np.ndarray) -> list[np.ndarray]:
    w, b, _ = model.params
    dense = (x @ w + b) * np.float32(model.metadata["scale"])
    return [(2 * dense).reshape(2, 32), dense / 2]


def check(outputs: Any, reference: list[np.ndarray]) -> None:
    np.testing.assert_allclose(outputs[0], reference[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs[1], reference[1], rtol=2**-8)  # through bfloat16: 8 bits


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 8), np.float32)


@pytest.fixture(scope="module")
def model() -> LoweredModel:
    tvm_compat.set_threads(THREADS)
    return lowered_model()


@pytest.fixture(scope="module")
def executable(model: LoweredModel) -> Executable:
    return build(model, tvm_compat.target_for(), THREADS)


@pytest.fixture(scope="module")
def path(model: LoweredModel, executable: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.so"
    save(executable, model.params, model.metadata, path)
    return path


@pytest.fixture(scope="module")
def artifact(path: Path) -> Artifact:
    return load(path, THREADS)


def test_plan_reuses_memory_and_keeps_kernels_apart(executable: Executable) -> None:
    plan = executable.plan
    assert [step.kernel for step in plan.steps] == ["dense", "add", "halve", "add", "widen"]
    arena = {slot.offset: slot.size_bytes for slot in plan.slots if slot.section == "arena"}
    assert plan.arena_bytes < sum(slot.size_bytes for slot in plan.slots if slot.section == "arena")
    assert max(offset + size for offset, size in arena.items()) <= plan.arena_bytes
    assert plan.weights_bytes == 512 + 64 + 256


def test_in_process_without_a_compiler(
    model: LoweredModel, executable: Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    artifact = Artifact.from_executable(executable, model.params, model.metadata)
    check(artifact(inputs()), expected(model, inputs()))
    with pytest.raises(EnvironmentFault, match=r"no C compiler .* install one"):
        save(executable, model.params, model.metadata, tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []


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


def test_built_for_a_smaller_cpu(model: LoweredModel, tmp_path: Path) -> None:
    executable = build(model, tvm_compat.target_for("x86-64-v3"), THREADS)
    assert "avx2" in executable.flags
    assert not any(flag.startswith("avx512") for flag in executable.flags)
    save(executable, model.params, model.metadata, tmp_path / "model.so")
    check(load(tmp_path / "model.so", THREADS)(inputs()), expected(model, inputs()))


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


def test_weights_that_do_not_fit(model: LoweredModel, executable: Executable) -> None:
    with pytest.raises(InternalError, match="2 parameters given, 3 expected"):
        Artifact.from_executable(executable, model.params[:2], {})
    with pytest.raises(InternalError, match=r"parameter 0 is \(\(16, 8\), 'float32'\), expected"):
        Artifact.from_executable(executable, (model.params[0].T, *model.params[1:]), {})


def test_metadata_of_the_file_is_json(path: Path) -> None:
    data = path.read_bytes()
    start = data.rindex(b'{"plan"')
    header, _ = json.JSONDecoder().raw_decode(data[start:].decode(errors="replace"))
    assert header["metadata"] == {"model": "test", "scale": 1.0}
    assert header["versions"] == tvm_compat.PINS


def model_of(body: Callable) -> LoweredModel:
    """A model of one input whose `main` returns body(BlockBuilder, x)."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(builder, x))
        builder.emit_func_output(result)
    return LoweredModel(builder.get(), (), (X,), (X,))


def test_foreign_operators_are_refused() -> None:
    tvm = tvm_compat.load()
    target = tvm_compat.target_for()
    with pytest.raises(InternalError, match=r"main contains relax\.nn\.relu, expected call_tir"):
        build(model_of(lambda builder, x: tvm.relax.op.nn.relu(x)), target, THREADS)
    with pytest.raises(InternalError, match="main calls no kernel"):
        build(model_of(lambda builder, x: x), target, THREADS)


def test_kernel_that_cannot_be_built_is_named() -> None:
    tvm = tvm_compat.load()
    from tvm import relax, te

    def kernel(block: str, on_gpu: bool):
        a = te.placeholder((4, 8))
        schedule = tvm.s_tir.Schedule(
            te.create_prim_func([a, te.compute((4, 8), lambda i, j: a[i, j] + 1, name=block)])
        )
        if on_gpu:
            schedule.bind(schedule.get_loops(schedule.get_sblock(block))[0], "threadIdx.x")
        return schedule.mod["main"]

    def body(builder, x):
        for name in ("good", "bad"):
            function = builder.add_func(kernel(name, name == "bad"), name)
            x = builder.emit(relax.call_tir(function, relax.Tuple([x]), relax.TensorType((4, 8), "float32")))
        return x

    with pytest.raises(InternalError, match=r"kernel bad cannot be built: .+"):
        build(model_of(body), tvm_compat.target_for(), THREADS)
