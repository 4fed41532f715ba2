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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.artifact import file_format, narrow_weights
from calumma.artifact.artifact import header
from calumma.artifact.kernel_code import KernelCode, object_file
from calumma.artifact.lowered import LoweredModel, read_plan
from calumma.artifact.plan import AnyStep, Branch, Loop, Plan, Refusal, Step, calls
from calumma.core.errors import ArtifactError, EnvironmentFault, InternalError
from calumma.target import Target

_COMPILERS = ("cc", "gcc", "clang")
_BASE = "no_kernel"
"""A function that does nothing: modules need one at the root, where the kernels' are not always at hand."""


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
    kernels: KernelCode = field(repr=False)
    target: Any = field(repr=False)
    """TVM's form of the CPU."""

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
        """Compile in memory, on all cores; returns the virtual machine's executable, to run in this process."""
        return _link_program(self.plan, self.kernels.compiled(), self.target)


def build(lowered: LoweredModel, target: Target, threads: int, *, cache: bool = True) -> Executable:
    """Plan the memory of a model and generate code for its kernels, on all cores.

    Args:
        lowered: The model; its schedules are taken as they are.
        target: CPU to generate code for.
        threads: Threads the schedules were chosen for.
        cache: Whether kernels that were compiled before are taken from the cache on disk, and these kept there.

    Raises:
        InternalError: `main` does something else than call kernels, or a kernel cannot be built.
    """
    plan = read_plan(lowered)
    kernels = {name: lowered.mod[name] for name in dict.fromkeys(step.kernel for step in calls(plan.steps))}
    tvm_target = tvm_compat.tvm_target(target, threads)
    executable = Executable(
        plan=plan,
        mcpu=target.mcpu,
        flags=target.flags,
        threads=threads,
        kernels=KernelCode(kernels, tvm_target, cache=cache),
        target=tvm_target,
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
            objects = executable.kernels.write_objects(stack)
            _link(compiler, [*objects, _write_program(executable, stack)], library)
        stored = narrow_weights.narrowest(params)
        types = [array.dtype.name for array in stored]
        try:
            file_format.write(path, library, stored, header(executable, metadata, types))
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror}") from error


# TVM's virtual machine links modules as Relax's own build does; `relax.build` itself would run Relax's pipeline.
def _link_program(plan: Plan, libraries: Sequence[Any], target: Any) -> Any:
    """The virtual machine's executable, with `libraries` below it: a function `main` of all slots that calls the
    kernels in order."""
    tvm = tvm_compat.load()
    from calumma.tvm_compat.codegen import build as build_functions

    builder = tvm.relax.ExecBuilder()
    with builder.function("main", num_inputs=len(plan.slots)):
        _emit(builder, plan.steps, builder.r(len(plan.slots)))
        builder.emit_ret(builder.void_arg())
    nothing = tvm.tirx.PrimFunc([], tvm.tirx.Evaluate(0)).with_attr("global_symbol", _BASE)
    root = build_functions(tvm.IRModule({_BASE: nothing}), target)
    for library in libraries:
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


def _write_program(executable: Executable, stack: contextlib.ExitStack) -> int:
    """Write the program as an object file, to be closed by `stack`; returns its descriptor."""
    pack = tvm_compat.load().get_global_func("runtime.ModulePackImportsToLLVM")
    program = _link_program(executable.plan, (), executable.target)
    (root,) = program.imports
    target = root.get_function("_get_target_string")()
    descriptor = object_file(stack)
    pack(program, False, target, "").write_to_file(f"/proc/self/fd/{descriptor}", "o")
    return descriptor


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
