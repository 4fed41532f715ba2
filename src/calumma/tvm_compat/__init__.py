"""The one place that knows TVM's versions, its moving names, its threads and its errors.

Call `set_threads` before anything imports TVM: the pool's size is read once, and TVM's own default is half of the
logical cores.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from calumma.core import extensions
from calumma.core import hardware as host
from calumma.core.errors import EnvironmentFault, InputError
from calumma.core.values import Hardware
from calumma.target import DotProduct, Facts, Target, describe, kind_of

PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


def check_versions() -> None:
    """Raise EnvironmentFault if the installed TVM is not the pinned one: a mismatch ends in a segmentation fault."""
    for package, pin in PINS.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != pin:
            raise EnvironmentFault(
                f"{package} {found} is installed, calumma needs exactly {pin}: pip install {package}=={pin}"
            )


def set_threads(threads: int | None = None) -> int:
    """Fix the number of threads of TVM's pool for this process (None: all physical cores); returns it.

    TVM keeps one pool per calling thread, of the size it started with: once a pool has run, this can make it smaller,
    never larger.
    """
    count = threads or host.physical_cores()
    if not 1 <= count <= (os.cpu_count() or 1):
        raise InputError(
            f"threads={count}: this machine has {os.cpu_count()} logical cores; give 1 to {os.cpu_count()}"
        )
    os.environ["TVM_NUM_THREADS"] = str(count)
    # Bound threads wait for whatever else runs on their core: on a shared machine a model then takes up to three times
    # as long (measured, docs/measurement.md). The scheduler places them well enough.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    if "tvm" in sys.modules:
        import tvm

        tvm.get_global_func("runtime.config_threadpool")(1, count)
    return count


@functools.cache
def load() -> Any:
    """Import TVM after checking its version; returns the module."""
    check_versions()
    with without_torch():
        import tvm

    return tvm


@contextmanager
def without_torch() -> Iterator[None]:
    """Let what is imported inside do without torch, unless that is imported already.

    TVM and tvm_ffi import torch, 1 to 3 s, wherever it is installed, and have no switch against it. A None in
    sys.modules makes that import fail, which they allow for; torch can still be imported afterwards.

    Not thread-safe: while it lasts, importing torch fails in every thread of the process.
    """
    hide = "torch" not in sys.modules and "tvm" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]


@functools.cache
def toolchain() -> str:
    """The versions that decide the generated code, as one line of text for records."""
    load()
    from tvm.target import codegen

    return f"tvm {PINS['apache-tvm']}, llvm {codegen.llvm_version_major()}"


def target_for(mcpu: str | None = None) -> Target:
    """Describe the CPU to compile for: the host, or `mcpu` (an LLVM name) with the host's caches.

    Raises:
        InputError: LLVM does not know `mcpu`, or an installed extension cannot be imported.
    """
    load()
    extensions.load_installed()  # one of them may describe this CPU
    name = mcpu or host_mcpu()
    if mcpu and mcpu not in _known_cpus():
        raise InputError(f"mcpu={mcpu!r}: LLVM does not know this CPU; leave it out for the host ({host_mcpu()})")
    model = host.cpu_info().get("model name", "unknown") if mcpu in (None, host_mcpu()) else name
    return _described(model, name, *host.cache_bytes(), host.physical_cores())


def target_of(hardware: Hardware) -> Target:
    """Describe the CPU that records were measured on.

    Raises:
        InputError: LLVM knows another vector width of that CPU: code for it is not what was measured.
    """
    found = _described(
        hardware.cpu_model, hardware.mcpu, hardware.l1_bytes, hardware.l2_bytes, hardware.l3_bytes, hardware.cores
    )
    if found.vector_bits != hardware.vector_bits:
        raise InputError(
            f"records of {hardware.cpu_model} ({hardware.mcpu}) say vectors of {hardware.vector_bits} bits, LLVM says "
            f"{found.vector_bits}: measure again with this version"
        )
    return found


def _described(cpu_model: str, mcpu: str, l1_bytes: int, l2_bytes: int, l3_bytes: int, cores: int) -> Target:
    features = target_features(mcpu)
    return describe(kind_of(platform.machine()), Facts(cpu_model, mcpu, features, l1_bytes, l2_bytes, l3_bytes, cores))


def host_mcpu() -> str:
    """LLVM's name of the host CPU."""
    load()
    from tvm.target import codegen

    return str(codegen.llvm_get_system_cpu())


@functools.cache
def target_features(mcpu: str) -> frozenset[str]:
    """LLVM's names of the features of a CPU."""
    tvm = load()
    found = tvm.get_global_func("target.llvm_get_cpu_features")(_target_dict(mcpu))
    return frozenset(str(feature) for feature in found)


@functools.cache
def _known_cpus() -> frozenset[str]:
    tvm = load()
    return frozenset(str(c) for c in tvm.get_global_func("target.llvm_get_cpu_archlist")(_target_dict(None)))


def _target_dict(mcpu: str | None) -> Any:
    tvm = load()
    return tvm.target.Target({"kind": "llvm", **({"mcpu": mcpu} if mcpu else {})})


def tvm_target(target: Target, threads: int | None = None) -> Any:
    """TVM's own form of a target; `num-cores` is what MetaSchedule's spaces assume."""
    tvm = load()
    return tvm.target.Target({"kind": "llvm", "mcpu": target.mcpu, "num-cores": threads or target.cores})


def dot_products_of(target: Any) -> tuple[DotProduct, ...]:
    """The dot products of the CPU of a target in TVM's form; none where that names no CPU."""
    mcpu = target.attrs.get("mcpu")
    return target_for(str(mcpu)).dot_products if mcpu else ()
