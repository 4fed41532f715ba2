"""Fusion of elementwise readers into their producers, by TVM's passes, within limits that keep it linear and free of
copies.

What is fused becomes one expression, in which a value that is read twice stands twice. Four things can grow with that:

- The *written size* of an expression, its operations as TVM writes them down, doubles with every `x * x` in a row.
  Behind an operator with a template of its own all of it is written; other templates store what becomes too large.
- Its *expanded size* is that with every binding expanded where it is used, which TVM's analyzer does: a tanh uses its
  argument 36 times, so that each in a chain makes the whole 36 times as large.
- The number of kernels in a function, to which TVM's schedules take more than linear time.
- The work that is done again: what is read more than once per element (a vector that is added to every row, the source
  of a resize) would be computed for each of its readers.

Where a limit would be passed, the chain is cut between two kernels: a value is stored, and read. So is one that is
widened again after it was narrowed to be stored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import tvm
from tvm import ir, relax, s_tir, tirx

from calumma import operators
from calumma.graph.context import INJECTIVE, OUT_ELEMENTWISE_FUSABLE
from calumma.space import blocks, loops
from calumma.tvm_compat import kernel_calls

_MOST_EXPANDED = 2_000_000
"""Four tanh in a row (36^4) build in 0.1 s, five in 1.4 s, six in 51 s: measured with TVM 0.27 on a core of 2.6 GHz."""
_MOST_WRITTEN = 2_048
"""A convolution with ten of `x * x` behind it (2^10) builds in 0.4 s, with twelve in 1.8 s: on the same core."""
_MOST_KERNELS = 128
"""Kernels in one fused function: a schedule of 128 takes 0.1 s, of 256 0.4 s."""
_MOST_REPEATED = 8
"""Operations that each reader of an element may do again, because that costs less than a value that is stored."""
_CALL_WORK = 8
"""Operations that a call counts as: a power, a square root, a function of the C library."""
_NARROW = ("bfloat16", "float16")
_FREE_CALLS = ("if_then_else", "reinterpret", "shift_left", "shift_right", "bitwise_and", "bitwise_or", "bitwise_not")
_BROADCAST, _REDUCTION = 1, 3
"""TVM's fusion kinds of functions that take their producers in, beside 0 for elementwise ones and `INJECTIVE`. What is
`OUT_ELEMENTWISE_FUSABLE` takes in its readers instead, if they are elementwise or broadcast."""


def fuse(mod: tvm.IRModule, inputs: int) -> tvm.IRModule:
    """Fuse elementwise readers into their producers, and injective chains into one kernel each.

    Args:
        mod: `main` takes `inputs` inputs before its parameters and calls one PrimFunc per operator.
    """
    mod["main"] = mod["main"].with_attr("num_input", inputs)
    passes = [
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]
    with tvm.transform.PassContext(opt_level=3, config={"relax.FuseOps.max_depth": _MOST_KERNELS}):
        mod = relax.transform.AnnotateTIROpPattern()(mod)
        mod["main"] = _cut(mod["main"], _Chains(mod).cuts())
        return tvm.transform.Sequential(passes)(mod)


def _cut(main: relax.Function, cuts: Mapping[relax.Var, Collection[int]]) -> relax.Function:
    """Put what TVM fuses with nothing between calls and some of their arguments: a reshape to the same shape.

    It costs nothing, as any reshape: the memory plan gives its result the bytes of its argument.

    Args:
        cuts: result of a call -> positions of its arguments.
    """
    if not cuts:
        return main
    builder = relax.BlockBuilder()
    stored: dict[relax.Expr, relax.Var] = {}

    def bindings(old: relax.Binding) -> Iterator[relax.Binding]:
        if old.var not in cuts:
            yield old
            return
        values = list(kernel_calls.arguments(old.value))
        for position in sorted(cuts[old.var]):
            value = values[position]
            if value not in stored:
                stored[value] = relax.DataflowVar(f"{value.name}_stored", value.ty)
                yield relax.VarBinding(stored[value], builder.normalize(relax.op.reshape(value, value.ty.shape)))
            values[position] = stored[value]
        yield relax.VarBinding(old.var, builder.normalize(kernel_calls.with_arguments(old.value, values)))

    changed = [type(block)([new for old in block.bindings for new in bindings(old)]) for block in main.body.blocks]
    body = relax.SeqExpr(changed, main.body.body)
    return relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)


@dataclass(frozen=True)
class _Size:
    """Operations of an expression."""

    written: int = 1
    expanded: int = 1
    work: int = 0
    """Written ones that take time: calls count several times, moves nothing."""


@dataclass(frozen=True)
class _Binding:
    """The point in a walk at which a variable is bound."""

    variable: tirx.Var


@dataclass(frozen=True)
class _Chain:
    """The fused expression behind a value, as far as it would be part of its readers' function."""

    size: _Size = _Size()
    is_stored: bool = False
    """Whether nothing is fused with the value."""
    is_anchored: bool = False
    """Whether it begins with a function that takes elementwise readers in, and is taken in by none."""
    has_template: bool = False
    """Whether that is an operator with a template of its own, which writes everything behind it into one expression."""


_STORED = _Chain(is_stored=True)


class _Chains:
    """A walk over the kernel calls of `main` that predicts what TVM would fuse."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self._mod = mod
        self._kernels: dict[str, _Kernel] = {}
        self._chains: dict[Any, _Chain] = {}  # variable -> what it is computed by
        self._cuts: dict[relax.Var, set[int]] = {}
        calls = kernel_calls.of(mod["main"])
        self._readers = Counter(argument for call in calls for argument in set(kernel_calls.arguments(call)))

    def cuts(self) -> Mapping[relax.Var, Collection[int]]:
        """Result of a call -> the positions of its arguments that are to be stored instead of fused."""
        for block in self._mod["main"].body.blocks:
            for binding in block.bindings:
                if isinstance(binding.value, relax.TupleGetItem):
                    self._chains[binding.var] = self._chain(binding.value.tuple_value)
                elif kernel_calls.is_call(binding):
                    self._chains[binding.var] = self._called(binding.var, binding.value)
        return self._cuts

    def _chain(self, value: Any) -> _Chain:
        return self._chains.get(value, _STORED)

    def _called(self, result: relax.Var, call: ir.Call) -> _Chain:
        name = str(call.args[0].name_hint)
        if name not in self._kernels:
            self._kernels[name] = _Kernel(self._mod[name])
        kernel = self._kernels[name]
        if kernel.kind > _REDUCTION:
            is_anchor = kernel.kind == OUT_ELEMENTWISE_FUSABLE
            return _Chain(is_anchored=True, has_template=kernel.has_template) if is_anchor else _STORED
        arguments = kernel_calls.arguments(call)
        chains = [self._taken_in(self._chain(argument), kernel.kind) for argument in arguments]
        moves = [kernel.kind == INJECTIVE and self._readers[argument] > 1 for argument in arguments]
        cut = {i for i, chain in enumerate(chains) if _is_repeated(chain, kernel.times[i] > 1 or moves[i])}
        cut |= {i for i, chain in enumerate(chains) if not chain.is_stored and _is_widened(arguments[i], result)}
        chains = [_STORED if i in cut else chain for i, chain in enumerate(chains)]
        size = kernel.size([chain.size for chain in chains])
        has_template = any(chain.has_template for chain in chains)
        if size.expanded > _MOST_EXPANDED or (has_template and size.written > _MOST_WRITTEN):
            cut |= {i for i, chain in enumerate(chains) if not chain.is_stored}
            chains = [_STORED] * len(chains)
            size, has_template = kernel.size([chain.size for chain in chains]), False
        if cut:
            self._cuts[result] = cut
        if kernel.kind == _REDUCTION:
            return _STORED
        return _Chain(size, is_anchored=any(chain.is_anchored for chain in chains), has_template=has_template)

    @staticmethod
    def _taken_in(chain: _Chain, kind: int) -> _Chain:
        """What a kernel has of a chain in its own function."""
        return _STORED if chain.is_anchored and kind > _BROADCAST else chain


def _is_widened(argument: Any, result: relax.Var) -> bool:
    """Whether a kernel widens what was narrowed to be stored: in one kernel with that, it would store the wide type."""
    types = [str(getattr(value.ty, "dtype", "")) for value in (argument, result)]
    return types[0] in _NARROW and types[1] == "float32"


def _is_repeated(chain: _Chain, is_read_again: bool) -> bool:
    """Whether too much of a chain's work would be done again by a kernel, if that or another reads elements again.

    What is behind a reduction without a template of its own is no concern: rows store what serves many elements.
    """
    return is_read_again and chain.size.work > _MOST_REPEATED and (chain.has_template or not chain.is_anchored)


class _Kernel:
    """What one operator's PrimFunc does to the sizes of what it reads.

    Attributes:
        kind: TVM's fusion kind.
        has_template: whether it is an operator whose family schedules it.
        times: for each argument how often one of its elements is read at different places, on average.
    """

    def __init__(self, func: tirx.PrimFunc) -> None:
        self.kind = int(func.attrs["op_pattern"])
        sch = s_tir.Schedule(func)
        self.has_template = _has_template(sch)
        self._params = list(func.params)
        stages = [(sch.get(block).body, loops.points(sch, block)) for block in loops.blocks_of(sch)]
        stages = [(body, points) for body, points in stages if isinstance(body, tirx.BufferStore)]
        self._bodies = [body for body, _ in stages]
        self._sizes: dict[tuple[_Size, ...], _Size] = {}
        self.times = self._times(stages) if self.kind <= _REDUCTION else []

    def _times(self, stages: Sequence[tuple[tirx.BufferStore, int]]) -> list[float]:
        reads: Counter[Any] = Counter()  # buffer -> reads, those of one place in one stage counted once
        for body, points in reversed(stages):
            times = max(1.0, reads[body.buffer] / _elements(body.buffer))
            for _, source in {(str(load.indices), load.source) for load in _unconditional_loads(body.value)}:
                reads[source] += points * times
        return [reads[param] / _elements(param) for param in self._params]

    def size(self, arguments: Sequence[_Size]) -> _Size:
        """The largest sizes in the function, given those of its arguments."""
        key = tuple(arguments)
        if key not in self._sizes:
            self._sizes[key] = self._largest(key)
        return self._sizes[key]

    def _largest(self, arguments: Sequence[_Size]) -> _Size:
        buffers: dict[Any, _Size] = dict(zip(self._params, arguments, strict=False))
        largest = _Size()
        for body in self._bodies:
            buffers[body.buffer] = size = _size(body.value, buffers)
            largest = _Size(*map(max, astuple(largest), astuple(size)))
        return largest


def _has_template(sch: s_tir.Schedule) -> bool:
    anchor = blocks.find_anchor(sch)
    named = (family for family in operators.families() if anchor is not None and family.name == anchor[1])
    return any(family.space is not None and family.structure is None for family in named)


def _elements(buffer: Any) -> int:
    shape = buffer.ty.shape if isinstance(buffer, tirx.Var) else buffer.shape
    return max(1, math.prod(int(extent) for extent in shape))


def _unconditional_loads(expression: Any) -> Iterator[ir.TensorLoad]:
    """The loads of an expression that happen at every point, those in indices left out."""
    pending = [expression]
    while pending:
        node = pending.pop()
        if isinstance(node, ir.TensorLoad):
            yield node
        elif _called(node) != "if_then_else":
            pending += loops.children(node)


def _called(expression: Any) -> str:
    """The name, without its dialect, of the intrinsic that an expression calls; "" for another expression."""
    return str(getattr(expression.op, "name", "")).split(".")[-1] if isinstance(expression, ir.Call) else ""


def _size(expression: Any, buffers: Mapping[Any, _Size]) -> _Size:
    """The size of an expression, given those of what it loads; it may be nested deeper than Python's stack is."""
    pending, order = [expression], []
    while pending:
        node = pending.pop()
        order.append(node)
        if isinstance(node, tirx.Let):
            pending += [node.value, _Binding(node.var), node.body]
        elif not isinstance(node, (ir.TensorLoad, _Binding)):
            pending += loops.children(node)
    variables: dict[Any, int] = {}  # variable -> expanded size of what it is bound to
    done: list[_Size] = []  # of the expressions so far that are in none of each other, the last one last
    for node in reversed(order):  # what an expression contains, from left to right, before it
        if isinstance(node, _Binding):
            variables[node.variable] = done[-1].expanded
        elif isinstance(node, ir.TensorLoad):
            done.append(buffers.get(node.source, _Size()))
        elif isinstance(node, tirx.Let):
            body, value = done.pop(), done.pop()
            done.append(_Size(value.written + body.written, body.expanded, value.work + body.work))
        elif isinstance(node, tirx.Var):
            done.append(_Size(0, variables.get(node, 0)))
        else:
            count = len(loops.children(node))
            below = done[len(done) - count :]
            del done[len(done) - count :]
            done.append(_joined(node, below))
    return done.pop()


def _joined(node: Any, below: Sequence[_Size]) -> _Size:
    """The size of an operation of expressions of these sizes."""
    if not below:
        return _Size(0, 0)
    work = _CALL_WORK if isinstance(node, ir.Call) and _called(node) not in _FREE_CALLS else 1
    written, expanded, work_below = map(sum, zip(*map(astuple, below), strict=True))
    return _Size(1 + written, 1 + expanded, work + work_below)
