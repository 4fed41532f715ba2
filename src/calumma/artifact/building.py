"""From a lowered model to machine code, and from there to a file.

The plan's steps become a program for TVM's virtual machine that does nothing but call kernels: no checks, no
allocation. A program of 60 empty kernels runs in 6 us; as Relax lowers it, checking every parameter and allocating
every tensor, it takes 28 us. A loop in Python would be as fast, but would have to win Python's lock back after every
kernel; the program runs without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.artifact import file_format, narrow_weights
from calumma.artifact.artifact import header
from calumma.artifact.lowered import LoweredModel, read_plan
from calumma.artifact.plan import AnyStep, Branch, Loop, Plan, Refusal, Step, calls
from calumma.core import hardware as host
from calumma.core.errors import ArtifactError, EnvironmentFault, InternalError
from calumma.target import Target

# A compilation unit costs 10 ms beside its kernels; more units than workers even out kernels of unequal size.
_UNITS_PER_WORKER = 4
_COMPILERS = ("cc", "gcc", "clang")

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Executable:
    """Machine code and plan of a model, in the memory of this process; without the weights."""

    plan: Plan
    mcpu: str
    """LLVM's name of the CPU the code is for."""
    flags: tuple[str, ...]
    """Flags of /proc/cpuinfo the code needs."""
    threads: int
    """Threads the schedules were chosen for."""
    module: Any = field(repr=False)
    """The virtual machine's executable (`tvm.runtime.Module`) with `libraries` below it."""
    libraries: tuple[Any, ...] = field(repr=False)
    """LLVM modules; machine code is generated when they are run or written."""
    entries: tuple[str, ...] = field(repr=False)
    """One kernel of each library."""

    def check_params(self, params: Sequence[NDArray]) -> None:
        """Raise InternalError unless `params` are what the code was built for."""
        found = [(tuple(param.shape), param.dtype.name) for param in params]
        expected = [(self.plan.slots[i].shape, self.plan.slots[i].dtype) for i in self.plan.param_slots]
        if found != expected:
            differing = next(
                (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None
            )
            what = (
                f"{len(found)} parameters given, {len(expected)} expected"
                if differing is None
                else f"parameter {differing} is {found[differing]}, expected {expected[differing]}"
            )
            raise InternalError(f"weights do not fit the built model: {what}")

    def jit(self) -> Any:
        """Compile in memory, on all cores; returns a module to run in this process."""
        _parallel(lambda unit: unit[0].get_function(unit[1]), list(zip(self.libraries, self.entries, strict=True)))
        return self.module


def build(lowered: LoweredModel, target: Target, threads: int) -> Executable:
    """Plan the memory of a model and generate code for its kernels, on all cores.

    Args:
        lowered: The model; its schedules are taken as they are.
        target: CPU to generate code for.
        threads: Threads the schedules were chosen for.

    Raises:
        InternalError: `main` does something else than call kernels, or a kernel cannot be built.
    """
    plan = read_plan(lowered)
    kernels = {name: lowered.mod[name] for name in dict.fromkeys(step.kernel for step in calls(plan.steps))} or _idle()
    tvm_target = tvm_compat.tvm_target(target, threads)
    names = list(kernels)
    units = min(len(names), _UNITS_PER_WORKER * host.physical_cores())
    chunks = [names[i::units] for i in range(units)]
    libraries = _parallel(lambda chunk: _compile({name: kernels[name] for name in chunk}, tvm_target), chunks)
    executable = Executable(
        plan=plan,
        mcpu=target.mcpu,
        flags=target.flags,
        threads=threads,
        module=_link_program(plan, libraries, tvm_target),
        libraries=tuple(libraries),
        entries=tuple(chunk[0] for chunk in chunks),
    )
    executable.check_params(lowered.params)
    return executable


def save(
    executable: Executable, params: Sequence[NDArray], metadata: Mapping[str, Any], path: str | os.PathLike
) -> None:
    """Write a model to one file that `load` runs anywhere the CPU allows; the file appears whole or not at all.

    Args:
        executable: Result of `build`.
        params: The model's weights, in order.
        metadata: JSON values to keep with the model.
        path: Where to write.

    Raises:
        EnvironmentFault: there is no C compiler to link with, or it fails.
        ArtifactError: the file cannot be written.
    """
    path = Path(path)
    executable.check_params(params)
    if not path.parent.is_dir():
        raise ArtifactError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix="calumma-") as folder:
        library = Path(folder) / "model.so"
        with contextlib.ExitStack() as stack:
            _link(compiler, _write_objects(executable, stack), library)
        stored = narrow_weights.narrowest(params)
        types = [array.dtype.name for array in stored]
        try:
            file_format.write(path, library, stored, header(executable, metadata, types))
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror}") from error


# TVM's virtual machine links modules as Relax's own build does; `relax.build` itself would run Relax's pipeline.
def _link_program(plan: Plan, libraries: Sequence[Any], target: Any) -> Any:
    """The virtual machine's executable: a function `main` of all slots that calls the kernels in order."""
    tvm = tvm_compat.load()
    builder = tvm.relax.ExecBuilder()
    with builder.function("main", num_inputs=len(plan.slots)):
        _emit(builder, plan.steps, builder.r(len(plan.slots)))
        builder.emit_ret(builder.void_arg())
    root, *others = libraries
    for library in others:
        root.import_module(library)
    return tvm.get_global_func("relax.VMLink")(builder, target, root, [], {})


def _emit(builder: Any, steps: Sequence[AnyStep], condition: int) -> None:
    """Write steps as instructions; `condition` is the register into which conditions are read."""

    def read(slot: int, skipped: int) -> None:
        """Read a condition, and skip so many instructions where it does not hold."""
        builder.emit_call("vm.builtin.read_if_cond", args=[builder.r(slot)], dst=condition)
        builder.emit_if(condition, skipped + 1)

    for step in steps:
        match step:
            case Branch():
                read(step.condition, _instructions(step.then) + 1)
                _emit(builder, step.then, condition)
                builder.emit_goto(_instructions(step.otherwise) + 1)
                _emit(builder, step.otherwise, condition)
            case Loop():
                size = _instructions(step.steps)
                read(step.condition, size + 1)
                _emit(builder, step.steps, condition)
                builder.emit_goto(-(size + 2))
            case Refusal():
                # A check that fails: no tensor is a number.
                arguments = [
                    builder.r(0),
                    tvm_compat.load().DataType("float32"),
                    builder.convert_constant(step.message),
                ]
                builder.emit_call("vm.builtin.check_prim_value_info", args=arguments)
            case Step():
                builder.emit_call(step.kernel, args=[builder.r(slot) for slot in step.slots])


def _instructions(steps: Sequence[AnyStep]) -> int:
    """How many instructions `_emit` writes."""
    return sum(
        3 + _instructions(step.then) + _instructions(step.otherwise)
        if isinstance(step, Branch)
        else 3 + _instructions(step.steps)
        if isinstance(step, Loop)
        else 1
        for step in steps
    )


def _idle() -> dict[str, Any]:
    """A kernel that does nothing, for a model whose outputs are all empty: a library has to hold something."""
    tirx = tvm_compat.load().tirx
    return {"idle": tirx.PrimFunc([], tirx.Evaluate(0))}


def _compile(kernels: Mapping[str, Any], target: Any) -> Any:
    """One LLVM module with the named PrimFuncs. Raises InternalError naming the kernel that cannot be built."""
    tvm = tvm_compat.load()
    from calumma.tvm_compat.codegen import build as build_functions

    functions = {name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()}
    try:
        return build_functions(tvm.IRModule(functions), target)
    except Exception as error:  # TVM raises whatever its passes throw
        if len(kernels) > 1:
            for name, kernel in kernels.items():
                _compile({name: kernel}, target)
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise InternalError(f"kernel {', '.join(kernels)} cannot be built: {reason[0]}") from error


def _write_objects(executable: Executable, stack: contextlib.ExitStack) -> list[int]:
    """Write the libraries' machine code and the packed program as object files; returns their descriptors.

    They lie in memory, not on a disk: where one is full, LLVM ends the process instead of raising an error.
    """
    tvm = tvm_compat.load()

    def write(module: Any) -> int:
        descriptor = os.memfd_create("kernels.o")
        stack.callback(os.close, descriptor)
        module.write_to_file(f"/proc/self/fd/{descriptor}", "o")
        return descriptor

    objects = _parallel(write, executable.libraries)
    pack = tvm.get_global_func("runtime.ModulePackImportsToLLVM")
    target = executable.libraries[0].get_function("_get_target_string")()
    return [*objects, write(pack(executable.module, False, target, ""))]


def _compiler() -> str:
    for name in _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise EnvironmentFault(
        f"no C compiler to link the artifact with (looked for {', '.join(_COMPILERS)}): install one, for example by "
        "'apt install gcc' or 'conda install gcc'; running a model in the process that compiled it needs none"
    )


def _link(compiler: str, objects: Sequence[int], library: Path) -> None:
    files = (f"/proc/self/fd/{descriptor}" for descriptor in objects)
    command = [compiler, "-shared", "-o", str(library), *files, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=objects)
    if done.returncode:
        # The driver's own last words only repeat that its linker has failed.
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("collect2:")]
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise EnvironmentFault(
            f"{compiler} cannot link the artifact: {reason}; expected a working C compiler for the host and room in "
            f"{tempfile.gettempdir()}"
        )


def _parallel(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    # TVM's calls release Python's lock, and LLVM keeps a context per module: threads use all cores.
    with ThreadPoolExecutor(host.physical_cores()) as pool:
        return list(pool.map(function, items))
