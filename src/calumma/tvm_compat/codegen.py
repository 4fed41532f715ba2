"""Building PrimFuncs with TVM's own passes, plus five: prefetches (`prefetch`), dot products (`dot_product`), floats as
IEEE 754 has them (`floats`), loops cut at their tails (`tails`), and accumulators on the stack; and without the checks
that TVM puts before every kernel.

Those compare each argument with what the kernel was compiled for, which whoever calls one knows already: the plan of a
model, or the task that is measured. They are 200 lines of LLVM's code per argument, and LLVM's time is not linear in
them: 32 s for a split into 300, where all the rest takes half a second.

TVM keeps a local buffer on the stack only if its scope is "global" and it has less than 1,024 bytes; any other costs a
call into the workspace pool each time its tile is entered, 20 to 30 ns, which small tiles feel: a depthwise 3x3
convolution over 56x56x96 took 68-77 us with the calls and 50 us without.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline, finalize_host_passes
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from calumma.tvm_compat import dot_product, floats, prefetch, tails

_NAME = "calumma"
_ON_STACK = "disable_lower_builtin"
"""Annotation that makes `LowerTVMBuiltin` leave an allocation to LLVM, which puts it on the stack or into registers."""

_MOST_ELEMENTS = 4096
"""Larger buffers stay off the stack: pool threads have little of it."""


def build(mod: Any, target: Any) -> Any:
    """Compile an IRModule or PrimFunc of scheduled functions for `target`; returns TVM's runtime module."""
    module = tvm.IRModule({"main": mod}) if isinstance(mod, tirx.PrimFunc) else mod
    guarded = _each(lambda func: tails.mark(floats.guard(func)))(module)
    with tails.partitioned():
        return tirx.build(dot_product.insert(prefetch.insert(guarded), target), target=target, pipeline=_NAME)


def _keep_on_stack(allocation: tirx.AllocBuffer) -> tirx.AllocBuffer:
    extents = [getattr(extent, "value", _MOST_ELEMENTS + 1) for extent in allocation.buffer.shape]
    if str(allocation.buffer.scope()) != "local" or math.prod(extents) > _MOST_ELEMENTS:
        return allocation
    annotations = {**dict(allocation.annotations.items()), _ON_STACK: tirx.IntImm("bool", 1)}
    return tirx.AllocBuffer(allocation.buffer, annotations)


def _finished(func: tirx.PrimFunc) -> tirx.PrimFunc:
    return dot_product.finish(func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, _keep_on_stack))))


def _each(change: Callable[[tirx.PrimFunc], tirx.PrimFunc]) -> Any:
    """A pass that changes every PrimFunc of a module."""

    @tvm.transform.module_pass(opt_level=0)
    def changed(mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        functions = {var: func for var, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}
        for var, func in functions.items():
            mod.update_func(var, change(func))
        return mod

    return changed


def _pipeline() -> tuple[Any, Any, Any]:
    lower, _, finalize_device = default_s_tir_pipeline()
    # The last one covers what intrinsics become, too.
    host = [tirx.transform.SkipAssert(), _each(_finished), finalize_host_passes(), _each(floats.finish)]
    return lower, lambda: tvm.transform.Sequential(host), finalize_device


register_tir_pipeline(_NAME, _pipeline)
