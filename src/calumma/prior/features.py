"""What the prior sees of a task and of its configurations.

Notation: N configurations of one task; T columns that all of them share, C columns of their own.

    cpu.*       the CPU (`machines`)

    task.*      log2(1 + x) of what is known before any schedule: operations, bytes (weights, outputs, the largest
                other input, the remaining ones), flops per byte, roofline bound in nanoseconds, arguments, blocks,
                threads, and whether weights are in the last-level cache when it runs ("warm")
    own columns as the design space names them (`feature_names`), what of these the CPU has room for
                ("accumulators/room" of its registers, "NAME/l1" and "NAME/l2" of bytes), log2 of the time that the
                template's own reasoning estimates ("estimate"), and the difference of all of these from the default
                configuration's (`-default` behind the name): what a reasoned default would do is the best point of
                reference there is

A design space may lack columns that others of its template have (a 1x1 convolution knows no Winograd): they are 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx

from calumma.core.protocols import Indices, Template
from calumma.core.values import WEIGHTS
from calumma.prior import machines
from calumma.space import loops
from calumma.space.alternatives import ALGORITHM
from calumma.target import Target
from calumma.tasks import task_of, weight_bytes_of
from calumma.tasks.roofline import MachineLimits, bound_s

VERSION = 2
"""Grows when a column means something else: weights of another version are refused."""

_ACCUMULATORS, _BYTES = "accumulators", "_log2_bytes"
"""A design space's column of vector registers, and the end of the names of those that are log2 of bytes."""
RELATIVE = "-default"
"""Suffix of the columns that are differences from the default configuration's."""


@dataclass(frozen=True)
class TaskView:
    """One task through the eyes of the prior."""

    space: Template
    shared: dict[str, float]
    """Columns (T) that all configurations have in common, by name."""
    bound_s: float
    """Roofline bound of one call, by the CPU's limits."""
    target: Target

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of `table`."""
        own = [*(self.space.feature_names[i] for i in self._kept), *self._rooms, "estimate"]
        return (*self.shared, *own, *(name + RELATIVE for name in own))

    def table(self, indices: Indices) -> NDArray[np.float32]:
        """Configurations (N, D) -> (N, T + 2 C)."""
        own = self._own(indices)
        shared = np.broadcast_to(np.array(list(self.shared.values()), np.float32), (len(own), len(self.shared)))
        return np.concatenate([shared, own, own - self._default], axis=1)

    def _own(self, indices: Indices) -> NDArray[np.float32]:
        features = self.space.features(indices)[:, self._kept]
        names = [self.space.feature_names[i] for i in self._kept]
        rooms = [
            features[:, names.index(column)] / room
            if name.endswith("/room")
            else features[:, names.index(column)] - room
            for name, (column, room) in self._rooms.items()
        ]
        estimate = np.log2(self.space.estimate(indices)).astype(np.float32)
        return np.concatenate([features, *(column[:, None] for column in (*rooms, estimate))], axis=1, dtype=np.float32)

    @functools.cached_property
    def _rooms(self) -> dict[str, tuple[str, float]]:
        """Column -> the space's column that it is of, and what the CPU has room for: registers, or log2 of bytes."""
        found: dict[str, tuple[str, float]] = {}
        for name in (self.space.feature_names[i] for i in self._kept):
            if name == _ACCUMULATORS:
                found[f"{name}/room"] = (name, float(self.target.registers))
            elif name.endswith(_BYTES):
                found[f"{name}/l1"] = (name, float(np.log2(self.target.l1_bytes)))
                found[f"{name}/l2"] = (name, float(np.log2(self.target.l2_bytes)))
        return found

    @functools.cached_property
    def _default(self) -> NDArray[np.float32]:
        return self._own(self.space.default()[None, :])

    @functools.cached_property
    def _kept(self) -> list[int]:
        """Columns of the space that are used: that it is the first algorithm follows from its being no other."""
        knob = self.space.knobs[0]
        implied = f"{ALGORITHM}.{knob.values[0]}" if knob.name == ALGORITHM else None
        return [i for i, name in enumerate(self.space.feature_names) if name != implied]


def view(func: tirx.PrimFunc, space: Template, target: Target, limits: MachineLimits, cache_state: str) -> TaskView:
    """Look at a task.

    Args:
        func: its normalised function.
        space: its design space on the target.
        target: the CPU.
        limits: what that can do; the number of threads is theirs.
        cache_state: "cold" or "warm": where the weights are when it runs.
    """
    warm = cache_state == "warm"
    task = task_of(func, "")
    weights = weight_bytes_of(func)
    sizes = [float(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in task.arguments]
    positions = {int(position) for position in func.attrs[WEIGHTS]}
    inputs = sorted((size for i, size in enumerate(sizes[:-1]) if i not in positions), reverse=True)
    bound = min(bound_s(f, w, task.size_bytes - weights, limits, warm) for f, w in space.costs(task.flops, weights))
    quantities = {
        "flops": task.flops,
        "bytes": task.size_bytes,
        "weight_bytes": weights,
        "output_bytes": sizes[-1],
        "input_bytes": sum(inputs[:1]),
        "other_bytes": sum(inputs[1:]),
        "intensity": task.intensity,
        "bound_ns": bound * 1e9,
        "arguments": len(sizes),
        "blocks": len(loops.blocks_of(s_tir.Schedule(func))),
        "threads": limits.threads,
        "warm": warm,
    }
    shared = {f"task.{name}": float(np.log2(1.0 + value)) for name, value in quantities.items()}
    return TaskView(space, {**machines.columns(target, limits), **shared}, bound, target)
