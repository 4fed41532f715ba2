"""Control flow in a lowered `main`: calls of no kernel, which mark where regions of its bindings begin and end.

`main` stays one list of bindings, which TVM's passes fuse within the dataflow blocks between the marks:

    BRANCH (condition)                    -> nothing; what follows runs where the condition holds
    OTHERWISE (results...)                -> nothing; what follows runs where it does not
    REFUSE (message)                      -> nothing; a run that comes here ends with an error
    JOIN (results...)                     -> the results, as a tuple: those of the region that ran

    LOOP (state, times)                   -> the state, as a tuple; what follows is repeated as long as its first holds
    REPEAT (next state, sources, stacked) -> the state after the last iteration and what was stacked, as one tuple

A *state* is a tuple of tensors that each iteration reads and replaces, in place; the first is a boolean scalar, the
condition. Initial state, next state and results are fresh results of kernels, or in the next state, what is never
replaced. A next state is copied from its source by the last kernels of the region. A stacked tensor is one into which
a kernel of the region writes a row per iteration. `times` is about how often the region runs, to weigh its kernels.

Imports no TVM.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

BRANCH = "calumma.branch"
OTHERWISE = "calumma.otherwise"
JOIN = "calumma.join"
REFUSE = "calumma.refuse"
LOOP = "calumma.loop"
REPEAT = "calumma.repeat"

FIXED = "calumma.fixed"
"""Attribute of the PrimFuncs that control flow itself needs: their schedule is not chosen."""


def mark(value: Any) -> str:
    """Which mark an expression is; empty for any other."""
    return str(getattr(getattr(value, "op", None), "global_symbol", ""))


def counted(main: Any) -> Iterable[tuple[Any, int]]:
    """The bindings of `main` that are no marks, each with about how often it runs in one run of the model."""
    times = [1]
    for binding in (binding for block in main.body.blocks for binding in block.bindings):
        match mark(binding.value):
            case "":
                yield binding, times[-1]
            case "calumma.loop":
                times.append(times[-1] * int(binding.value.args[1].value))
            case "calumma.repeat":
                times.pop()
