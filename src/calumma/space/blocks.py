"""What templates ask of a fused PrimFunc's blocks, and the schedule steps they share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx

from calumma.core.contraction import Contraction, contraction_reading
from calumma.core.protocols import Indices
from calumma.space import loops
from calumma.space.base import Knob, KnobSpace
from calumma.target import Target
from calumma.target.costs import RegisterTileCosts
from calumma.tvm_compat import dot_product

OPERATOR = "calumma.operator"
"""Block annotation that names the anchor operator; it survives fusion."""


def schedule_of(func: tirx.PrimFunc) -> s_tir.Schedule:
    """A fresh schedule of `func`, with the checks a search does not need left out."""
    return s_tir.Schedule(func, debug_mask="none", error_render_level="fast")


def find_anchor(sch: s_tir.Schedule) -> tuple[Any, str] | None:
    """The block annotated as the anchor with its operator's name, or None."""
    for block in loops.blocks_of(sch):
        annotations = sch.get(block).annotations
        if OPERATOR in annotations:
            return block, str(annotations[OPERATOR])
    return None


def anchor_of(sch: s_tir.Schedule) -> Any:
    """The anchor block of a function that has one."""
    found = find_anchor(sch)
    assert found is not None, "the function has no anchor operator"
    return found[0]


def anchor_extents(sch: s_tir.Schedule) -> list[int]:
    """Extents of the anchor's loops, outermost first."""
    return loops.extents(sch, sch.get_loops(anchor_of(sch)))


def contraction_of(sch: s_tir.Schedule) -> Contraction:
    """What the anchor's operands are read as; where it packs several elements, they are the anchor's innermost loop."""
    return contraction_reading(str(sch.get(anchor_of(sch)).reads[-1].source.dtype))


def vectorize_lanes(sch: s_tir.Schedule, lane: Any, anchor: Any, reduction: Any, target: Target) -> None:
    """Vectorise the anchor's lanes and split off its initialisation before loop `reduction`.

    Where the only loop below `lane` is over packed elements, both become the CPU's dot product, if it has one.
    """
    contraction = contraction_of(sch)
    dot = target.dot_product(contraction) if contraction.pack > 1 else None
    sch.vectorize(lane)
    sch.decompose_reduction(anchor, reduction)
    if dot is not None:
        sch.annotate(lane, dot_product.MARK, dot.name)


def argument_of(func: tirx.PrimFunc, buffer: Any) -> int:
    """Position of a buffer among the arguments of the function it comes from."""
    return next(i for i, param in enumerate(func.params) if param.same_as(buffer))


def has_block(sch: s_tir.Schedule, name: str) -> bool:
    return any(sch.get(block).name_hint == name for block in loops.blocks_of(sch))


def fuse_epilogue(sch: s_tir.Schedule, anchor: Any) -> Any:
    """Inline every block behind and beside the anchor into the last and return it; a copy of the anchor if it is last.

    The anchor's own buffer becomes the accumulator: an intermediate that the caller may keep in registers.
    """
    chain = sch.get_consumers(anchor)
    if not chain:
        return sch.cache_write(anchor, 0, "global")
    last = anchor
    pending = list(chain)
    while pending:
        block = pending.pop(0)
        consumers = sch.get_consumers(block)
        if consumers:
            sch.compute_inline(block)
            pending = list(sch.get_consumers(anchor))
        else:
            last = block
    while beside := [block for block in sch.get_producers(last) if not sch.get(block).same_as(sch.get(anchor))]:
        sch.compute_inline(beside[0])  # what is added to the accumulator may be computed here too: relu(residual), say
    return last


def divisors(n: int, most: int | None = None) -> tuple[int, ...]:
    """Divisors of n in ascending order, up to `most`."""
    return tuple(d for d in range(1, min(n, most or n) + 1) if n % d == 0)


def balance(chunks: NDArray[np.float64], threads: int) -> NDArray[np.float64]:
    """Share of the threads kept busy by `chunks` equal pieces of work: chunks / (threads * ceil(chunks / threads))."""
    return chunks / (threads * np.ceil(chunks / threads))


def live_registers(kept: NDArray, others: NDArray) -> NDArray[np.int64]:
    """Vector registers of a tile of kept x others accumulators: these, what the inner loop reads, and one of the other.

    LLVM keeps the operand of the inner of the two unrolled loops for all turns of the outer. A tile that needs one
    register more than there are runs at about half of the speed (`RegisterTileCosts.spill_rate`).
    """
    return kept * others + kept + 1


def issue_rate(kept: NDArray, others: NDArray, target: Target) -> NDArray[np.float64]:
    """Share of the peak at which a register tile issues: enough accumulators, and no spills.

    Args:
        kept, others: as of `live_registers`.
    """
    costs = target.costs.tile
    spills = live_registers(kept, others) > target.registers
    return np.minimum(1.0, kept * others / costs.accumulators) * np.where(spills, costs.spill_rate, 1.0)


def overlapped(compute: Any, memory: Any, costs: RegisterTileCosts) -> Any:
    """Time of computing with prefetched weights: the longer of both, and some of the shorter."""
    return np.maximum(compute, memory) + costs.overlap * np.minimum(compute, memory)


class AnchorSpace(KnobSpace):
    """A space over one PrimFunc with an anchor operator.

    Attributes:
        registers: vector registers of the CPU.
        contraction: what the anchor's operands are read as.
        read_bytes, sum_bytes: of one operand's element, and of one sum.
        step_bytes: of what one multiply-add reads of each operand and lane.
    """

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int) -> None:
        self.func = func
        self.target = target
        self.threads = threads
        self.registers = target.registers
        sch = schedule_of(func)
        self.contraction = contraction_of(sch)
        self.packs_elements = self.contraction.pack > 1
        self.read_bytes = float(self.contraction.read_bytes)
        self.sum_bytes = float(self.contraction.accumulate_bytes)
        self.step_bytes = self.contraction.pack * self.read_bytes
        super().__init__(self._knobs(sch))

    @abstractmethod
    def _knobs(self, sch: s_tir.Schedule) -> tuple[Knob, ...]:
        """Read what the function computes from its untouched schedule; return the knobs that fit."""

    @abstractmethod
    def _quantities(self, k: dict[str, NDArray]) -> dict[str, Any]:
        """Features by name: (N,) from knob values (N,), or a number that all configurations share."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        first = np.zeros((1, len(self.knobs)), dtype=np.int32)
        return tuple(self._quantities(self.columns(first)))

    def features(self, indices: Indices) -> NDArray[np.float32]:
        quantities = self._quantities(self.columns(indices)).values()
        return np.stack([np.broadcast_to(q, len(indices)) for q in quantities], axis=1).astype(np.float32)
