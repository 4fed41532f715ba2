"""Loops that a vector does not divide: whole vectors without a condition, and one shorter vector for the rest.

A split that does not divide leaves a predicate on its block, which TVM lowers to a condition around every element. LLVM
makes a masked vector of each, and some CPUs take dozens of operations for a masked store: softmax over rows of 197 took
twice as long as over rows of 200 (docs/results/speed.md). TVM's loop partitioning cuts a loop where such a condition
begins to matter, but looks at conditions marked as likely alone, which schedules do not do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

MARK = "calumma.tail"
"""Block annotation: cut the loops at the predicate of this block."""


def mark(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with the predicates of marked blocks as TVM's loop partitioning wants them."""

    def visit(realize: s_tir.SBlockRealize) -> s_tir.SBlockRealize:
        predicate = realize.predicate
        if MARK not in realize.block.annotations or isinstance(predicate, tirx.IntImm) or _of_fused_loops(predicate):
            return realize
        return s_tir.SBlockRealize(realize.iter_values, tirx.likely(predicate), realize.block)

    return func.with_body(tvm_ffi.structural_map(func.body, (s_tir.SBlockRealize, visit)))


def _of_fused_loops(predicate: tirx.Expr) -> bool:
    """Whether a condition takes a fused loop apart: it fails again and again along that loop, and partitioning would
    leave vectors of varying length.
    """
    found: list[Any] = []
    tvm_ffi.structural_walk(predicate, ((tirx.FloorDiv, tirx.FloorMod), found.append))
    return bool(found)


@contextmanager
def partitioned() -> Iterator[None]:
    """Inside, loops of constant extent are cut at likely conditions: TVM's hints do not survive its narrowing of
    indices to 32 bits.
    """
    current = tvm.transform.PassContext.current()
    config = {**dict(current.config), "s_tir.LoopPartition": {"partition_const_loop": True}}
    with tvm.transform.PassContext(opt_level=current.opt_level, config=config):
        yield
