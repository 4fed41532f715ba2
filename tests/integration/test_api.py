"""compile and tune, from a model to outputs that equal ONNX Runtime's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

import calumma
from calumma import api, tvm_compat
from calumma.artifact import Artifact
from calumma.core.errors import InputError
from calumma.core.values import Budget, Status
from calumma.database import MemoryStore, SqlStore
from calumma.tuner import ModelContest
from calumma.tuner.events import PhaseStarted, SessionFinished, SessionStarted, TrialsDone
from calumma.tuner.summary import tuned_lost
from calumma.tuner.trial_runner import REMEASURED
from tests.onnx_models import Model, assert_close, reference

Build = Callable[[Model], "str | tuple[str, ...]"]
NETWORKS: dict[str, Build] = {}


def network(build: Build) -> Build:
    """Register a network under its function's name."""
    NETWORKS[build.__name__] = build
    return build


@network
def odd_channels(m: Model) -> str:
    """24, 40 and 17 channels, BatchNorm, a residual, stride, asymmetric padding, a classifier."""
    x = m.op("Relu", m.batch_norm(m.conv(m.input(1, 3, 20, 20), (3, 24), bias=False), 24))
    y = m.op("Relu", m.conv(x, (24, 40), strides=[2, 2]))
    z = m.op("Relu", m.op("Add", m.conv(y, (40, 40), 1), y))
    z = m.op("Relu", m.conv(z, (40, 17), pads=[0, 1, 2, 0]))
    pooled = m.op("Flatten", m.op("GlobalAveragePool", z))
    return m.op("Softmax", m.op("Gemm", pooled, m.random(1000, 17, scale=0.3), m.random(1000), transB=1))


@network
def groups(m: Model) -> str:
    """Groups that blocks divide and groups that they do not, batch 2, dilation."""
    x = m.op("Relu", m.conv(m.input(2, 40, 9, 9), (40, 40), groups=2))
    x = m.op("Relu", m.conv(x, (40, 24), 1, groups=4))
    x = m.op("Relu", m.conv(x, (24, 48), dilations=[2, 2], pads=[2, 2, 2, 2], groups=8))
    return m.conv(m.op("Clip", x, np.float32(0), np.float32(6)), (48, 32), groups=2)


@network
def depthwise(m: Model) -> str:
    """Inverted residuals and squeeze-and-excitation, hard swish, channels no block divides."""
    x = m.conv(m.input(1, 3, 16, 16), (3, 24), strides=[2, 2])
    y = m.op("HardSwish", m.conv(x, (24, 72), 1))
    y = m.op("HardSwish", m.conv(y, (72, 72), 5, groups=72))
    squeezed = m.op("Relu", m.conv(m.op("GlobalAveragePool", y), (72, 20), 1))
    y = m.op("Mul", y, m.op("HardSigmoid", m.conv(squeezed, (20, 72), 1), alpha=0.2, beta=0.5))
    x = m.op("Add", x, m.conv(y, (72, 24), 1))
    x = m.op("Mul", x, m.op("Sigmoid", x))
    return m.conv(x, (24, 48), groups=24)


@network
def concatenations(m: Model) -> tuple[str, ...]:
    """Joins of channels no block divides, read by every kind of operator; several outputs."""
    x = m.input(1, 8, 10, 10)
    a, b, c = m.conv(x, (8, 24), 1), m.conv(x, (8, 17)), m.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = m.op("Relu", m.op("Concat", a, b, c, axis=1))
    y = m.batch_norm(joined, 49)
    z = m.op("Concat", y, m.conv(y, (49, 12)), axis=1)
    pooled = m.op("AveragePool", z, kernel_shape=[2, 2], strides=[2, 2])
    first, second = m.op("Split", z, np.array([30, 31]), outputs=2, axis=1)
    return m.conv(z, (61, 61), groups=61), pooled, m.op("Transpose", z, perm=[0, 2, 3, 1]), first, m.op("Relu", second)


@network
def shuffled(m: Model) -> str:
    """Channel shuffles before depthwise, grouped and plain convolutions, and a slice behind one."""

    def shuffle(x: str, groups: int, channels: int, size: int) -> str:
        x = m.op("Reshape", x, np.array([1, groups, channels // groups, size, size]))
        return m.op("Reshape", m.op("Transpose", x, perm=[0, 2, 1, 3, 4]), np.array([1, channels, size, size]))

    x = m.op("Relu", m.conv(m.input(1, 3, 12, 12), (3, 24)))
    x = m.conv(shuffle(x, 2, 24, 12), (24, 24), groups=24)
    x = m.op("Relu", m.conv(shuffle(x, 3, 24, 12), (24, 48), 1, groups=3))
    return m.conv(shuffle(x, 4, 48, 12), (48, 16), 1)


@network
def shuffle_units(m: Model) -> str:
    """Units of ShuffleNet: 1x1 convolutions in groups that no block divides, shuffles, residuals, a concatenation."""

    def shuffle(x: str, groups: int, channels: int, size: int) -> str:
        x = m.op("Reshape", x, np.array([2, groups, channels // groups, size, size]))
        return m.op("Reshape", m.op("Transpose", x, perm=[0, 2, 1, 3, 4]), np.array([2, channels, size, size]))

    def branch(x: str, channels: tuple[int, int, int], groups: int, size: int, stride: int) -> str:
        before, inside, behind = channels
        y = m.op("Relu", m.batch_norm(m.conv(x, (before, inside), 1, bias=False, groups=groups), inside))
        y = m.conv(shuffle(y, groups, inside, size), (inside, inside), groups=inside, strides=[stride, stride])
        return m.conv(y, (inside, behind), 1, groups=groups)

    x = m.op("Relu", m.conv(m.input(2, 3, 12, 12), (3, 24), strides=[2, 2]))
    pooled = m.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = m.op("Relu", m.op("Concat", branch(x, (24, 40, 46), 2, 6, 2), pooled, axis=1))
    for groups, inside in ((2, 34), (5, 35), (7, 21)):
        x = m.op("Relu", m.op("Add", branch(x, (70, inside, 70), groups, 3, 1), x))
    x = m.op("Concat", shuffle(x, 10, 70, 3), x, axis=1)
    return m.op("Mul", m.conv(x, (140, 70), 1, groups=2), m.op("Sigmoid", m.conv(x, (140, 70), 1, groups=10)))


@network
def split_units(m: Model) -> tuple[str, ...]:
    """Units of ShuffleNet V2: a split of the channels, a branch of one half, a concatenation, a shuffle; slices."""
    x = m.op("Relu", m.conv(m.input(1, 3, 10, 10), (3, 58), strides=[2, 2]))
    for _ in range(2):
        left, right = m.op("Split", x, np.array([29, 29]), outputs=2, axis=1)
        right = m.op("Relu", m.conv(right, (29, 29), 1))
        right = m.op("Relu", m.conv(m.conv(right, (29, 29), groups=29), (29, 29), 1))
        x = m.op("Reshape", m.op("Concat", left, right, axis=1), np.array([1, 2, 29, 5, 5]))
        x = m.op("Reshape", m.op("Transpose", x, perm=[0, 2, 1, 3, 4]), np.array([1, 58, 5, 5]))
    few, many, none = m.op("Split", x, np.array([7, 50, 1]), outputs=3, axis=1)
    odd = m.op("Slice", x, np.array([-40]), np.array([1000]), np.array([1]))
    gated = m.op("Mul", m.op("Slice", many, np.array([0]), np.array([25]), np.array([1])), m.op("Sigmoid", none))
    return m.conv(few, (7, 12), 1), m.conv(odd, (40, 40)), m.conv(odd, (40, 8), 1, groups=2), gated, m.conv(x, (58, 40))


@network
def response_norms(m: Model) -> str:
    """LRN over blocks, over channels no block divides, and over a plain input."""
    x = m.op("LRN", m.input(1, 6, 8, 8), size=3, alpha=0.1, beta=0.75, bias=1.0)
    x = m.op("LRN", m.conv(x, (6, 32)), size=5, alpha=0.2, beta=0.75, bias=2.0)
    return m.op("LRN", m.conv(x, (32, 20)), size=3, alpha=0.1, beta=0.5, bias=1.0)


@network
def perceptron(m: Model) -> str:
    """Rows that no tile divides, 1000 columns, GELU."""
    x = m.linear(m.input(1, 197, 32), (32, 40))
    half = m.op("Mul", x, np.float32(0.5))
    x = m.op("Mul", half, m.op("Add", m.op("Erf", m.op("Div", x, np.float32(2**0.5))), np.float32(1)))
    return m.linear(x, (40, 1000))


@network
def attention(m: Model) -> str:
    """An encoder layer of batch 2: heads, a mask, softmax, residuals, layer norms."""
    tokens, width, heads = 13, 48, 3
    x, mask = m.input(2, tokens, width), m.input(2, 1, 1, tokens)

    def split(y: str, perm: list[int]) -> str:
        return m.op("Transpose", m.op("Reshape", y, np.array([2, tokens, heads, width // heads])), perm=perm)

    q, k, v = (m.linear(x, (width, width)) for _ in range(3))
    scores = m.op("MatMul", split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]))
    scores = m.op("Add", m.op("Div", scores, np.float32(4)), mask)
    mixed = m.op("MatMul", m.op("Softmax", scores, axis=-1), split(v, [0, 2, 1, 3]))
    joined = m.op("Reshape", m.op("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([2, tokens, width]))
    y = m.op("Add", m.linear(joined, (width, width)), x)
    y = m.op("LayerNormalization", y, m.random(width), m.random(width))
    z = m.linear(m.op("Tanh", m.linear(y, (width, 96))), (96, width))
    return m.op("LayerNormalization", m.op("Add", y, z), m.random(width), m.random(width))


@network
def plain_edges(m: Model) -> tuple[str, ...]:
    """Outputs that are inputs, constants, views of inputs, or named twice."""
    x = m.input(2, 6, 4)
    view = m.op("Reshape", x, np.array([4, 12]))
    doubled = m.op("Add", x, x)
    same = m.op("Identity", doubled)
    return view, doubled, same, m.op("Add", m.random(3), m.random(3)), m.op("Identity", x)


@network
def holes(m: Model) -> str:
    """Operators that would turn the holes of a blocked tensor into infinities or NaN, and then poison a convolution."""
    x = m.op("Relu", m.conv(m.input(1, 3, 8, 8), (3, 17)))
    m.weights["shared"] = np.abs(m.random(17, 1, 1)) + 1
    x = m.conv(m.op("Div", m.op("Sigmoid", m.op("Mul", x, "shared")), "shared"), (17, 20), 1)
    x = m.op("Add", m.op("Abs", x), np.full((20, 1, 1), 2, np.float32))
    x = m.conv(m.op("Sqrt", m.op("Sub", x, np.float32(1))), (20, 17))
    x = m.op("Add", m.op("Abs", x), np.full((17, 1, 1), 2, np.float32))
    y = m.op("Div", np.float32(1), m.op("Exp", m.op("Log", x)))
    y = m.op("Add", m.conv(y, (17, 17), 1), m.op("Div", y, x))
    return m.conv(m.op("Div", m.op("Pow", m.op("Abs", y), np.float32(1.5)), np.float32(6)), (17, 16), 1)


@network
def one_pixel(m: Model) -> str:
    """Convolutions of a single pixel with a prime number of blocks, and dense layers like them."""
    x = m.conv(m.op("GlobalAveragePool", m.input(1, 16, 5, 5)), (16, 176), 1)
    return m.linear(m.op("Flatten", m.op("Relu", x)), (176, 352))


@network
def hopeful_patterns(m: Model) -> tuple[str, ...]:
    """What looks like a pattern that is rewritten, and is not one."""
    x = m.input(2, 8, 3, 1)
    ratio = m.op("Div", x, m.op("Exp", x))
    not_a_norm = m.op("Add", m.op("Mul", ratio, np.float32(3)), np.float32(1))
    folded = m.op("Reshape", x, np.array([1, 4, 4, 3, 1]))
    not_a_shuffle = m.op("Reshape", m.op("Transpose", folded, perm=[0, 2, 1, 3, 4]), np.array([2, 8, 3, 1]))
    conv = m.conv(x, (8, 16), 1)
    unscalable = m.op("Mul", conv, m.random(16, 3, 1))
    shared = m.op("Mul", conv, m.random(16, 1, 1))
    over_width = m.op("Mul", m.conv(m.op("Relu", x), (8, 16), 1), m.random(1))
    flat = m.op("Transpose", m.op("Reshape", x, np.array([2, 8, 3])), perm=[0, 2, 1])
    product = m.op("MatMul", flat, m.op("Transpose", flat, perm=[0, 2, 1]))
    turned = m.op("Transpose", product, perm=[2, 0, 1])
    chained = m.op("MatMul", m.op("Transpose", m.op("MatMul", product, product), perm=[0, 2, 1]), flat)
    return not_a_norm, not_a_shuffle, unscalable, shared, over_width, product, turned, chained


def _built(name: str) -> tuple[Model, bytes]:
    model = Model(opset=17)
    outputs = NETWORKS[name](model)
    return model, model.bytes(*((outputs,) if isinstance(outputs, str) else outputs))


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch):
    """A user's data directory of its own for every test."""
    monkeypatch.setenv("CALUMMA_DB", str(tmp_path / "user.sqlite"))


def _run(artifact: Artifact, feeds: dict[str, NDArray]) -> list[NDArray]:
    """Run in a Python thread of its own: a thread's pool of workers never grows, and tests ask for pools of 1 and 2."""
    with ThreadPoolExecutor(1) as thread:
        return list(thread.submit(artifact.run, feeds).result())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_networks_agree_with_onnxruntime(name, threads):
    model, data = _built(name)
    artifact = api.compile(data, threads=threads).artifact
    for seed in (0, 1):
        feeds = model.feeds(seed)
        assert_close(_run(artifact, feeds), reference(data, feeds))


@pytest.mark.parametrize("name", NETWORKS)
def test_narrow_vectors(name):
    model, data = _built(name)
    artifact = api.compile(data, threads=2, mcpu="x86-64-v3").artifact
    feeds = model.feeds()
    assert_close(_run(artifact, feeds), reference(data, feeds))


def test_tuning_for_an_older_cpu_needs_its_instructions_alone(monkeypatch):
    """What LLVM lists of a CPU are its habits too, such as slow-3ops-lea, which no machine has to share."""
    _, data = _small_network()
    store = MemoryStore()
    options: dict[str, Any] = {
        "mcpu": "x86-64-v3",
        "threads": 1,
        "budget": Budget(trials=2),
        "database": store,
        "prior": "none",
    }
    api.tune(data, **options)
    assert {(record.hardware.mcpu, record.result.status) for record in store.records()} == {("x86-64-v3", Status.OK)}
    monkeypatch.setattr(tvm_compat, "host_mcpu", lambda: "x86-64-v2")
    with pytest.raises(InputError, match=r"mcpu='x86-64-v3': this machine lacks .*avx2.* use compile"):
        api.tune(data, **options)


@pytest.mark.parametrize("name", ["attention", "concatenations", "plain_edges"])
def test_inference_session_has_the_calls_of_onnxruntime(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, data = _built(name)
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    ours = calumma.InferenceSession(api.compile(data, threads=2).artifact)
    for call in ("get_inputs", "get_outputs"):
        described = [[(n.name, n.shape, n.type) for n in getattr(session, call)()] for session in (ours, theirs)]
        assert described[0] == described[1]
    feeds, last = model.feeds(), theirs.get_outputs()[-1].name
    with ThreadPoolExecutor(1) as thread:
        for names in (None, [], [last]):
            assert_close(thread.submit(ours.run, names, feeds).result(), theirs.run(names, feeds))


def test_compile_tells_its_phases(tmp_path):
    _, data = _built("perceptron")
    events: list[Any] = []
    result = api.compile(data, output=tmp_path / "model.so", threads=1, on_event=events.append)
    assert all(isinstance(event, PhaseStarted) for event in events)
    assert [event.phase for event in events] == list(result.phases_s)
    assert events[0].phase == "load"


@pytest.mark.parametrize("call", [api.compile, api.tune])
def test_the_database_is_checked_before_the_model(tmp_path, call):
    with pytest.raises(InputError, match="is a folder, expected a file"):
        call(b"no model", database=tmp_path)


# ---- tuning


def _small_network() -> tuple[Model, bytes]:
    model = Model()
    x = model.op("Relu", model.conv(model.input(1, 3, 12, 12), (3, 24)))
    x = model.op("Relu", model.conv(x, (24, 40)))
    pooled = model.op("Flatten", model.op("GlobalAveragePool", x))
    return model, model.bytes(model.linear(pooled, (40, 10)))


def _proposed(database: Path) -> Counter[str]:
    """How often each candidate was proposed; measuring again what is known is no proposal."""
    with SqlStore.open(database) as store:
        return Counter(r.candidate.key for r in store.records() if r.strategy != REMEASURED)


def test_tuned_model_computes_the_same_and_its_records_serve_the_next_compile(tmp_path):
    model, data = _small_network()
    database = tmp_path / "records.sqlite"
    seen: list[Any] = []
    budget, output = Budget(trials=5), tmp_path / "tuned.so"
    with ThreadPoolExecutor(1) as thread:  # a session may race whole models, in a pool of two
        tuned = thread.submit(
            api.tune, data, output=output, database=database, budget=budget, threads=2, on_event=seen.append
        ).result()
    assert tuned.path.exists() and not tuned.interrupted
    assert sum(task.trials for task in tuned.tasks) == 5
    assert sum(_proposed(database).values()) == 5
    first, last = ([type(e) for e in seen].index(kind) for kind in (SessionStarted, SessionFinished))
    before, after = ([event.phase for event in part] for part in (seen[:first], seen[last + 1 :]))
    assert before[:2] == ["load", "import"]
    assert after == (["schedule", "build", "save"] if tuned.contest is None else ["save"])
    assert not any(isinstance(event, PhaseStarted) for event in seen[first:last])
    feeds = model.feeds()
    expected = reference(data, feeds)
    untuned = api.compile(data, database=tmp_path / "empty.sqlite", threads=2)
    again = api.compile(data, database=database, threads=2)
    for artifact in (tuned.artifact, untuned.artifact, again.artifact, api.load(tmp_path / "tuned.so")):
        assert_close(_run(artifact, feeds), expected)
    assert untuned.recorded == 0
    configs = {row["workload"]: row["config"] for row in tuned.lowered.metadata["tasks"]}
    assert configs.keys() == {task.workload for task in tuned.tasks}
    assert all(configs[task.workload] == dict(task.config) for task in tuned.tasks if task.tuned)


def test_a_tolerance_holds_for_defaults_trials_and_records():
    model, store = Model(), MemoryStore()
    data = model.bytes(model.conv(model.input(1, 64, 28, 28), (64, 64)))
    feeds = model.feeds()

    def algorithms(result):
        assert_close(_run(result.artifact, feeds), reference(data, feeds))
        tasks = [row for row in result.lowered.metadata["tasks"] if row["template"] == "conv2d"]
        return [row["config"].get("algorithm", "direct") for row in tasks]

    assert algorithms(api.compile(data, threads=2, database=store, prior="none")) == ["winograd4"]
    assert algorithms(api.compile(data, threads=2, database=store, prior="none", tolerance=2e-6)) == ["winograd2"]
    exact = api.tune(data, threads=2, database=store, budget=Budget(trials=4), prior="none", tolerance=0)
    assert algorithms(exact) == ["direct"] and exact.lowered.metadata["tolerance"] == 0
    assert not any("algorithm" in record.candidate.config for record in store.records())
    assert store.sessions()[0].options["tolerance"] == 0
    api.tune(data, threads=2, database=store, budget=Budget(trials=4), prior="none")
    assert any("algorithm" in record.candidate.config for record in store.records())
    again = api.compile(data, threads=2, database=store, prior="none", tolerance=0)
    assert algorithms(again) == ["direct"]
    for wrong in (-1e-6, float("nan"), float("inf")):
        with pytest.raises(InputError, match="give a relative error of 0 or more"):
            api.compile(data, tolerance=wrong)


def test_records_of_schedules_that_lost_as_a_model_are_left_alone():
    store = MemoryStore()
    same = {"threads": 2, "mcpu": "znver5", "tolerance": None, "precision": "fp32"}

    def lost():
        return tuned_lost(store.sessions(), "m", same)

    def tuned(ratio, model_hash="m", threads=2, **options):
        session = store.start_session("network", model_hash, {"threads": threads, "mcpu": "znver5", **options})
        contest = None if ratio is None else asdict(ModelContest(tuned_s=ratio, default_s=1.0, ratio=ratio, rounds=5))
        store.finish_session(session, {"contest": contest})

    assert not lost()
    tuned(1.1)
    assert lost()
    tuned(None)
    tuned(0.9, threads=4)
    tuned(0.9, model_hash="another")
    tuned(0.9, precision="bf16")
    assert lost()
    tuned(0.9)
    assert not lost()


def test_what_a_listener_raises_ends_the_session_and_keeps_its_records(tmp_path):
    class EnoughError(Exception):
        pass

    def on_event(event):
        if isinstance(event, TrialsDone):
            raise EnoughError

    database, before = tmp_path / "records.sqlite", set(psutil.Process().children())
    with pytest.raises(EnoughError):
        api.tune(_small_network()[1], database=database, budget=Budget(trials=100), threads=1, on_event=on_event)
    assert sum(_proposed(database).values()) >= 1
    assert not psutil.wait_procs(set(psutil.Process().children()) - before, timeout=20)[1]


TUNE = """
import sys
from pathlib import Path
from calumma import api
from calumma.core.errors import InputError
from calumma.core.values import Budget
from calumma.tuner.events import SessionStarted, TrialsDone

def on_event(event):
    match event:
        case SessionStarted():
            print("recalled", event.recalled, flush=True)
        case TrialsDone():
            print("trials", len(event.records), flush=True)

model, database, trials = sys.argv[1:]
api.tune(Path(model), database=database, budget=Budget(trials=int(trials)), threads=1, on_event=on_event)
"""


def test_a_killed_session_goes_on_and_proposes_nothing_twice(tmp_path):
    path, database = tmp_path / "model.onnx", tmp_path / "records.sqlite"
    path.write_bytes(_small_network()[1])
    source = Path(api.__file__).parents[1]
    command = [sys.executable, "-c", TUNE, str(path), str(database)]
    environment = os.environ | {"PYTHONPATH": str(source)}
    first = subprocess.Popen([*command, "1000"], stdout=subprocess.PIPE, text=True, env=environment)
    workers: list[psutil.Process] = []
    try:
        assert first.stdout.readline() == "recalled 0\n"
        reported = sum(int(first.stdout.readline().split()[1]) for _ in range(2))
        workers = psutil.Process(first.pid).children(recursive=True)
    finally:
        first.kill()
        first.communicate()
    # Whoever the dead session had started ends with it.
    assert not psutil.wait_procs(workers, timeout=20)[1]
    kept = _proposed(database)
    assert sum(kept.values()) >= reported > 0
    second = subprocess.run([*command, "12"], capture_output=True, text=True, timeout=100, env=environment)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[0] == f"recalled {len(kept)}"
    proposed = _proposed(database)
    assert sum(proposed.values()) == sum(kept.values()) + 12
    assert set(proposed.values()) == {1}
