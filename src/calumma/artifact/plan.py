"""The execution plan of a model: which kernels run, in which order, on which bytes.

Two sections hold every tensor: the *weights*, read only, laid out as in the file, and the *arena*, one buffer for
inputs, intermediates and outputs, in which tensors that are never alive together share bytes. All addresses are known
when the model is built, so that a run allocates nothing.

Imports no TVM: the plan is what a loaded artifact runs from.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from calumma.core.errors import ArtifactError, InternalError
from calumma.core.pages import ALIGNMENT
from calumma.core.values import TensorSpec

Section = Literal["arena", "weights"]


@dataclass(frozen=True)
class Slot:
    """Where one tensor lives."""

    section: Section
    offset: int
    """Bytes from the start of the section."""
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(self.shape, self.dtype)


@dataclass(frozen=True)
class Step:
    """One kernel call."""

    kernel: str
    slots: tuple[int, ...]
    """Its arguments, outputs last, as indices into `Plan.slots`."""


@dataclass(frozen=True)
class Branch:
    """Two lists of steps, one of which runs."""

    condition: int
    """Slot of a boolean scalar, read when a run comes here."""
    then: tuple[AnyStep, ...]
    otherwise: tuple[AnyStep, ...]


@dataclass(frozen=True)
class Loop:
    """Steps that run again and again, as long as a condition holds."""

    condition: int
    """Slot of a boolean scalar, read before every iteration, the first one too."""
    steps: tuple[AnyStep, ...]


@dataclass(frozen=True)
class Refusal:
    """The end of a run that has come where nothing can be computed."""

    message: str
    """Of the ArtifactError."""


AnyStep = Step | Branch | Loop | Refusal


def calls(steps: Iterable[AnyStep]) -> Iterator[Step]:
    """Every kernel call that is written in `steps`, whether it runs or not."""
    for step in steps:
        match step:
            case Branch():
                yield from calls(step.then)
                yield from calls(step.otherwise)
            case Loop():
                yield from calls(step.steps)
            case Step():
                yield step


def refusals(steps: Iterable[AnyStep]) -> Iterator[str]:
    """The messages of all refusals."""
    for step in steps:
        match step:
            case Branch():
                yield from refusals((*step.then, *step.otherwise))
            case Loop():
                yield from refusals(step.steps)
            case Refusal():
                yield step.message


def followed(steps: Iterable[AnyStep], holds: Callable[[int], bool]) -> Iterator[Step]:
    """The kernel calls of one run, in order.

    Args:
        steps: what to follow.
        holds: reads the condition in a slot. It is asked when a run comes to it: whoever takes a call from this
            iterator makes it before taking the next.

    Raises:
        ArtifactError: the run comes to a refusal.
    """
    for step in steps:
        match step:
            case Branch():
                yield from followed(step.then if holds(step.condition) else step.otherwise, holds)
            case Loop():
                while holds(step.condition):
                    yield from followed(step.steps, holds)
            case Refusal():
                raise ArtifactError(step.message)
            case Step():
                yield step


def _step_of(data: dict[str, Any]) -> AnyStep:
    def steps(key: str) -> tuple[AnyStep, ...]:
        return tuple(map(_step_of, data[key]))

    if "message" in data:
        return Refusal(data["message"])
    if "then" in data:
        return Branch(data["condition"], steps("then"), steps("otherwise"))
    if "condition" in data:
        return Loop(data["condition"], steps("steps"))
    return Step(data["kernel"], tuple(data["slots"]))


@dataclass(frozen=True)
class Plan:
    """All that is needed, beside kernels and weights, to run a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_slots: tuple[int, ...]
    output_slots: tuple[int, ...]
    param_slots: tuple[int, ...]
    """The weights, in the order of the model's parameters."""
    slots: tuple[Slot, ...]
    steps: tuple[AnyStep, ...]
    arena_bytes: int
    weights_bytes: int
    input_views: tuple[tuple[int, ...], ...]
    """For each input all slots that show its bytes, itself and reshapes: a call may give them another address. None
    where it may not, because an output shows the same bytes."""
    output_views: tuple[tuple[int, ...], ...]
    """Likewise for each output. None where it is a part of something larger, an input, a weight, or an output twice."""
    output_extents: tuple[tuple[int, ...], ...]
    """For each output the slots of its extents at run time, one for each bounded axis."""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; `from_json` gives it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Raises KeyError, TypeError or ValueError for anything `to_json` does not write."""

        def specs(key: str) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(t["name"], tuple(t["shape"]), t["dtype"], tuple(t.get("bounded_axes", ())))
                for t in data[key]
            )

        return cls(
            inputs=specs("inputs"),
            outputs=specs("outputs"),
            input_slots=tuple(data["input_slots"]),
            output_slots=tuple(data["output_slots"]),
            param_slots=tuple(data["param_slots"]),
            slots=tuple(Slot(s["section"], s["offset"], tuple(s["shape"]), s["dtype"]) for s in data["slots"]),
            steps=tuple(map(_step_of, data["steps"])),
            arena_bytes=data["arena_bytes"],
            weights_bytes=data["weights_bytes"],
            # The first files of this format have none: all is copied.
            input_views=tuple(map(tuple, data.get("input_views", [()] * len(data["inputs"])))),
            output_views=tuple(map(tuple, data.get("output_views", [()] * len(data["outputs"])))),
            # Nor had they axes of bounded extent.
            output_extents=tuple(map(tuple, data.get("output_extents", [()] * len(data["outputs"])))),
        )


def tensor_bytes(shape: Sequence[int], dtype: str) -> int:
    """Size of a dense tensor. Raises InternalError for a type that does not fill whole bytes."""
    match = re.match(r"[a-z]+(\d+)", dtype)
    bits = 8 if dtype == "bool" else int(match[1]) if match else 0
    if bits == 0 or bits % 8:
        raise InternalError(f"a tensor of type {dtype!r} cannot be stored: its elements do not fill whole bytes")
    return math.prod(shape) * bits // 8


def align(size_bytes: int) -> int:
    """Round up to ALIGNMENT."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Lifetime:
    """A block of memory and the steps, both inclusive, between which its bytes must not change hands."""

    size_bytes: int
    first_step: int
    last_step: int


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Give every block an offset so that blocks alive at the same step do not overlap.

    Greedy by size: the largest block first, each in the lowest gap that fits among the blocks placed before that live
    at the same time (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).

    Returns:
        Offsets in bytes, in the order of `lifetimes`, and the size of the arena.
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    arena_bytes = 0
    for block in sorted(range(len(lifetimes)), key=lambda i: -lifetimes[i].size_bytes):
        life = lifetimes[block]
        rivals = (
            (offsets[other], offsets[other] + align(lifetimes[other].size_bytes))
            for other in placed
            if lifetimes[other].first_step <= life.last_step and life.first_step <= lifetimes[other].last_step
        )
        offsets[block] = _lowest_gap(rivals, life.size_bytes)
        placed.append(block)
        arena_bytes = max(arena_bytes, offsets[block] + align(life.size_bytes))
    return offsets, arena_bytes


def _lowest_gap(taken: Iterable[tuple[int, int]], size_bytes: int) -> int:
    """Lowest offset at which `size_bytes` fit between the taken ranges [start, end)."""
    end = 0
    for start, stop in sorted(taken):
        if start - end >= size_bytes:
            break
        end = max(end, stop)
    return end
