"""TVM's runtime without TVM's compiler: tvm_ffi, libtvm_runtime and nothing else.

`import tvm` costs 0.4 s with the runtime alone and 2 s with all of it, and forecloses a later import of the compiler
in the same process; what an artifact needs is loaded here in 0.1 s and leaves both doors open.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.artifact.plan import Slot
from calumma.core.errors import EnvironmentFault

_CPU = (1, 0)  # DLPack's device type and index
_POOLED_ALLOCATOR = 2
_BIG_CORES = 1


@functools.cache
def ffi() -> Any:
    """Import tvm_ffi and load TVM's runtime library into the process.

    Raises:
        EnvironmentFault: TVM is missing or not the pinned version.
    """
    tvm_compat.check_versions()
    with tvm_compat.without_torch():
        import tvm_ffi as package
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise EnvironmentFault(
            f"the package tvm cannot be found: pip install apache-tvm=={tvm_compat.PINS['apache-tvm']}"
        )
    if "tvm" not in sys.modules:
        library = Path(spec.origin).parent / "lib" / "libtvm_runtime.so"
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # kernels find the thread pool by its symbol
    return package


def load_library(descriptor: int) -> Any:
    """Load the shared library behind an open file descriptor; returns its tvm_ffi module.

    The loader keeps libraries by name, and would hand out the old code for a name whose file was replaced since: every
    load gets a name of its own. The name leads to the descriptor, so that the code is that of the file that was
    verified.
    """
    with tempfile.TemporaryDirectory(prefix="calumma-") as folder:
        name = Path(folder) / "artifact.so"
        name.symlink_to(f"/proc/self/fd/{descriptor}")
        return ffi().load_module(str(name))


def bind(module: Any, tensors: list[Any]) -> tuple[Any, Any]:
    """Make a virtual machine for `module`.

    Returns:
        Its program, a function of all tensors; and the program with `tensors` bound, whose call takes nothing.
    """
    machine = module["vm_load_executable"]()
    machine["vm_initialization"](*_CPU, _POOLED_ALLOCATOR)
    machine["save_function"]("main", "bound", True, *tensors)
    return machine["main"], machine["bound"]


def tensor(section: NDArray[np.uint8], slot: Slot) -> Any:
    """The TVM tensor of a slot; shares the bytes of `section`."""
    return reshaped(section[slot.offset : slot.offset + slot.size_bytes], slot)


def reshaped(memory: Any, slot: Slot) -> Any:
    """A TVM tensor of a slot's shape and type on the bytes of a tensor that speaks DLPack."""
    package = ffi()
    view = package.get_global_func("runtime.TVMTensorCreateView")
    return view(package.from_dlpack(memory), package.Shape(slot.shape), package.dtype(slot.dtype), 0)


def array(section: NDArray[np.uint8], slot: Slot) -> NDArray:
    """The NumPy array of a slot; shares the bytes of `section`."""
    return section[slot.offset : slot.offset + slot.size_bytes].view(np.dtype(slot.dtype)).reshape(slot.shape)


def use_threads(count: int) -> None:
    """Let kernels called from this Python thread use `count` threads.

    TVM keeps one pool per calling thread. Its size is read from TVM_NUM_THREADS when the pool starts, later settings
    can only use fewer of its threads, and a 1 in the variable switches every pool off.

    Raises:
        EnvironmentFault: this thread's pool was started smaller than `count`.
    """
    if int(os.environ.get("TVM_NUM_THREADS", "0")) < count:
        os.environ["TVM_NUM_THREADS"] = str(count)
    threads = _pool_size()
    if threads() == count:
        return
    ffi().get_global_func("runtime.config_threadpool")(_BIG_CORES, count)
    if threads() != count:
        raise EnvironmentFault(
            f"this Python thread already runs a TVM pool of {threads()} threads, {count} were asked for: "
            "load the artifact with most threads first, or call it from another thread"
        )


@functools.cache
def _pool_size() -> Any:
    return ffi().get_global_func("runtime.NumThreads")
