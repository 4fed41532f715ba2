"""What lowering rules work with: the module under construction, its parameters, and the layout of every value.

Convolutions want blocked values, pooling and elementwise operators take what they get, concatenation joins slot maps, a
channel shuffle only permutes the map, and everything else gets plain values. A transform is a kernel of its own; how
many are left is counted.

With a narrow contraction, convolutions and products with constant weights read its type and add up in another. What
they read is *stored* in that type by the kernel that makes it, for all its readers; an operator that does not contract
computes in the wide type all the same, and widens what it reads. Every operator sees a stored value through `value`
(wide) or, if it takes both or only moves elements, through `stored`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax, te, tirx

from calumma.core.contraction import Contraction
from calumma.expressions import blocking, casts
from calumma.graph.layouts import Slots, Value, identity_slots, places
from calumma.graph.nodes import CONSTANT, Node
from calumma.target import Target
from calumma.tvm_compat.marks import FIXED

OUT_ELEMENTWISE_FUSABLE = 4
"""TVM's fusion kind of a convolution: elementwise readers fuse behind it, nothing fuses before it."""
INJECTIVE = 2
"""TVM's fusion kind of functions that compute every element from one of each argument."""
OPAQUE = 8
"""TVM's fusion kind of functions that are fused with nothing."""
_RESHAPE = ir.Op.get("relax.reshape")


@dataclass(frozen=True)
class Declined:
    """A rule's answer to a node that it does not cover, with the reason in one clause; TVM lowers it then."""

    reason: str


@dataclass(frozen=True)
class StoredTypes:
    """What is known of a graph's element types before it is lowered."""

    contracting: Collection[Node] = frozenset()
    """Operators that read the contraction's narrow type."""
    narrow: Collection[Node] = frozenset()
    """Operators whose results are stored in it."""


class LoweringContext:
    """A Relax module under construction.

    Attributes:
        target: the CPU.
        lanes: its float32 values per vector, which is also the block of channels.
        contraction: what contractions read.
        users: node -> the nodes that read it.
        builder: of the module's `main`.
        transforms: kernels so far that only change the layout of an activation.
    """

    values: dict[Node, Any]
    """Node -> its value, or `ChannelParts` of a split."""
    params: list[np.ndarray]
    """The packed parameters."""
    param_vars: list[relax.Var]
    """Their variables, in the same order."""

    def __init__(
        self,
        target: Target,
        contraction: Contraction,
        users: Mapping[Node, list[Node]],
        stored_types: StoredTypes,
    ) -> None:
        self.target = target
        self.lanes = target.lanes
        self.contraction = contraction
        self.users = users
        self.builder = relax.BlockBuilder()
        self.values = {}
        self.params = []
        self.param_vars = []
        self.transforms = 0
        self._types = stored_types
        self._packed: dict[tuple, relax.Var] = {}
        self._plain: dict[tuple[relax.Expr, bytes], Value] = {}
        self._blocked: dict[tuple[relax.Expr, bytes, bytes], Value] = {}
        self._casts: dict[relax.Expr, relax.Expr] = {}
        self._unplaced: set[relax.Expr] = set()

    # -- kernels and parameters -------------------------------------------------------------------

    def emit(
        self, function: Callable, *args: relax.Expr, kind: int | None = None, name: str | None = None
    ) -> relax.Var:
        """Emit a tensor expression as a PrimFunc call; `kind` fixes its fusion kind."""
        attrs = {} if kind is None else {"primfunc_attrs": {"op_pattern": kind}}
        result = self.builder.emit_te(function, *args, **attrs, primfunc_name_hint=name or "kernel")
        self._unplaced.add(result)
        return result

    def emit_function(
        self,
        function: tirx.PrimFunc,
        *args: relax.Expr,
        result: relax.TensorType | Sequence[relax.TensorType],
        name: str,
        scheduled: bool = False,
    ) -> relax.Var:
        """Emit a call of a function that is fused with nothing; its last parameters are the results.

        Args:
            result: the type of the result, or of several, which are given as a tuple.
            scheduled: whether the function keeps the schedule it has.
        """
        marks = {"op_pattern": OPAQUE, **({FIXED: True} if scheduled else {})}
        called = self.builder.add_func(function.without_attr("global_symbol").with_attrs(marks), name)
        types = result if isinstance(result, relax.TensorType) else list(result)
        return self.builder.emit(relax.call_tir(called, relax.Tuple(args), types))

    @contextmanager
    def region(self) -> Iterator[None]:
        """Inside, what runs any number of times: a layout that a value is brought into there is not there outside."""
        outside = self._plain, self._blocked, self._casts, self._unplaced
        self._plain, self._blocked, self._casts = ({**cache} for cache in outside[:3])
        self._unplaced = set()
        try:
            yield
        finally:
            self._plain, self._blocked, self._casts, self._unplaced = outside

    def adjacent(self, parts: Sequence[relax.Expr], axis: int) -> bool:
        """Whether the parts can be written side by side in one buffer at once, instead of being copied together.

        Each must be the result of a kernel and have no other place yet; together they are contiguous if every axis
        before `axis` has extent 1, and aligned if each fills whole cache lines.
        """
        shapes = [[int(d) for d in part.ty.shape] for part in parts]
        sizes = [
            int(np.prod(shape)) * tvm.runtime.DataType(str(part.ty.dtype)).itemsize
            for shape, part in zip(shapes, parts, strict=True)
        ]
        return (
            all(part in self._unplaced for part in parts)
            and len(set(parts)) == len(parts)
            and all(extent == 1 for shape in shapes for extent in shape[:axis])
            and all(size % self.target.line_bytes == 0 for size in sizes[:-1])
        )

    def place_side_by_side(self, parts: Sequence[relax.Expr], axis: int) -> relax.Var:
        """A concatenation that costs nothing: `relax.concat` stays, and the memory plan places the parts."""
        self._unplaced -= set(parts)
        result = self.builder.emit(relax.op.concat(list(parts), axis))
        self._unplaced.add(result)
        return result

    def param(self, array: np.ndarray, key: tuple) -> relax.Var:
        """Make `array` a parameter of the module; equal keys share one."""
        if key not in self._packed:
            array = np.asarray(array, order="C")
            var = relax.Var(f"param_{len(self.params)}", relax.TensorType(array.shape, str(array.dtype)))
            self.params.append(array)
            self.param_vars.append(var)
            self._packed[key] = var
        return self._packed[key]

    # -- element types ----------------------------------------------------------------------------

    def computes(self, node: Node) -> bool:
        """Whether a node's result has the type that operators of ours compute in."""
        return node.dtype == self.contraction.accumulate

    def value(self, node: Node) -> Value:
        """The value of a node in whatever layout it has, never narrow; a constant becomes a plain parameter."""
        value = self.stored(node)
        if not self.is_narrow(value):
            return value
        # A cast for every reader: it is fused into that, where a common one would be a kernel.
        return Value(self.emit(casts.widen, value.expr, name="widen"), value.shape, value.slots)

    def stored(self, node: Node) -> Value:
        """The value of a node as it is stored, which may be in the contraction's narrow type."""
        if node.op == CONSTANT:
            return Value(self.param(node.value, ("plain", node)), node.shape)
        return self.values[node]

    def narrowed(self, node: Node) -> Value:
        """The value of a node in the contraction's narrow type."""
        value = self.stored(node)
        return value if self.is_narrow(value) else self._cast(value)

    def is_narrow(self, value: Value) -> bool:
        """Whether a value is stored in the contraction's narrow type."""
        return self.contraction.is_narrow and value.stored_dtype == self.contraction.read

    def contracts_narrow(self, node: Node) -> bool:
        """Whether an operator reads the contraction's narrow type."""
        return node in self._types.contracting

    def stores_narrow(self, node: Node) -> bool:
        """Whether a node's result is stored in the contraction's narrow type."""
        return node in self._types.narrow

    def moved(self, value: Value, source: Value) -> Value:
        """What holds elements of `source` alone, stored like that."""
        return self._cast(value) if self.is_narrow(source) and not self.is_narrow(value) else value

    def as_stored(self, node: Node, value: Any) -> Any:
        """What a rule made of a node, in the type that it is to be stored in."""
        return self._cast(value) if self.stores_narrow(node) and not self.is_narrow(value) else value

    def packed_weight(self, node: Node, packed: np.ndarray, key: tuple) -> relax.Var:
        """A weight (.., K, L) that `node` contracts with, as the parameter in the form that its contraction reads."""
        narrow = self.contracts_narrow(node)
        return self.param(casts.packed(packed, self.contraction) if narrow else packed, (*key, narrow))

    def _cast(self, value: Value) -> Value:
        if value.expr not in self._casts:
            narrow = casts.narrowing(self.contraction.read)
            self._casts[value.expr] = self.emit(narrow, value.expr, name="narrow")
        return Value(self._casts[value.expr], value.shape, value.slots)

    # -- layouts ----------------------------------------------------------------------------------

    def plain(self, node: Node) -> Value:
        """The value of a node in the model's own layout."""
        return self.to_plain(self.value(node))

    def to_plain(self, value: Value) -> Value:
        """A value in the model's own layout."""
        if value.slots is None:
            return value
        key = value.expr, value.slots.tobytes()  # a shuffle of channels is the same tensor in another order
        if key not in self._plain:
            channels = value.shape[1]
            place = places(value.slots, channels)
            if np.array_equal(place, np.arange(channels)):
                expr = self.emit(
                    lambda x: blocking.unblock_channels(x, channels), value.expr, kind=INJECTIVE, name="unblock"
                )
            else:
                expr = self.emit(
                    blocking.gather_channels, value.expr, self._table(place), kind=INJECTIVE, name="unblock"
                )
            self.transforms += 1
            self._plain[key] = Value(expr, value.shape)
        return self._plain[key]

    def identity_slots(self, channels: int) -> Slots:
        """Channels in order, in whole blocks."""
        return identity_slots(channels, self.lanes)

    def to_blocked(self, value: Value, slots: Slots | None = None) -> Value:
        """Block a value; with `slots`, exactly in that order (a gather where it comes in another)."""
        lanes, channels = self.lanes, value.shape[1]
        if value.slots is not None and (slots is None or np.array_equal(value.slots, slots)):
            return value
        slots = self.identity_slots(channels) if slots is None else slots
        key = (value.expr, b"" if value.slots is None else value.slots.tobytes(), slots.tobytes())
        if key in self._blocked:
            return self._blocked[key]
        if value.slots is None and np.array_equal(slots, self.identity_slots(channels)):
            expr = self.emit(lambda x: blocking.block_channels(x, lanes), value.expr, kind=INJECTIVE, name="block")
        else:
            table = slots
            if value.slots is not None:
                table = np.where(slots >= 0, places(value.slots, channels)[np.maximum(slots, 0)], -1)
            expr = self.emit(
                lambda x, where: blocking.gather_slots(x, where, lanes),
                value.expr,
                self._table(table),
                kind=INJECTIVE,
                name="block",
            )
        self.transforms += 1
        self._blocked[key] = Value(expr, value.shape, slots)
        return self._blocked[key]

    def reshaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Give `value` another shape of the same elements, with no copy of a plain or a blocked [N, C, 1, 1] value."""
        if value.slots is not None:
            _, c, h, w = value.shape
            without_holes = len(value.slots) == c and np.array_equal(value.slots, np.arange(c))
            if not (h == w == 1 and without_holes):
                value = self.to_plain(value)
        return Value(self.builder.emit(relax.op.reshape(value.expr, shape)), shape)

    def copied(self, value: Value) -> relax.Expr:
        """A fresh tensor of the same elements."""
        return self.emit(lambda x: te.compute(x.shape, lambda *i: x(*i), name="copy"), value.expr)

    def fresh(self, node: Node) -> relax.Expr:
        """The value of a node in the model's own layout, in a tensor of this region that nothing else asks for."""
        value = self.plain(node)
        source: Any = value.expr
        while isinstance(made := self.builder.lookup_binding(source), ir.Call) and made.op == _RESHAPE:
            source = made.args[0]
        if source in self._unplaced:
            self._unplaced.remove(source)
            return value.expr
        return self.copied(value)

    def _table(self, where: Slots) -> relax.Var:
        return self.param(where.astype("int32"), ("table", where.tobytes()))

    def spread(self, node: Node, slots: Slots, shape: tuple[int, ...], hole: float) -> relax.Var | None:
        """A constant that broadcasts to `shape` and varies along channels at most, in blocked form [1, CB, 1, 1, L]."""
        padded = node.value.reshape((1,) * (4 - node.value.ndim) + node.value.shape) if node.value.ndim <= 4 else None
        if padded is None or padded.shape[0] != 1 or padded.shape[2:] != (1, 1):
            return None
        channel = np.broadcast_to(padded.reshape(-1), (shape[1],))
        packed = np.where(slots >= 0, channel[np.maximum(slots, 0)], hole).astype(node.value.dtype)
        return self.param(packed.reshape(1, -1, 1, 1, self.lanes), ("spread", node, slots.tobytes(), hole))
