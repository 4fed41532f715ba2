"""The one place that knows TVM's versions, its moving names, its threads and its errors.

Call `set_threads` before anything imports TVM: the pool's size is read once, and TVM's own default is half of the
logical cores.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
from typing import Any

from calumma.core import hardware as host
from calumma.core.errors import EnvironmentFault, InputError
from calumma.core.values import Hardware

PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}

BFLOAT16 = "avx512bf16"
"""LLVM's name of the feature AVX512_BF16."""

_WIDTHS = (("avx512f", 512), ("avx", 256))


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
    import tvm

    return tvm


@functools.cache
def toolchain() -> str:
    """The versions that decide the generated code, as one line of text for records."""
    load()
    from tvm.target import codegen

    return f"tvm {PINS['apache-tvm']}, llvm {codegen.llvm_version_major()}"


@functools.cache
def hardware_for(mcpu: str | None = None) -> Hardware:
    """Describe the CPU to compile for: the host, or `mcpu` (an LLVM name) with the host's caches.

    Raises:
        InputError: LLVM does not know `mcpu`.
    """
    load()
    from tvm.target import codegen

    name = mcpu or codegen.llvm_get_system_cpu()
    if mcpu and mcpu not in _known_cpus():
        raise InputError(f"mcpu={mcpu!r}: LLVM does not know this CPU; leave it out for the host ({host_mcpu()})")
    features = target_features(name)
    bits = max((width for feature, width in _WIDTHS if feature in features), default=128)
    l1, l2, l3 = host.cache_bytes()
    return Hardware(
        cpu_model=host.cpu_info().get("model name", "unknown") if mcpu in (None, host_mcpu()) else mcpu or name,
        mcpu=name,
        vector_bits=bits,
        l1_bytes=l1,
        l2_bytes=l2,
        l3_bytes=l3,
        cores=host.physical_cores(),
    )


def host_mcpu() -> str:
    """LLVM's name of the host CPU."""
    load()
    from tvm.target import codegen

    return str(codegen.llvm_get_system_cpu())


@functools.cache
def target_features(mcpu: str) -> frozenset[str]:
    """LLVM's features of a CPU ("avx2", "avx512f", ...)."""
    tvm = load()
    found = tvm.get_global_func("target.llvm_get_cpu_features")(_target_dict(mcpu))
    return frozenset(str(feature) for feature in found)


@functools.cache
def _known_cpus() -> frozenset[str]:
    tvm = load()
    return frozenset(str(c) for c in tvm.get_global_func("target.llvm_get_cpu_archlist")(_target_dict(None)))


def has_bfloat16(hardware: Hardware) -> bool:
    """Whether the CPU multiplies vectors of bfloat16 (AVX512_BF16)."""
    return hardware.vector_bits == 512 and BFLOAT16 in target_features(hardware.mcpu)


def _target_dict(mcpu: str | None) -> Any:
    tvm = load()
    return tvm.target.Target({"kind": "llvm", **({"mcpu": mcpu} if mcpu else {})})


def target(hardware: Hardware, threads: int | None = None) -> Any:
    """Return the TVM target for `hardware`; `num-cores` is what MetaSchedule's spaces assume."""
    tvm = load()
    return tvm.target.Target({"kind": "llvm", "mcpu": hardware.mcpu, "num-cores": threads or hardware.cores})
