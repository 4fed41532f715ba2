"""A compiled model, ready to run."""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calumma import tvm_compat
from calumma.artifact import cpu, file_format, narrow_weights, runtime
from calumma.artifact.plan import Plan, Step, calls, followed, refusals
from calumma.core import hardware as host
from calumma.core.errors import ArtifactError, InputError, InternalError
from calumma.core.pages import huge_pages
from calumma.core.values import TensorSpec

if TYPE_CHECKING:
    from calumma.artifact.building import Executable


@dataclass(frozen=True)
class KernelTime:
    """What one kernel costs in one run of the model."""

    kernel: str
    calls: int
    """Times one run calls it."""
    seconds: float
    """All these calls together; the median over the runs."""
    output: tuple[int, ...]
    """Shape of what it writes; in blocked layout where the model keeps it so."""


@dataclass(frozen=True)
class Profile:
    """Where the time of a run goes. Everything is a median over runs, in seconds."""

    kernels: tuple[KernelTime, ...]
    """In the order of their first call."""
    copies_s: float
    """Inputs into the arena, outputs out of it."""
    kernels_s: float
    """All kernels of one run, called one by one."""
    latency_s: float
    """The same runs whole, as `run` does them, in turns with those that were taken apart."""


class Artifact:
    """A model that takes and returns NumPy arrays.

    One artifact may be called from several Python threads: calls are served one after the other, each with all of the
    artifact's threads.
    """

    def __init__(
        self, plan: Plan, module: Any, weights: NDArray[np.uint8], metadata: Mapping[str, Any], threads: int
    ) -> None:
        """Use `load` or `from_executable`.

        Args:
            plan: What to run.
            module: TVM's executable with the kernels below it.
            weights: All parameters, laid out as the plan says, the first byte aligned to 64.
            metadata: What is known about the model.
            threads: Threads a call uses.
        """
        self.inputs: tuple[TensorSpec, ...] = plan.inputs
        self.outputs: tuple[TensorSpec, ...] = plan.outputs
        self.metadata: dict[str, Any] = dict(metadata)
        self.threads = threads
        self._plan = plan
        self._module = module
        sections = {"arena": huge_pages(plan.arena_bytes), "weights": weights}
        self._tensors = [runtime.tensor(sections[slot.section], slot) for slot in plan.slots]
        self._program, self._run_program = runtime.bind(module, self._tensors)

        self._sections = sections
        self._input_arrays = [self._array(slot) for slot in plan.input_slots]
        self._output_arrays = [self._array(slot) for slot in plan.output_slots]
        self._extents = [[self._array(slot) for slot in slots] for slots in plan.output_extents]
        self._expected = [(spec, array.dtype) for spec, array in zip(plan.inputs, self._input_arrays, strict=True)]
        self._refusals = tuple(refusals(plan.steps))
        self._lock = threading.Lock()

    @classmethod
    def from_executable(
        cls, executable: Executable, params: Sequence[NDArray], metadata: Mapping[str, Any], threads: int | None = None
    ) -> Artifact:
        """Run a model in the process that built it; needs no C compiler.

        Args:
            executable: Result of `build`.
            params: The model's weights, in order.
            metadata: What is known about the model.
            threads: Threads a call uses; None takes what the model was built for.
        """
        executable.check_params(params)
        count = tvm_compat.set_threads(threads or executable.threads)
        plan = executable.plan
        weights = huge_pages(plan.weights_bytes)
        for index, param in zip(plan.param_slots, params, strict=True):
            slot = plan.slots[index]
            raw = np.ascontiguousarray(param).reshape(-1).view(np.uint8)
            weights[slot.offset : slot.offset + slot.size_bytes] = raw
        return cls(plan, executable.jit(), weights, metadata, count)

    def __call__(self, *arrays: ArrayLike, **named: ArrayLike) -> NDArray | tuple[NDArray, ...]:
        """Run the model on inputs in order, or by name; returns the output, or a tuple where there are several.

        Raises:
            ArtifactError: an input is missing, unknown, or has the wrong shape or type.
        """
        if len(arrays) > len(self.inputs):
            raise ArtifactError(f"{len(arrays)} inputs given, the model takes {len(self.inputs)}: {self._names()}")
        feeds = {spec.name: value for spec, value in zip(self.inputs, arrays, strict=False)}
        twice = feeds.keys() & named.keys()
        if twice:
            raise ArtifactError(f"input {sorted(twice)[0]!r} is given twice, by position and by name")
        outputs = self.run({**feeds, **named})
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, feeds: Mapping[str, ArrayLike]) -> list[NDArray]:
        """Run the model on inputs by name; returns the outputs in order, the caller's own.

        An output with bounded axes comes in the shape that it has for these inputs.

        Raises:
            ArtifactError: an input is missing, unknown, or has the wrong shape or type; or the run takes a branch that
                could not be compiled.
        """
        arrays = self._check(feeds)
        with self._lock:
            runtime.use_threads(self.threads)
            return self._run_once(arrays)

    def run_into(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[tuple[int, ...]]:
        """Run on memory of another library, without a copy wherever the model can use it as it is.

        Args:
            inputs: Tensors that speak DLPack, in order, with the model's shapes and types; on the CPU, C-contiguous,
                the first byte aligned to 64. Nothing of this is checked here.
            outputs: The same for the results, which are written there. One with bounded axes has the largest shape that
                it can have, `TensorSpec.shape`.

        Returns:
            The shape of each output: what is behind it along a bounded axis is no part of the result.
        """
        tensors = list(self._tensors)
        plan = self._plan
        for all_views, slots, given in (
            (plan.input_views, plan.input_slots, inputs),
            (plan.output_views, plan.output_slots, outputs),
        ):
            for views, slot, tensor in zip(all_views, slots, given, strict=True):
                for view in views:
                    tensors[view] = self._view(tensor, view, slot)
        with self._lock:
            runtime.use_threads(self.threads)
            for views, array, tensor in zip(plan.input_views, self._input_arrays, inputs, strict=True):
                if not views:
                    array[...] = np.from_dlpack(tensor)
            self._call(self._program, *tensors)
            for views, array, tensor in zip(plan.output_views, self._output_arrays, outputs, strict=True):
                if not views:
                    np.from_dlpack(tensor)[...] = array
            return self._shapes()

    def _view(self, given: Any, view: int, slot: int) -> Any:
        """What a kernel gets for slot `view` when `given` takes the place of `slot`: the same bytes, maybe reshaped."""
        wanted = self._plan.slots[view]
        return given if wanted.shape == self._plan.slots[slot].shape else runtime.reshaped(given, wanted)

    def profile(self, feeds: Mapping[str, ArrayLike], repeat: int = 10) -> Profile:
        """Time every kernel inside the model: same order, same memory, same caches as in a run.

        Args:
            feeds: Inputs by name.
            repeat: Runs to take the median of, each whole and taken apart in turns; one more comes first and is not
                counted.

        Raises:
            ArtifactError: wrong inputs.
            InputError: `repeat` is not positive.
        """
        if repeat < 1:
            raise InputError(f"repeat={repeat}: at least one run is needed")
        arrays = self._check(feeds)
        steps = list(calls(self._plan.steps))
        functions = {step.kernel: self._module.get_function(step.kernel, query_imports=True) for step in steps}
        tensors = {step: [self._tensors[i] for i in step.slots] for step in steps}
        outputs = {step.kernel: self._plan.slots[step.slots[-1]].shape for step in reversed(steps)}
        whole: list[float] = []
        copies: list[float] = []
        kernels: list[dict[str, float]] = []
        now = time.perf_counter
        with self._lock:
            runtime.use_threads(self.threads)
            for _ in range(repeat + 1):
                start = now()
                self._run_once(arrays)
                whole.append(now() - start)

                start = now()
                self._feed(arrays)
                copied = now() - start
                seconds: dict[str, float] = {}
                counts: Counter[str] = Counter()
                for step in self._followed():
                    function, arguments = functions[step.kernel], tensors[step]
                    start = now()
                    function(*arguments)
                    seconds[step.kernel] = seconds.get(step.kernel, 0.0) + now() - start
                    counts[step.kernel] += 1
                start = now()
                self._results()
                copies.append(copied + now() - start)
                kernels.append(seconds)
        return Profile(
            tuple(
                KernelTime(kernel, n, median(run[kernel] for run in kernels[1:]), outputs[kernel])
                for kernel, n in counts.items()
            ),
            copies_s=median(copies[1:]),
            kernels_s=median(sum(run.values()) for run in kernels[1:]),
            latency_s=median(whole[1:]),
        )

    def _followed(self) -> Iterator[Step]:
        """The kernel calls of a run; conditions are read from memory when their turn comes."""
        return followed(self._plan.steps, lambda slot: bool(self._array(slot).item()))

    def _array(self, slot: int) -> NDArray:
        """The bytes of a slot."""
        place = self._plan.slots[slot]
        return runtime.array(self._sections[place.section], place)

    def _call(self, program: Any, *tensors: Any) -> None:
        """Run a program. Raises ArtifactError where that comes to a refusal."""
        try:
            program(*tensors)
        except Exception as error:
            for message in self._refusals:
                if message in str(error):
                    raise ArtifactError(message) from error
            raise

    def _run_once(self, arrays: Sequence[NDArray]) -> list[NDArray]:
        self._feed(arrays)
        self._call(self._run_program)
        return self._results()

    def _results(self) -> list[NDArray]:
        return [
            output[tuple(map(slice, shape))].copy()
            for output, shape in zip(self._output_arrays, self._shapes(), strict=True)
        ]

    def _shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the outputs of the run that has just been."""
        shapes = []
        for spec, extents in zip(self.outputs, self._extents, strict=True):
            shape = list(spec.shape)
            for axis, extent in zip(spec.bounded_axes, extents, strict=True):
                if not 0 <= extent <= shape[axis]:
                    raise InternalError(f"output {spec.name}: extent {extent} of axis {axis}, at most {shape[axis]}")
                shape[axis] = int(extent)
            shapes.append(tuple(shape))
        return shapes

    def _feed(self, arrays: Sequence[NDArray]) -> None:
        # The kernels need aligned inputs, which NumPy's are not, and the arena reuses these bytes within a run.
        for target, source in zip(self._input_arrays, arrays, strict=True):
            target[...] = source

    def _check(self, feeds: Mapping[str, ArrayLike]) -> list[NDArray]:
        """Inputs in order, checked. Raises ArtifactError."""
        arrays = []
        for spec, dtype in self._expected:
            if spec.name not in feeds:
                raise ArtifactError(f"input {spec.name!r} is missing; the model takes {self._names()}")
            array = np.asarray(feeds[spec.name])
            if array.shape != spec.shape:
                raise ArtifactError(
                    f"input {spec.name!r} has shape {array.shape}, the model was compiled for {spec.shape}; "
                    "compile the model for another shape"
                )
            if array.dtype != dtype:
                raise ArtifactError(
                    f"input {spec.name!r} has type {array.dtype}, the model takes {dtype}; "
                    f"convert it with .astype({str(dtype)!r})"
                )
            arrays.append(array)
        if len(feeds) != len(arrays):
            unknown = sorted(feeds.keys() - {spec.name for spec in self.inputs})
            raise ArtifactError(f"the model has no input {unknown[0]!r}; it takes {self._names()}")
        return arrays

    def _names(self) -> str:
        return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in self.inputs)


def load(path: str | PathLike[str], threads: int | None = None) -> Artifact:
    """Load an artifact from its file.

    The file holds machine code, and loading it runs code: load only files you trust. Checksums are compared before,
    against accidental damage.

    Args:
        path: A file written by `save`.
        threads: Threads a call uses; None takes what the model was built for, as far as this machine has the cores.

    Raises:
        ArtifactError: the file is missing, no artifact, truncated, damaged, of a newer format, or made for another CPU
            or TVM.
        EnvironmentFault: TVM is missing or not the pinned version.
    """
    contents = file_format.read(Path(path))
    with contents.file:
        plan, metadata, built_for, stored = _read_header(path, contents.metadata)
        contents.check_code()
        weights = huge_pages(plan.weights_bytes)
        if stored is None or stored == [plan.slots[index].dtype for index in plan.param_slots]:
            contents.read_weights(weights)
        else:
            section = np.empty(contents.weights_bytes, np.uint8)
            contents.read_weights(section)
            narrow_weights.restored(plan, stored, section, weights)
        count = tvm_compat.set_threads(threads or min(built_for, host.physical_cores()))
        return Artifact(plan, runtime.load_library(contents.file.fileno()), weights, metadata, count)


def header(executable: Executable, metadata: Mapping[str, Any], stored: Sequence[str]) -> dict[str, Any]:
    """The metadata section of a file, as `load` reads it: how to run the code, and the user's `metadata`.

    Args:
        stored: element types of the weights in the file.
    """
    return {
        "plan": executable.plan.to_json(),
        "cpu": {"machine": platform.machine(), "mcpu": executable.mcpu, "flags": list(executable.flags)},
        "versions": tvm_compat.PINS,
        "threads": executable.threads,
        "stored_weights": list(stored),
        "metadata": dict(metadata),
    }


def _read_header(path: object, header: Mapping[str, Any]) -> tuple[Plan, dict[str, Any], int, list[str] | None]:
    """Plan, user's metadata, number of threads and the weights' stored types of a file whose code can run here.

    Raises:
        ArtifactError: it cannot.
    """
    try:
        built = header["cpu"]
        cpu.check(path, built["machine"], built["mcpu"], built["flags"])
        if header["versions"] != tvm_compat.PINS:
            raise ArtifactError(
                f"{path}: built with {_versions(header['versions'])}, this calumma needs {_versions(tvm_compat.PINS)}; "
                "compile the model again"
            )
        plan = Plan.from_json(header["plan"])
        return plan, header["metadata"], header["threads"], header.get("stored_weights")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: metadata cannot be read ({error!r}); compile the model again") from error


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
