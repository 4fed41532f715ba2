"""Compiles damaged models, each in a forked child with limits, and judges what came of it.

    python -m tests.integration.onnx_fuzz FIRST COUNT

One JSON line per case: {"number", "source", "mutation", "verdict", "detail", "seconds"}. Verdicts:

    refused      one line, an error of the user's (exit status 2)
    right        the outputs are ONNX Runtime's
    unchecked    compiled, but there is nothing to compare with: ONNX Runtime refuses the model, or values overflow
    fault        a traceback, an error of calumma's own, a message of several lines, a crash, a hang, too much memory,
                 or wrong outputs

The parent imports TVM once and never runs a model, so that it stays without threads and a fork is safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.integration import onnx_mutations

TIMEOUT_S = 120
"""Many times what a case takes; the machine may be doing other things."""
MEMORY_BYTES = 6 << 30
"""Address space a child may add to its parent's: none of the undamaged models needs a tenth of it."""
TOLERANCE = 1e-3
"""Of the largest output, as everywhere in the suite."""
NUDGE = 1e-5
"""Relative change of the inputs whose effect shows how exact any float32 result can be."""


def judge(case: onnx_mutations.Case, folder: Path) -> dict[str, Any]:
    """Compile and run one case; compare with ONNX Runtime where it accepts the model too."""
    path, ours, theirs = (folder / name for name in ("model.onnx", "ours.npz", "theirs.npz"))
    path.write_bytes(case.data)
    for stale in (ours, theirs):
        stale.unlink(missing_ok=True)
    start = time.monotonic()
    ending, text = _in_child(lambda: _compile(path, ours), folder)
    verdict = {"number": case.number, "source": case.source, "mutation": case.mutation}
    if ending:
        verdict |= {"verdict": "fault", "detail": f"{ending}: {text[-2000:]}"}
    elif text:
        kind, _, detail = text.partition(" ")
        verdict |= {"verdict": kind, "detail": detail}
    else:
        ending, text = _in_child(lambda: _reference(path, ours, theirs), folder)
        if ending or text:
            verdict |= {"verdict": "unchecked", "detail": f"ONNX Runtime: {text[-300:]}"}
        else:
            verdict |= _compared(ours, theirs)
    return verdict | {"seconds": round(time.monotonic() - start, 2)}


def _in_child(work: Callable[[], str], folder: Path) -> tuple[str, str]:
    """Run `work` in a forked child; returns how it died ("" for not at all) and what it returned, or last printed."""
    log, answer = folder / "log.txt", folder / "answer.txt"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()  # a hang is killed with the processes it has started
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limit = _address_space_bytes() + MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            answer.write_text(work())
            status = 0
        finally:
            if status and sys.exc_info()[0] is not None:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    deadline = time.monotonic() + TIMEOUT_S
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"hang of {TIMEOUT_S} s", log.read_text(errors="replace")
        time.sleep(0.002)
    status = os.waitstatus_to_exitcode(ended[1])
    if status < 0:
        return signal.Signals(-status).name, log.read_text(errors="replace")
    return ("traceback", log.read_text(errors="replace")) if status else ("", answer.read_text())


def _compile(path: Path, destination: Path) -> str:
    """What `calumma compile` and `calumma run` do; returns "" when the outputs are at `destination`."""
    from calumma import api
    from calumma.core.errors import CalummaError
    from calumma.database import MemoryStore

    try:
        artifact = api.compile(path, threads=1, database=MemoryStore()).artifact
        feeds = _feeds(artifact.inputs)
        outputs = artifact.run(feeds)
    except CalummaError as error:
        text = str(error)
        fine = error.exit_status == 2 and "\n" not in text and 20 < len(text) < 2000
        return f"{'refused' if fine else 'fault'} {type(error).__name__}: {text}"
    except MemoryError as error:
        return f"refused MemoryError: {error}"  # the command line makes one line of it
    arrays = {f"output {i}": output for i, output in enumerate(outputs)}
    with destination.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **{f"feed {name}": array for name, array in feeds.items()})
    return ""


def _feeds(specs: Any) -> dict[str, NDArray]:
    rng = np.random.default_rng(7)
    feeds = {}
    for spec in specs:
        values = rng.standard_normal(spec.shape) if spec.dtype.startswith("float") else rng.integers(0, 2, spec.shape)
        feeds[spec.name] = np.asarray(values).astype(spec.dtype)
    return feeds


def _reference(path: Path, ours: Path, destination: Path) -> str:
    """ONNX Runtime's outputs on the same inputs, and on inputs nudged a little."""
    import onnx
    import onnxruntime  # here, because it starts a thread

    with np.load(ours, allow_pickle=False) as saved:
        feeds = {name.removeprefix("feed "): saved[name] for name in saved.files if name.startswith("feed ")}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    rng = np.random.default_rng(8)
    nudged = {
        name: (a * (1 + NUDGE * rng.uniform(-1, 1, a.shape))).astype(a.dtype) if a.dtype.kind == "f" else a
        for name, a in feeds.items()
    }
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        exact, moved = session.run(None, feeds), session.run(None, nudged)
        wide = onnx.load(path)  # every value is an output: what overflows on the way may come out in many ways
        named = {value.name for value in wide.graph.output}
        every = [name for node in wide.graph.node for name in node.output if name and name not in named]
        wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in every)
        session = onnxruntime.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
        on_the_way = session.run(None, feeds)
    except Exception as error:  # noqa: BLE001 - whatever it says, it is no reference
        return str(error).strip() or type(error).__name__
    with destination.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            finite=np.array(all(np.isfinite(array).all() for array in on_the_way if array.dtype.kind == "f")),
            **{f"exact {i}": array for i, array in enumerate(exact)},
            **{f"moved {i}": array for i, array in enumerate(moved)},
        )
    return ""


def _compared(ours: Path, theirs: Path) -> dict[str, Any]:
    with np.load(ours, allow_pickle=False) as saved, np.load(theirs, allow_pickle=False) as reference:
        outputs = [saved[name] for name in saved.files if name.startswith("output ")]
        exact, moved = (
            [reference[name] for name in reference.files if name.startswith(kind)] for kind in ("exact ", "moved ")
        )
        finite = bool(reference["finite"])
    if len(outputs) != len(exact):
        return {"verdict": "fault", "detail": f"wrong: {len(outputs)} outputs, expected {len(exact)}"}
    checked = 0
    for number, (a, b, c) in enumerate(zip(outputs, exact, moved, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return {
                "verdict": "fault",
                "detail": f"wrong: output {number} is {a.dtype}{a.shape}, expected {b.dtype}{b.shape}",
            }
        if a.size == 0 or not (finite and np.isfinite(b).all() and np.isfinite(c).all()):
            continue
        if a.dtype.kind == "i" and np.abs(b.astype(np.float64)).max() >= np.iinfo(b.dtype).max:
            continue  # a float32 that no integer can hold: anything may come of it
        checked += 1
        x, y, z = (array.astype(np.float64) for array in (a, b, c))
        allowed = TOLERANCE * max(np.abs(y).max(), 1e-30) + 10 * np.abs(y - z).max()
        if not np.isfinite(x).all() or np.abs(x - y).max() > allowed:
            error = np.abs(x - y).max()
            return {"verdict": "fault", "detail": f"wrong: output {number} is off by {error}, allowed {allowed}"}
    return {"verdict": "right", "detail": ""} if checked else {"verdict": "unchecked", "detail": "values overflow"}


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def warm_up() -> None:
    """Import everything and compile a model, so that children only do what is their own."""
    from calumma import api
    from calumma.artifact import runtime
    from calumma.database import MemoryStore

    runtime.ffi()  # without torch, which would come with `import tvm`, and with threads
    api.compile(onnx_mutations.source("convolutions"), threads=1, database=MemoryStore())
    deadline = time.monotonic() + 5
    while len(list(Path("/proc/self/task").iterdir())) != 1:
        if time.monotonic() > deadline:
            raise RuntimeError("the process that forks has threads: its children could hang")
        time.sleep(0.01)  # the last thread of a pool is just ending


def verdicts(numbers: range) -> Iterator[Mapping[str, Any]]:
    """Judge cases one after the other."""
    with tempfile.TemporaryDirectory(prefix="calumma-fuzz-") as folder:
        os.environ["TMPDIR"] = folder  # a killed child leaves its temporary files here
        for number in numbers:
            yield judge(onnx_mutations.case(number), Path(folder))


def main() -> None:
    """Judge FIRST .. FIRST + COUNT - 1."""
    first, count = map(int, sys.argv[1:3])
    with contextlib.suppress(BrokenPipeError):
        warm_up()
        for verdict in verdicts(range(first, first + count)):
            print(json.dumps(verdict), flush=True)  # noqa: T201 - the answer of this program


if __name__ == "__main__":
    main()
