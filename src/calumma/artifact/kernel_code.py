"""Machine code of a model's kernels: LLVM's, or the cache's, where a kernel with the same schedule was compiled before.

Each kernel is an LLVM module of its own, so that its object file can be kept. That costs 4 ms more per kernel than
modules of many.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from calumma import tvm_compat
from calumma.core import hardware as host
from calumma.core.content_cache import ContentCache
from calumma.core.errors import InternalError
from calumma.tvm_compat import surroundings

_T = TypeVar("_T")
_R = TypeVar("_R")


class KernelCode:
    """The kernels of a model for one target, as LLVM modules or object files."""

    def __init__(self, kernels: Mapping[str, Any], target: Any, *, cache: bool) -> None:
        """Generate code on all cores for what is not in the cache.

        Args:
            kernels: scheduled PrimFuncs by name; the name becomes the symbol.
            target: TVM's form of the CPU.
            cache: whether object files of earlier kernels are used, and those of these kept.

        Raises:
            InternalError: a kernel cannot be built.
        """
        self._target = target
        self._functions = {name: func.with_attr("global_symbol", name) for name, func in kernels.items()}
        self._cache = ContentCache("kernels", "kernel") if cache else None
        self._keys: dict[str, str] = {}
        self._objects: dict[str, bytes] = {}
        if self._cache is not None and self._cache.in_use:
            self._look_up(self._cache)
        self._modules: dict[str, Any] = {}
        self._build(name for name in self._functions if name not in self._objects)

    def _look_up(self, cache: ContentCache) -> None:
        save_json = tvm_compat.load().ir.save_json
        around = (*surroundings.surroundings(), str(self._target))
        for name, func in self._functions.items():
            self._keys[name] = surroundings.key(*around, str(save_json(func)))
        found = zip(self._keys, parallel(cache.get, self._keys.values()), strict=True)
        self._objects = {name: contents for name, contents in found if contents is not None}

    def _build(self, names: Iterable[str]) -> None:
        missing = list(names)
        self._modules |= zip(missing, parallel(self._module, missing), strict=True)

    def _module(self, name: str) -> Any:
        tvm = tvm_compat.load()
        from calumma.tvm_compat.codegen import build

        try:
            return build(tvm.IRModule({name: self._functions[name]}), self._target)
        except Exception as error:  # TVM raises whatever its passes throw
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InternalError(f"kernel {name} cannot be built: {reason[0]}") from error

    def compiled(self) -> list[Any]:
        """LLVM modules of all kernels, their code generated in this process."""
        self._build(name for name in self._functions if name not in self._modules)
        parallel(lambda name: self._modules[name].get_function(name), self._modules)
        return list(self._modules.values())

    def write_objects(self, stack: contextlib.ExitStack) -> list[int]:
        """The kernels as object files in memory, to be closed by `stack`; returns their descriptors.

        They do not lie on a disk: where one is full, LLVM ends the process instead of raising an error.
        """

        def written(name: str) -> int:
            descriptor = object_file(stack)
            if name in self._objects:
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(self._objects[name])
            else:
                self._modules[name].write_to_file(f"/proc/self/fd/{descriptor}", "o")
                if self._cache is not None and name in self._keys:
                    size = os.fstat(descriptor).st_size
                    self._cache.put(self._keys[name], os.pread(descriptor, size, 0))
            return descriptor

        descriptors = parallel(written, self._functions)
        if self._cache is not None and len(self._objects) < len(self._keys):
            self._cache.trim()
        return descriptors


def object_file(stack: contextlib.ExitStack) -> int:
    """An empty file in memory, to be closed by `stack`; returns its descriptor."""
    descriptor = os.memfd_create("kernels.o")
    stack.callback(os.close, descriptor)
    return descriptor


def parallel(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Call a function on all cores; the results in order. TVM's calls release Python's lock, and LLVM keeps a context
    per module."""
    with ThreadPoolExecutor(host.physical_cores()) as pool:
        return list(pool.map(function, items))
