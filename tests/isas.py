"""The instruction sets that tests compile for, and which of them this machine can execute.

A test whose code depends on the width of vectors runs for `ISAS`: the CPU as it is, and every narrower level of x86-64.
A CPU with AVX-512 so shows what breaks on one with AVX2 or SSE alone. Its own name stands for the level of its width.
Whatever runs code in the test's process asks `calumma.testing.require` first; code for
another CPU would end the process with an illegal instruction.
"""

from __future__ import annotations

import functools

from calumma import tvm_compat
from calumma.target import Target
from calumma.testing import missing_flags

NATIVE = "native"
LEVELS = {"x86-64-v2": 4, "x86-64-v3": 8, "x86-64-v4": 16}
"""Levels of x86-64 (LLVM's names) -> float32 lanes of their vectors: SSE, AVX2, AVX-512."""


@functools.cache
def missing(mcpu: str) -> tuple[str, ...]:
    """Flags of /proc/cpuinfo that code for `mcpu` (LLVM's name) may rely on and this CPU lacks, sorted."""
    return missing_flags(tvm_compat.target_for(mcpu))


def target(isa: str = NATIVE) -> Target:
    """The CPU to compile for: this one, or a level or CPU by LLVM's name."""
    return tvm_compat.target_for(None if isa == NATIVE else isa)


def lanes(isa: str = NATIVE) -> int:
    """float32 lanes of the widest vector, which is the block of channels."""
    return target(isa).lanes


NARROWER = tuple(level for level, width in LEVELS.items() if width < lanes() and not missing(level))
"""Levels that this CPU executes and whose vectors are narrower than its own."""
ISAS = (NATIVE, *NARROWER)
RUNNABLE = tuple(level for level in LEVELS if not missing(level))
"""All levels that this CPU executes."""
