"""ONNX's own conformance cases, and what calumma makes of one.

The cases of `onnx.backend.test` that take and give tensors alone. Each runs in a process of its own, forked from one
that has loaded the compiler, with a limit on its time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
VERDICTS = ("right", "refused", "wrong", "traceback", "crash", "hang")

_TIMEOUT_S = 60.0
_ABSOLUTE = 1e-5
"""Least absolute tolerance: the cases' own 1e-7 leaves no room for sums in another order."""


@dataclass(frozen=True)
class Case:
    """A model, its inputs and the outputs that the ONNX project expects."""

    name: str
    model: bytes
    data: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...]
    """Inputs and outputs, in order, of each run."""
    rtol: float
    atol: float


@dataclass(frozen=True)
class Verdict:
    """What became of a case."""

    name: str
    operators: tuple[str, ...]
    verdict: str
    """One of VERDICTS."""
    note: str
    """The message, or how far off the result is."""
    onnxruntime: bool
    """Whether ONNX Runtime is right."""
    seconds: float


def all_cases(kinds: Sequence[str] = KINDS) -> list[Case]:
    """All cases of tensors alone, in order of their names."""
    from onnx.backend.test.loader import load_model_tests

    found = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for kind in kinds:
            for test in load_model_tests(kind=kind):
                case = _from_memory(test) if test.model is not None else _from_folder(test)
                if case is not None:
                    found.append(case)
    return sorted(found, key=lambda case: case.name)


def verdicts(cases: Sequence[Case], jobs: int = 1) -> Iterator[Verdict]:
    """Run cases, `jobs` at a time, each in a process of its own; the verdicts come in order."""
    import onnxruntime  # noqa: F401 - loaded once, before the children are forked

    from calumma import (
        onnx_rules,  # noqa: F401
        tvm_compat,
    )

    tvm_compat.load()
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(_isolated, cases)


def _from_memory(test: Any) -> Case | None:
    if not all(isinstance(value, (np.ndarray, np.generic)) for run in test.data_sets for side in run for value in side):
        return None
    runs = tuple((tuple(inputs), tuple(outputs)) for inputs, outputs in test.data_sets)
    if not _is_plain(test.model, runs):
        return None
    return Case(test.name, test.model.SerializeToString(), runs, test.rtol, test.atol)


def _from_folder(test: Any) -> Case | None:
    folder = Path(test.model_dir)
    data = (folder / "model.onnx").read_bytes()
    model = onnx.load_from_string(data)
    runs = []
    for run in sorted(folder.glob("test_data_set_*")):
        sides = []
        for side in ("input", "output"):
            files = sorted(run.glob(f"{side}_*.pb"), key=lambda path: int(path.stem.split("_")[-1]))
            with contextlib.suppress(ValueError, TypeError):
                sides.append(tuple(numpy_helper.to_array(onnx.load_tensor(str(path))) for path in files))
        if len(sides) < 2:
            return None
        runs.append((sides[0], sides[1]))
    return Case(test.name, data, tuple(runs), test.rtol, test.atol) if _is_plain(model, runs) else None


def _is_plain(model: onnx.ModelProto, runs: Sequence[Any]) -> bool:
    values = (*model.graph.input, *model.graph.output)
    if not all(value.type.HasField("tensor_type") for value in values):
        return False
    return all(np.asarray(array).dtype.kind not in "OUSc" for run in runs for side in run for array in side)


def _isolated(case: Case) -> Verdict:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, sender))
    start = time.perf_counter()
    process.start()
    sender.close()
    by_onnxruntime, verdict, note = False, "hang", f"no end in {_TIMEOUT_S:g} s"
    try:
        while receiver.poll(max(0.0, start + _TIMEOUT_S - time.perf_counter())):
            part = receiver.recv()
            if isinstance(part, bool):
                by_onnxruntime = part
            else:
                verdict, note = part
                break
    except EOFError:
        process.join()
        verdict, note = "crash", f"exit status {process.exitcode}"
    if process.is_alive() and verdict == "hang":
        process.kill()
    process.join()
    operators = tuple(dict.fromkeys(node.op_type for node in onnx.load_from_string(case.model).graph.node))
    return Verdict(case.name, operators, verdict, note, by_onnxruntime, time.perf_counter() - start)


def _child(case: Case, sender: Connection) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    model = onnx.load_from_string(case.model)
    sender.send(_onnxruntime_is_right(case, model))
    sender.send(_outcome(case, model))
    sender.close()
    os._exit(0)


def _onnxruntime_is_right(case: Case, model: onnx.ModelProto) -> bool:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
        return all(
            difference(session.run(None, _named(model, inputs)), outputs, case.rtol, case.atol) is None
            for inputs, outputs in case.data
        )
    except Exception:  # noqa: BLE001 - it raises whatever it likes
        return False


def _outcome(case: Case, model: onnx.ModelProto) -> tuple[str, str]:
    import calumma
    from calumma.core.errors import InputError

    try:
        for inputs, outputs in case.data:
            named = _named(model, inputs)
            shapes = {
                value.name: named[value.name].shape
                for value in model.graph.input
                if value.name in named and not _is_fixed(value)
            }
            artifact = calumma.compile(case.model, shapes=shapes or None).artifact
            flaw = difference(artifact.run(named), outputs, case.rtol, case.atol)
            if flaw is not None:
                return "wrong", flaw
    except InputError as error:
        text = str(error)
        return ("refused", text) if "\n" not in text else ("traceback", f"not one line: {text!r}")
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        return "traceback", f"{type(error).__name__}: {error}"
    return "right", ""


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _named(model: onnx.ModelProto, inputs: Sequence[Any]) -> dict[str, NDArray[Any]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input]
    if len(names) > len(inputs):
        names = [name for name in names if name not in constants]
    return {name: np.asarray(value) for name, value in zip(names, inputs, strict=False)}


def difference(found: Sequence[Any], expected: Sequence[Any], rtol: float, atol: float) -> str | None:
    """How outputs differ from the expected ones in number, type, shape or value; None where they do not."""
    if len(found) != len(expected):
        return f"{len(found)} outputs, expected {len(expected)}"
    for index, (left, right) in enumerate(zip(found, expected, strict=True)):
        a, b = np.asarray(left), np.asarray(right)
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"output {index} is {a.dtype}{list(a.shape)}, expected {b.dtype}{list(b.shape)}"
        if a.dtype.kind in "biu":
            if not np.array_equal(a, b):
                return f"output {index} differs in {int((a != b).sum())} of {a.size} elements"
            continue
        wide_a, wide_b = a.astype("float64"), b.astype("float64")
        coarse = 0.0 if a.dtype.itemsize > 2 else {"float16": 2e-3}.get(a.dtype.name, 2e-2)  # a unit in the last place
        if not np.allclose(wide_a, wide_b, rtol=max(rtol, coarse), atol=max(atol, _ABSOLUTE), equal_nan=True):
            with np.errstate(all="ignore"):
                most = np.nanmax(np.abs(wide_a - wide_b)) if a.size else 0.0
            return f"output {index} differs by up to {most:.3g}"
    return None
