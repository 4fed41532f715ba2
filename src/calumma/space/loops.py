"""What the templates of elementwise, reduction and row-wise functions share: the structure of a PrimFunc, read from its
blocks and never from names, and a few ways to treat loops.

A PrimFunc here is a list of blocks, each under loops of its own, in an order that respects their dependences. A block
is *spatial* when it writes every element once, a *reduction* when it combines many values into one element.

Splits that do not divide leave a predicate. `compute_at` after such a split loses it in TVM 0.27 when the block came
from `rfactor`, so every function here computes blocks at their place first and splits last.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import ir, s_tir, tirx
from tvm.s_tir.meta_schedule.arg_info import ArgInfo

from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space.base import Knob, KnobSpace
from calumma.target import Target
from calumma.tvm_compat import tails

STACK_BYTES = 1024
"""TVM keeps a buffer of fewer bytes on the stack, where LLVM can hold it in registers; larger ones are allocated."""
KEEP = "calumma.keep"
"""Block annotation: this stage is stored, not inlined into what reads it."""
OPERATIONS = "calumma.operations"
"""Block annotation: arithmetic operations per point of a block that is more than one store."""
_MAX_COMPLEXITY = 300
_BINDING_COMPLEXITY = 10
"""TVM's compile time is exponential in the nesting of bindings (an exp of a tanh of ...): four silu take a second."""
_MANY_SHARES = 8
"""Pieces of work per thread from which the last round of them does not matter."""
_MAX_ACCUMULATORS = 16
_CHILDREN = ("a", "b", "value", "condition", "true_value", "false_value", "body", "base", "min", "extent")
_CHILD_LISTS = ("args", "indices")


_node_of: Callable[[s_tir.Schedule, Any], Any] = inspect.unwrap(s_tir.Schedule.get)
"""The block or loop behind a schedule's variable: `Schedule.get` without the check of its argument's type, which takes
four times as long as all else."""


def blocks_of(sch: s_tir.Schedule) -> list[Any]:
    """All blocks under the root, in order of execution; none where a function is written without blocks."""
    try:
        root = sch.get_sblock("root")
    except s_tir.ScheduleError:
        return []
    return list(sch.get_child_blocks(root))


def is_spatial(sch: s_tir.Schedule, block: Any) -> bool:
    return _is_spatial(_node_of(sch, block))


def _is_spatial(node: Any) -> bool:
    return all(iv.iter_type == tirx.IterVar.DataPar for iv in node.iter_vars)


def is_reduction(sch: s_tir.Schedule, block: Any) -> bool:
    return _node_of(sch, block).init is not None


@functools.lru_cache(maxsize=1)  # the templates ask one after the other
def is_regular(func: tirx.PrimFunc) -> bool:
    """Whether every block is one store of static extents under plain loops: what the templates can take apart."""
    sch = s_tir.Schedule(func)
    blocks = blocks_of(sch)
    for block in blocks:
        node = _node_of(sch, block)
        if not isinstance(node.body, tirx.BufferStore) or len(node.writes) != 1 or not node.iter_vars:
            return False
        if not all(isinstance(iv.dom.extent, tirx.IntImm) for iv in node.iter_vars):
            return False
        if not (_is_spatial(node) or node.init is not None):
            return False
        if len(sch.get_loops(block)) != len(node.iter_vars):
            return False
    return bool(blocks)


def extents(sch: s_tir.Schedule, loops: Sequence[Any]) -> list[int]:
    return [int(sch.get(loop).extent) for loop in loops]


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fields of a kind of expression that hold one expression, and several: asking for others is slow."""
    return tuple(f for f in _CHILDREN if hasattr(kind, f)), tuple(f for f in _CHILD_LISTS if hasattr(kind, f))


def children(node: Any) -> list[tirx.Expr]:
    """The expressions directly under an expression or a store."""
    single, several = _fields(type(node))  # type: ignore[arg-type]  # a type is hashable
    found = [getattr(node, name) for name in single]
    for name in several:
        found += getattr(node, name)
    return [child for child in found if isinstance(child, tirx.Expr)]


def walk(node: Any) -> Iterator[tirx.Expr]:
    """Every expression in an expression or under a store, parents first; as deep as it may be."""
    pending = [node]
    while pending:
        found = pending.pop()
        if isinstance(found, tirx.Expr):
            yield found
        pending += reversed(children(found))


def buffer_of(access: tirx.BufferStore | ir.TensorLoad) -> Any:
    return access.buffer if isinstance(access, tirx.BufferStore) else access.source


def operations(sch: s_tir.Schedule, block: Any) -> int:
    """Arithmetic operations per point of a block; index arithmetic and changes of type are not counted."""
    body = _node_of(sch, block).body
    if not isinstance(body, tirx.BufferStore):
        return int(_node_of(sch, block).annotations.get(OPERATIONS, 0))
    return _operations(body)


def _operations(body: Any) -> int:
    arithmetic = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min, ir.Call, tirx.Select)
    return sum(
        isinstance(e, arithmetic) and not str(e.ty).startswith(("int", "uint")) and not _is_reinterpretation(e)
        for e in walk(body.value)
    )


def _is_reinterpretation(expression: Any) -> bool:
    return isinstance(expression, ir.Call) and getattr(expression.op, "name", "") == "tirx.reinterpret"


def _complexity(body: Any) -> int:
    """What an expression costs to compile: operations, and bindings many times over."""
    bindings = sum(isinstance(e, tirx.Let) for e in walk(body))
    return _operations(body) + _BINDING_COMPLEXITY * bindings


def points(sch: s_tir.Schedule, block: Any) -> int:
    """Number of times a block runs."""
    return math.prod(int(iv.dom.extent) for iv in _node_of(sch, block).iter_vars)


def results(sch: s_tir.Schedule, block: Any) -> int:
    """Number of elements a block writes."""
    axes = _node_of(sch, block).iter_vars
    return math.prod(int(iv.dom.extent) for iv in axes if iv.iter_type == tirx.IterVar.DataPar)


def has_reduction_before(sch: s_tir.Schedule, block: Any) -> bool:
    """Whether a block needs the result of a reduction, directly or through others."""
    producers = list(sch.get_producers(block))
    return any(is_reduction(sch, p) or has_reduction_before(sch, p) for p in producers)


class Inlining:
    """Inlines spatial blocks of a schedule into what reads them, as far as expressions stay small enough to compile.

    Every expression is walked once; how blocks grow is counted from then on.
    """

    def __init__(self, sch: s_tir.Schedule) -> None:
        self._sch = sch
        self._complexity: Counter[Any] = Counter()  # written buffer -> what its expressions cost to compile
        self._loads: defaultdict[Any, Counter[Any]] = defaultdict(Counter)  # written buffer -> loads from others
        for block in blocks_of(sch):
            written, body = self._written(block), _node_of(sch, block).body
            self._complexity[written] += _complexity(body)
            self._loads[written].update(e.source for e in walk(body) if isinstance(e, ir.TensorLoad))

    def inline(self, block: Any) -> bool:
        """Inline a block into all that read it.

        False where some expression would become too large to compile, and where TVM cannot inline (an output, or a
        store it cannot invert).
        """
        own = self._written(block)
        readers = [self._written(consumer) for consumer in self._sch.get_consumers(block)]
        grown = {r: self._complexity[r] + self._loads[r][own] * self._complexity[own] for r in readers}
        if any(size > _MAX_COMPLEXITY for size in grown.values()):
            return False
        try:
            self._sch.compute_inline(block)
        except s_tir.ScheduleError:
            return False
        self._complexity.update({reader: size - self._complexity[reader] for reader, size in grown.items()})
        for reader in readers:
            times = self._loads[reader].pop(own, 0)
            self._loads[reader].update({source: times * count for source, count in self._loads[own].items()})
        return True

    def _written(self, block: Any) -> Any:
        return next((region.source for region in _node_of(self._sch, block).writes), None)


def vectorize(sch: s_tir.Schedule, block: Any, loop: Any, width: int) -> list[Any]:
    """Vectorise a loop of a block in vectors of `width`; returns the one or two loops it became, vector last.

    Where the width does not divide, the rest becomes one shorter vector; where conditions in the block forbid that (TVM
    would cut the loop at them too), a divisor serves as the width, or the loop is left to LLVM.
    """
    extent = int(sch.get(loop).extent)
    if extent == 1 or width <= 1:
        return [loop]
    if extent <= width:
        sch.vectorize(loop)
        return [loop]
    divisor = vector_width(extent, width)
    ragged = divisor < width and not _has_conditions(sch, block)
    if not ragged and divisor < width // 2:
        return [loop]
    outer, inner = sch.split(loop, [None, width if ragged else divisor])
    sch.vectorize(inner)
    if ragged:
        sch.annotate(block, tails.MARK, 1)
    return [outer, inner]


def _has_conditions(sch: s_tir.Schedule, block: Any) -> bool:
    """Whether a block compares, or clamps, integers."""
    comparisons = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE, tirx.Min, tirx.Max)
    return any(isinstance(e, comparisons) and str(e.a.ty).startswith("int") for e in walk(sch.get(block).body))


def accumulate(sch: s_tir.Schedule, block: Any, lanes: int, unroll: int) -> None:
    """Order the loops of a reduction block, and start the reduction before them.

    The block was computed at its place with unit loops kept. Reduction loops go outside, the innermost `unroll` of them
    unrolled; then the other outputs as independent accumulators, unrolled; then a vector of outputs. Nothing above may
    be made parallel afterwards.
    """
    node = sch.get(block)
    own = sch.get_loops(block)[-len(node.iter_vars) :]
    reduced = [loop for loop, iv in zip(own, node.iter_vars, strict=True) if iv.iter_type == tirx.IterVar.CommReduce]
    spatial = {
        iv.var: loop for loop, iv in zip(own, node.iter_vars, strict=True) if iv.iter_type == tirx.IterVar.DataPar
    }
    written = [part.min for part in node.writes[0].region][-1:]  # none where the result is a scalar
    along = [loop for var, loop in spatial.items() if var.same_as(written[0]) and int(sch.get(loop).extent) > 1]
    others = [loop for var, loop in spatial.items() if not var.same_as(written[0])]
    sch.reorder(*reduced, *others, *along)
    accumulators = math.prod(extents(sch, others))
    for loop in along:
        vectorize(sch, block, loop, lanes)
    if 1 < accumulators <= _MAX_ACCUMULATORS:
        for loop in others:
            sch.unroll(loop)
    for loop in reduced[len(reduced) - unroll :]:
        sch.unroll(loop)
    sch.decompose_reduction(block, reduced[0])


def lane_factors(extent: int, lanes: int) -> tuple[int, ...]:
    """Numbers of partial results, ascending, into which a reduction over `extent` can be split for vectors."""
    found = {largest_divisor(extent, lanes), largest_divisor(extent, 4 * lanes)}
    return tuple(sorted(f for f in found if f >= lanes // 2))


def reads_along(sch: s_tir.Schedule, block: Any, variable: tirx.Var) -> bool:
    """Whether some load uses `variable`, and all that do walk along memory with it."""
    using = _loads_using(sch, block, variable)
    return bool(using) and all(uses(e.indices[-1], variable) for e in using)


def walks_along(sch: s_tir.Schedule, block: Any, variable: tirx.Var) -> bool:
    """Whether a vector over `variable` has something to load or to repeat as a whole: not only gathers."""
    using = _loads_using(sch, block, variable)
    return not using or any(uses(e.indices[-1], variable) for e in using)


def _loads_using(sch: s_tir.Schedule, block: Any, variable: tirx.Var) -> list[Any]:
    written = sch.get(block).writes[0].source
    loads = [e for e in walk(sch.get(block).body) if isinstance(e, ir.TensorLoad)]
    return [e for e in loads if not buffer_of(e).same_as(written) and any(uses(i, variable) for i in e.indices)]


def uses(expr: tirx.Expr, variable: tirx.Var) -> bool:
    """Whether an expression contains a variable."""
    return any(variable.same_as(e) for e in walk(expr))


def largest_divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` not above `limit`."""
    return next(d for d in range(min(extent, limit), 0, -1) if extent % d == 0)


def vector_width(extent: int, limit: int) -> int:
    """The divisor of `extent` to use as vectors of up to `limit`: a power of two if that is at least half as wide."""
    power = extent & -extent
    return min(power, limit) if 2 * power >= limit else largest_divisor(extent, limit)


def parallel_depth(outer: Sequence[int], threads: int) -> int:
    """How many outer loops to fuse so that every thread gets an even share."""
    product = 1
    for depth, extent in enumerate(outer, start=1):
        product *= extent
        if product % threads == 0 or product >= _MANY_SHARES * threads:
            return depth
    return len(outer)


class LoopSpace(KnobSpace):
    """A space over one PrimFunc whose default is reasoned from its size; features that all its templates share."""

    def __init__(self, func: tirx.PrimFunc, target: Target, threads: int, knobs: tuple[Knob, ...]) -> None:
        super().__init__(knobs)
        self.func = func
        self.target = target
        self.threads = threads
        sch = s_tir.Schedule(func)
        blocks = blocks_of(sch)
        self.size_bytes = _argument_bytes(func)
        self.flops = sum(points(sch, block) * operations(sch, block) for block in blocks)
        self.reductions = sum(is_reduction(sch, block) for block in blocks)
        self.stages = len(blocks)

    @property
    def worth_threads(self) -> bool:
        """Whether the work outweighs waking the other threads (about two microseconds)."""
        costs = self.target.costs.loops
        return self.threads > 1 and (self.size_bytes >= costs.serial_bytes or self.flops >= costs.serial_flops)

    @abstractmethod
    def default_config(self) -> dict[str, KnobValue]:
        """The configuration to use without any measurement, by knob name."""

    def default(self) -> Indices:
        return self.encode(self.default_config())

    @property
    def feature_names(self) -> tuple[str, ...]:
        """log2(1 + x) of the task's bytes, flops, flops per byte, stages, reductions, threads and vector lanes; then of
        every knob's value, and of every derived quantity."""
        task = ("bytes", "flops", "intensity", "stages", "reductions", "threads", "lanes")
        derived = tuple(self.derived({k.name: np.asarray(k.values)[:1] for k in self.knobs}))
        return (*task, *(knob.name for knob in self.knobs), *derived)

    def derived(self, columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Quantities that follow from knobs (N,), by name, each (N,)."""
        return {}

    def features(self, indices: Indices) -> NDArray[np.float32]:
        columns = self.columns(indices)
        task = (
            self.size_bytes,
            self.flops,
            self.flops / max(self.size_bytes, 1),
            self.stages,
            self.reductions,
            self.threads,
            self.target.lanes,
        )
        constant = np.broadcast_to(np.array(task, dtype=np.float64), (len(indices), len(task)))
        varying = [*(columns[knob.name] for knob in self.knobs), *self.derived(columns).values()]
        table = np.column_stack([constant, *(np.asarray(c, dtype=np.float64) for c in varying)])
        return np.log2(1.0 + table).astype(np.float32)


def _argument_bytes(func: tirx.PrimFunc) -> int:
    total = 0
    for info in ArgInfo.from_prim_func(func):
        bits = 8 if info.dtype == "bool" else int("".join(c for c in info.dtype if c.isdigit()))
        total += math.prod(int(extent) for extent in info.shape) * bits // 8
    return total
