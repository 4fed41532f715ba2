"""A worker: builds candidates with the in-process JIT, keeps them, and runs them when told. One per process.

Requests and replies are JSON objects; a reply has "status", "reason", "seconds" and what the request asks for:

    {"op": "build", "id": i, "candidate": {...}}    schedule and compile; the function stays loaded as i
    {"op": "run", "id": i, "best_s": x}             time i, then drop it; "latencies_s"
    {"op": "reference", "workload": {...}}          compute the unscheduled function's outputs, unless they are on disk
    {"op": "verify", "id": i}                       compare i's outputs with the reference's, then drop it
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.pages import ALIGNMENT, huge_pages
from calumma.core.protocols import Template
from calumma.core.values import MAGNITUDES, WEIGHTS, Candidate, Repacking, Status, Workload
from calumma.measure import messages, timing, verification
from calumma.measure.messages import WorkerSettings

tvm = tvm_compat.load()
import tvm_ffi  # noqa: E402
from tvm import te  # noqa: E402

from calumma.tvm_compat import codegen  # noqa: E402

_PREPARE = "calumma.measure.prepare"
_ARGUMENTS_BYTES = 1 << 30
"""Arguments of earlier workloads are kept up to this size."""
_WORKLOADS = 256
"""Functions and spaces of as many workloads are kept."""
_STREAMING = 4
"""Weights of this many L3 sizes evict themselves while they are read: no flush is needed."""
_SWEEP = 1.5
"""Rows of this many L2 sizes empty a thread's L2."""
_TIMING_SEED = 0
_VERIFY_SEED = 1
_VERIFY_RUNS = 2
"""A race may spare one run."""


@dataclass(frozen=True)
class Signature:
    """What a workload's function takes, by position."""

    arguments: tuple[tuple[tuple[int, ...], str], ...]
    outputs: tuple[int, ...]
    weights: tuple[int, ...]
    magnitudes: tuple[float, ...]
    """Of random arguments."""


@dataclass
class _Known:
    """What a worker keeps of a workload."""

    function: Any
    signature: Signature
    space: Template | None = None
    """Made when the first candidate is built."""


@dataclass(frozen=True)
class _Kernel:
    module: Any
    name: str
    function: Any
    workload: Workload
    repacking: Mapping[int, Repacking] = field(default_factory=dict)
    """Position of a weight -> the form in which the kernel takes it."""

    def packed(self, position: int, array: NDArray) -> NDArray:
        """An argument of the workload as the kernel takes it."""
        return self.repacking[position].apply(array) if position in self.repacking else array


class Worker:
    """The state of one worker process."""

    def __init__(self, settings: WorkerSettings, wake: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._all_cores = os.sched_getaffinity(0)
        tvm_compat.set_threads(settings.threads)
        self._home_cores = _cores_beside_pool()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = _address_space_bytes() + settings.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        self._settings = settings
        self._target = tvm_compat.tvm_target(settings.target, settings.threads)
        self._space = _resolve(settings.space_entry)
        self._wake = wake
        self._flush = tvm.get_global_func("cache_flush_cpu_non_first_arg")
        self._kernels: dict[int, _Kernel] = {}
        self._workloads: OrderedDict[str, _Known] = OrderedDict()
        self._arguments: OrderedDict[str, list[Any]] = OrderedDict()
        swept = int(_SWEEP * settings.target.l2_bytes) // settings.target.line_bytes
        self._rows = {
            sweep: _adjacent(
                [np.zeros((settings.threads, swept if sweep else 1, settings.target.line_bytes // 4), np.float32)]
            )[0]
            for sweep in (False, True)
        }
        self._sweep = False
        self._evicted: list[Any] = []
        tvm.register_global_func(_PREPARE, self._prepare, override=True)

    def serve(self, connection: Connection) -> None:
        """Answer requests until the runner is gone."""
        handlers = {"build": self._build, "run": self._run, "reference": self._reference, "verify": self._verify}
        messages.send(connection, {"pid": os.getpid()})
        while True:
            try:
                request = messages.receive(connection)
            except (EOFError, ConnectionResetError):
                return
            start = time.perf_counter()
            # TVM has bound this thread to the pool's cores, where all workers would build; while a kernel is timed it
            # must not share a core with a thread of the pool, which would double the latency until the system moves it.
            os.sched_setaffinity(0, self._home_cores if request["op"] == "run" else self._all_cores)
            try:
                reply = {"status": Status.OK, "reason": "", **handlers[request["op"]](request)}
            except Exception as error:  # noqa: BLE001 - whatever a candidate does is its result
                failed = Status.BUILD_ERROR if request["op"] == "build" else Status.RUN_ERROR
                reply = {"status": failed, "reason": one_line(error)}
            messages.send(connection, reply | {"seconds": time.perf_counter() - start})

    def _build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        candidate = messages.decode_candidate(request["candidate"])
        known = self._known(candidate.workload)
        try:
            scheduled, repacking = self._schedule(known, candidate)
        except (tvm.s_tir.ScheduleError, ValueError, InputError) as error:
            return {"status": Status.INVALID_CONFIG, "reason": one_line(error)}
        self._kernels[request["id"]] = replace(self._compile(scheduled.mod, candidate.workload), repacking=repacking)
        return {}

    def _schedule(self, known: _Known, candidate: Candidate) -> tuple[Any, Mapping[int, Repacking]]:
        if known.space is None:
            known.space = self._space(known.function, self._settings.target, self._settings.threads)
        space = known.space
        if (space.template, space.version) != (candidate.template, candidate.template_version):
            raise InputError(
                f"the candidate is of template {candidate.template} version {candidate.template_version}, "
                f"this space is {space.template} version {space.version}"
            )
        return space.schedule(candidate.config), space.repacking(candidate.config)

    def _compile(self, module: Any, workload: Workload) -> _Kernel:
        (variable,) = module.get_global_vars()
        name = variable.name_hint
        library = codegen.build(module, self._target)
        return _Kernel(library, name, library[name], workload)  # LLVM generates the code when the function is looked up

    def _known(self, workload: Workload) -> _Known:
        found = self._workloads.pop(workload.hash, None)
        if found is None:
            function = tvm.ir.load_json(workload.text).with_attr("global_symbol", "main")
            found = _Known(function, signature(function))
        self._workloads[workload.hash] = found
        while len(self._workloads) > _WORKLOADS:
            self._workloads.popitem(last=False)
        return found

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        kernel = self._kernels.pop(request["id"])
        wanted = self._known(kernel.workload).signature
        arguments = self._timing_arguments(kernel, wanted)
        state = request["cache_state"]
        weights = [arguments[i] for i in wanted.weights]
        streaming = _bytes_of(weights) > _STREAMING * self._settings.target.l3_bytes
        self._evicted = weights if state == "cold" and not streaming else []
        self._sweep = state != "hot"

        kernel.function(*arguments)  # touches every page
        self._wake(self._rows[False])
        start = time.perf_counter()
        kernel.function(*arguments)
        number = timing.calls_per_repetition(time.perf_counter() - start, state)

        def sample(repetitions: int) -> tuple[float, ...]:
            evaluator = kernel.module.time_evaluator(
                kernel.name, tvm.cpu(), number=number, repeat=repetitions, f_preproc=_PREPARE
            )
            return tuple(evaluator(*arguments).results)

        latencies = timing.repeat_adaptively(sample, request["best_s"], preemptions=_preemptions)
        self._evicted = []
        return {"latencies_s": latencies}

    def _prepare(self, *_: Any) -> None:
        """Before every timed repetition: bring the caches into their state and wake the pool that slept meanwhile."""
        if self._evicted:
            self._flush(self._rows[False], *self._evicted)
        self._wake(self._rows[self._sweep])

    def _timing_arguments(self, kernel: _Kernel, wanted: Signature) -> list[Any]:
        key = " ".join([kernel.workload.hash, *(f"{i} {r.name}" for i, r in sorted(kernel.repacking.items()))])
        arguments = self._arguments.pop(key, None)
        if arguments is None:
            while self._arguments and sum(map(_bytes_of, self._arguments.values())) > _ARGUMENTS_BYTES:
                self._arguments.popitem(last=False)
            arguments = _adjacent(
                kernel.packed(index, verification.random_array(shape, dtype, _TIMING_SEED, index, magnitude=magnitude))
                for index, ((shape, dtype), magnitude) in enumerate(
                    zip(wanted.arguments, wanted.magnitudes, strict=True)
                )
            )
        self._arguments[key] = arguments
        return arguments

    def _reference(self, request: Mapping[str, Any]) -> dict[str, Any]:
        workload = Workload(**request["workload"])
        path = self._reference_path(workload)
        if path.exists():
            return {}
        known = self._known(workload)
        kernel = self._compile(tvm.IRModule({"main": known.function}), workload)
        for positive in (False, True):  # a logarithm or a root wants positive inputs
            outputs = self._outputs(kernel, known.signature, positive)
            if verification.usable(outputs):
                break
        else:
            reason = (
                "cannot be verified: the unscheduled function gives only zeros or non-finite values on random inputs"
            )
            return {"status": Status.RUN_ERROR, "reason": reason}
        arrays = {str(number): output.view(np.uint8) for number, output in enumerate(outputs)}
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, allow_pickle=False, positive=np.array(positive), **arrays)
        partial.rename(path)
        return {}

    def _reference_path(self, workload: Workload) -> Path:
        return Path(self._settings.directory) / f"{workload.hash}.npz"

    def _verify(self, request: Mapping[str, Any]) -> dict[str, Any]:
        kernel = self._kernels.pop(request["id"])
        wanted = self._known(kernel.workload).signature
        dtypes = [wanted.arguments[i][1] for i in wanted.outputs]
        with np.load(self._reference_path(kernel.workload), allow_pickle=False) as saved:
            positive = bool(saved["positive"])
            references = [saved[str(n)].view(verification.numpy_dtype(dtype)) for n, dtype in enumerate(dtypes)]
        for _ in range(_VERIFY_RUNS):
            wrong = verification.judge(self._outputs(kernel, wanted, positive), references, dtypes)
            if wrong:
                return {"status": Status.WRONG_OUTPUT, "reason": wrong}
        return {}

    def _outputs(self, kernel: _Kernel, wanted: Signature, positive: bool) -> list[NDArray]:
        """Run a kernel once on the inputs for verification; outputs start poisoned and come back flat."""
        arguments = [
            tvm.runtime.tensor(
                verification.poisoned(shape, dtype)
                if index in wanted.outputs
                else kernel.packed(
                    index,
                    verification.random_array(
                        shape, dtype, _VERIFY_SEED, index, positive=positive, magnitude=magnitude
                    ),
                )
            )
            for index, ((shape, dtype), magnitude) in enumerate(zip(wanted.arguments, wanted.magnitudes, strict=True))
        ]
        kernel.function(*arguments)
        return [arguments[i].numpy().reshape(-1) for i in wanted.outputs]


def signature(function: Any) -> Signature:
    """Read a PrimFunc's arguments: which are outputs, which are weights (constant in the model).

    Weights are named by the function attribute `calumma.weights` (positions). Without it they are the inputs after the
    first whose shape is not an output's: a residual has the output's shape.
    """
    written: list[Any] = []
    tvm_ffi.structural_walk(function.body, (tvm.tirx.BufferStore, lambda store: written.append(store.buffer)))
    buffers = list(function.params)
    arguments = tuple((tuple(int(extent) for extent in b.shape), str(b.dtype)) for b in buffers)
    outputs = tuple(i for i, b in enumerate(buffers) if any(b.same_as(other) for other in written))
    attributes = function.attrs or {}
    magnitudes = tuple(float(value) for value in attributes.get(MAGNITUDES, [1.0] * len(arguments)))
    named = attributes.get(WEIGHTS)
    if named is not None:
        return Signature(arguments, outputs, tuple(int(i) for i in named), magnitudes)
    shapes = {arguments[i][0] for i in outputs}
    inputs = [i for i in range(len(buffers)) if i not in outputs]
    weights = tuple(i for i in inputs[1:] if arguments[i][0] not in shapes)
    return Signature(arguments, outputs, weights, magnitudes)


def build_wake(settings: WorkerSettings) -> Any:
    """Compile a function in which every thread rewrites its row of a buffer, called just before a kernel is timed.

    It ends the sleep of the pool: a worker's idle threads sleep early (`server.SPIN_COUNT`), the model's do not between
    two kernels. A row larger than a thread's L2 sends all that this held to L3. Built in the fork server, it also loads
    LLVM once for all workers.
    """
    lines = te.var("lines", "int64")
    buffer = te.placeholder((settings.threads, lines, settings.target.line_bytes // 4), name="buffer")
    result = te.compute(buffer.shape, lambda i, j, k: buffer[i, j, k] + 1.0, name="result")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([buffer, result]))
    thread, _, place = schedule.get_loops(schedule.get_sblock("result"))
    schedule.parallel(thread)
    schedule.vectorize(place)
    target = tvm_compat.tvm_target(settings.target, settings.threads)
    function = codegen.build(schedule.mod, target)["main"]
    return lambda tensor: function(tensor, tensor)


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the line of its text that says most: TVM's errors open with a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror:" in line] or lines[-1:] or [""]
    return f"{type(error).__name__}: {telling[-1].removeprefix(type(error).__name__ + ': ')}"[:400]


def _adjacent(arrays: Iterable[NDArray]) -> list[Any]:
    """Copies of arrays as tensors that follow each other on huge pages, as those of an artifact do."""
    arrays = list(arrays)
    starts = np.cumsum([0, *(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays)])
    memory = huge_pages(int(starts[-1]))
    view = tvm.get_global_func("runtime.TVMTensorCreateView")  # not every dtype speaks DLPack
    tensors = []
    for array, start in zip(arrays, starts, strict=False):
        part = memory[start : start + array.nbytes]
        part[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        dtype = tvm_ffi.dtype(str(array.dtype))
        tensors.append(view(tvm_ffi.from_dlpack(part), tvm_ffi.Shape(array.shape), dtype, 0))
    return tensors


def _cores_beside_pool() -> set[int]:
    """Cores of this thread to which TVM has bound no thread of its pool; all of this thread's when it binds none."""
    mine = os.sched_getaffinity(0)
    threads = {int(entry.name) for entry in Path("/proc/self/task").iterdir()} - {os.getpid()}
    return mine.difference(*(os.sched_getaffinity(thread) for thread in threads)) or mine


def _preemptions() -> int:
    """How often a thread of this process has lost its core to another process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _resolve(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _size_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * verification.numpy_dtype(dtype).itemsize


def _bytes_of(tensors: list[Any]) -> int:
    return sum(_size_bytes(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors)
