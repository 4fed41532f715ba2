"""From a simplified graph to a Relax module of fused PrimFuncs in blocked layout, with weights packed as parameters.

Every value is either *plain* (the model's own layout) or *blocked*: [N, C/L, H, W, L], where a slot map tells which
logical channel each physical channel slot holds (-1: a hole). Convolutions want blocked values, pooling and
elementwise operators take what they get, concatenation joins slot maps, a channel shuffle only permutes the map, and
everything else gets plain values. A transform is a kernel of its own; how many are left is counted.

With precision "bf16", convolutions and products with constant weights read bfloat16 and add up float32. What they read
is *stored* as bfloat16 by the kernel that makes it, for all its readers; an operator that does not contract computes in
float32 all the same, and widens what it reads. Every operator sees a stored value through `value` (float32) or, if it
takes both or only moves elements, through `stored`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import ir, relax, te, tirx, topi

from calumma.core.errors import InputError, ModelError
from calumma.core.values import TensorSpec
from calumma.frontend.graph import CONSTANT, INPUT, TUPLE_ITEM, Graph, Node
from calumma.frontend.importer import reason
from calumma.frontend.operators import (
    bfloat16,
    conv,
    elementwise,
    layout,
    local_response_norm,
    matmul,
    pool,
    rows,
)
from calumma.frontend.simplify import CHANNEL_SHUFFLE, INTERLEAVE, LRN, MATMUL
from calumma.target import Target
from calumma.tvm_compat import kernel_calls

OUT_ELEMENTWISE_FUSABLE = 4
"""TVM's fusion kind of a convolution: elementwise readers fuse behind it, nothing fuses before it."""
_INJECTIVE = 2
_JOINERS = frozenset({"concat", CHANNEL_SHUFFLE})
"""Operators whose result has its channels wherever those that they read have them."""
_MOVERS = frozenset({"reshape", "concat", "permute_dims", "nn.max_pool2d", CHANNEL_SHUFFLE})
"""Operators whose results are elements of what they read: as narrow as that."""
_KEPT = ("relax.reshape", "relax.concat")
"""Relax operators left in `main`: they cost nothing."""

Slots = NDArray[np.int64]


@dataclass(frozen=True)
class LoweredGraph:
    """A Relax module whose `main(inputs..., params...)` calls fused PrimFuncs, and the packed parameters."""

    mod: tvm.IRModule
    params: tuple[np.ndarray, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layout_transforms: int
    """Kernels that do nothing but change the layout of an activation."""


@dataclass(frozen=True)
class Value:
    """A tensor in the module under construction."""

    expr: relax.Expr
    shape: tuple[int, ...]
    """Logical shape, as in the model."""
    slots: Slots | None = None
    """Slot map of a blocked tensor; None for a plain one."""

    @property
    def slot_map(self) -> Slots:
        """The slot map of a tensor known to be blocked."""
        assert self.slots is not None, "a plain tensor has no slot map"
        return self.slots

    @property
    def is_narrow(self) -> bool:
        """Whether the elements are stored as bfloat16."""
        return str(self.expr.ty.dtype) == bfloat16.DTYPE


def lower(graph: Graph, target: Target, precision: str = "fp32") -> LoweredGraph:
    """Lower a simplified graph for a CPU: its lanes are the channels of a block.

    Args:
        target: the CPU that the module is compiled for.
        precision: what contractions read, "fp32" or "bf16"; they add up float32.

    Raises:
        ModelError: an operator that neither we nor TVM can lower.
    """
    return _Lowering(graph, target, precision).run()


class _Lowering:
    def __init__(self, graph: Graph, target: Target, precision: str) -> None:
        self.graph = graph
        self.target = target
        self.lanes = target.lanes
        self._contractions = _contractions(graph, self.lanes) if precision == "bf16" else frozenset()
        self.users = graph.users()
        self._orders = _orders(graph, self.users, self.lanes)
        self._narrow = _sources(self._contractions) | _joined(graph, self._contractions)
        self.builder = relax.BlockBuilder()
        self.values: dict[Node, Any] = {}
        self.params: list[np.ndarray] = []
        self.param_vars: list[relax.Var] = []
        self.transforms = 0
        self._packed: dict[tuple, relax.Var] = {}
        self._plain: dict[tuple[relax.Expr, bytes], Value] = {}
        self._blocked: dict[tuple[relax.Expr, bytes, bytes], Value] = {}
        self._casts: dict[relax.Expr, relax.Expr] = {}
        self._unplaced: set[relax.Expr] = set()

    # -- the walk ---------------------------------------------------------------------------------

    def run(self) -> LoweredGraph:
        inputs = []
        for node in self.graph.inputs:
            var = relax.Var(_identifier(node.name), relax.TensorType(node.shape, node.dtype))
            self.values[node] = Value(var, node.shape)
            inputs.append(var)
        try:
            with self.builder.function("main"):
                with self.builder.dataflow():
                    for node in self.graph.nodes():
                        if node.op not in (INPUT, CONSTANT) and node not in self.values:
                            self.values[node] = self._as_stored(node, self._in_order(node, self._lower_node(node)))
                    results = [self.builder.emit_output(self._returned(node)) for node in self.graph.outputs]
                output = results[0] if len(results) == 1 else relax.Tuple(results)
                self.builder.emit_func_output(output, params=[*inputs, *self.param_vars])
        except ModelError:
            self.builder._end_block()  # or TVM warns of the open block when the builder goes
            raise
        mod = self.builder.finalize()
        return LoweredGraph(  # the order counts: legalisation may add parameters
            mod=_fuse(self._legalized(mod), len(inputs)),
            params=tuple(self.params),
            inputs=tuple(TensorSpec(n.name, n.shape, n.dtype) for n in self.graph.inputs),
            outputs=tuple(
                TensorSpec(name, n.shape, n.dtype)
                for name, n in zip(self.graph.output_names, self.graph.outputs, strict=True)
            ),
            layout_transforms=self.transforms,
        )

    def _legalized(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Let TVM lower the operators left to it; a constant among their arguments becomes a parameter."""
        with tvm.transform.PassContext(opt_level=3):
            try:
                mod = _legalize(mod)
            except Exception as error:  # TVM raises whatever its rules throw
                raise self._refused(mod) or error from error
        self._check_legalized(mod)

        def hoisted(call: ir.Call) -> ir.Call:
            values = [
                self.param(value.value.numpy(), ("hoisted", value)) if isinstance(value, ir.GenericConst) else value
                for value in kernel_calls.arguments(call)
            ]
            return kernel_calls.with_arguments(call, values)

        before = len(self.param_vars)
        main = mod["main"]
        body = kernel_calls.rewritten(main, hoisted)
        if len(self.param_vars) > before:
            params = [*main.params, *self.param_vars[before:]]
            mod["main"] = relax.Function(params, body, main.ret_ty, main.is_pure, main.attrs)
        return mod

    def _refused(self, mod: tvm.IRModule) -> ModelError | None:
        """The error that names the operator which TVM cannot lower: the first that fails alone."""
        for binding in (binding for block in mod["main"].body.blocks for binding in block.bindings):
            operator = getattr(getattr(binding.value, "op", None), "name", "")
            if not operator or operator == kernel_calls.OPERATOR or operator in _KEPT:
                continue
            builder = relax.BlockBuilder()
            with builder.function("main", relax.analysis.free_vars(binding.value)):
                builder.emit_func_output(builder.emit(binding.value))
            try:
                _legalize(builder.finalize())
            except Exception as error:  # noqa: BLE001 - this is what is looked for
                operator = operator.removeprefix("relax.")
                node = next((n for n in self.graph.nodes() if n.op == operator), None)
                return ModelError(
                    f"node {node.name if node else binding.var.name_hint}: operator {operator} cannot be compiled "
                    f"({reason(error)}); export it in another form, or cut the model off before this node"
                )
        return None

    def _check_legalized(self, mod: tvm.IRModule) -> None:
        """Raise ModelError for an operator that TVM knows but cannot lower."""
        bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
        for binding in bindings:
            op = getattr(getattr(binding.value, "op", None), "name", kernel_calls.OPERATOR)
            if op not in (kernel_calls.OPERATOR, *_KEPT):
                operator = op.removeprefix("relax.")
                node = next((n for n in self.graph.nodes() if n.op == operator), None)
                raise ModelError(
                    f"node {node.name if node else binding.var.name_hint}: operator {operator} is not supported; "
                    "export the model without it, or cut the model off before this node"
                )

    def _returned(self, node: Node) -> relax.Expr:
        """A graph output must be a fresh plain tensor: not an input, not a parameter."""
        value = self.plain(node)
        source = node
        while source.op == "reshape":  # an alias of its argument
            source = source.args[0]
        if source.op in (INPUT, CONSTANT):
            return self.emit(lambda x: te.compute(x.shape, lambda *i: x(*i), name="copy"), value.expr)
        return value.expr

    def _lower_node(self, node: Node) -> Any:
        rule = _RULES.get(node.op)
        try:
            if rule is not None:
                value = rule(self, node)
                if value is not None:
                    return value
            return self.relax_call(node)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"node {node.name}: operator {node.op} cannot be compiled ({reason(error)}); "
                "export it in another form, or cut the model off before this node"
            ) from error

    def relax_call(self, node: Node) -> Any:
        """Hand an operator without a rule to Relax on plain tensors; TVM's legalisation lowers it later."""
        if node.call is None:
            raise ModelError(f"node {node.name}: operator {node.op} has no lowering")

        def argument(arg: Any) -> Any:
            if isinstance(arg, tuple):
                return relax.Tuple([argument(x) for x in arg])
            if isinstance(arg, Node):
                if arg.op == CONSTANT and arg.value.ndim == 0:
                    return relax.const(arg.value, arg.dtype)
                return self.plain(arg).expr
            return arg

        call = ir.Call(node.call.op, [argument(a) for a in node.args], node.call.attrs, node.call.ty_args)
        return Value(self.builder.emit(call), node.shape)

    # -- values and layouts -----------------------------------------------------------------------

    def emit(
        self, function: Callable, *args: relax.Expr, kind: int | None = None, name: str | None = None
    ) -> relax.Var:
        """Emit a tensor expression as a PrimFunc call; `kind` fixes its fusion kind."""
        attrs = {} if kind is None else {"primfunc_attrs": {"op_pattern": kind}}
        result = self.builder.emit_te(function, *args, **attrs, primfunc_name_hint=name or "kernel")
        self._unplaced.add(result)
        return result

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

    def value(self, node: Node) -> Value:
        """The value of a node in whatever layout it has, never bfloat16; a constant becomes a plain parameter."""
        value = self.stored(node)
        if not value.is_narrow:
            return value
        # A cast for every reader: it is fused into that, where a common one would be a kernel.
        return Value(self.emit(bfloat16.widen, value.expr, name="widen"), value.shape, value.slots)

    def stored(self, node: Node) -> Value:
        """The value of a node as it is stored, which may be as bfloat16."""
        if node.op == CONSTANT:
            return Value(self.param(node.value, ("plain", node)), node.shape)
        return self.values[node]

    def narrowed(self, node: Node) -> Value:
        """The value of a node as bfloat16."""
        value = self.stored(node)
        return value if value.is_narrow else self._cast(value)

    def narrows(self, node: Node) -> bool:
        """Whether a contraction reads bfloat16."""
        return node in self._contractions

    def stores_narrow(self, node: Node) -> bool:
        """Whether a node's result is stored as bfloat16."""
        return node in self._narrow

    def moved(self, value: Value, source: Value) -> Value:
        """What holds elements of `source` alone, stored like that."""
        return self._cast(value) if source.is_narrow and not value.is_narrow else value

    def _in_order(self, node: Node, value: Any) -> Any:
        return self.to_blocked(value, self._orders[node]) if node in self._orders else value

    def _as_stored(self, node: Node, value: Any) -> Any:
        return self._cast(value) if self.stores_narrow(node) and not value.is_narrow else value

    def _cast(self, value: Value) -> Value:
        if value.expr not in self._casts:
            self._casts[value.expr] = self.emit(bfloat16.narrow, value.expr, name="narrow")
        return Value(self._casts[value.expr], value.shape, value.slots)

    def plain(self, node: Node) -> Value:
        return self.to_plain(self.value(node))

    def to_plain(self, value: Value) -> Value:
        if value.slots is None:
            return value
        key = value.expr, value.slots.tobytes()  # a shuffle of channels is the same tensor in another order
        if key not in self._plain:
            channels = value.shape[1]
            place = _places(value.slots, channels)
            if np.array_equal(place, np.arange(channels)):
                expr = self.emit(
                    lambda x: layout.unblock_channels(x, channels), value.expr, kind=_INJECTIVE, name="unblock"
                )
            else:
                expr = self.emit(
                    layout.gather_channels, value.expr, self._table(place), kind=_INJECTIVE, name="unblock"
                )
            self.transforms += 1
            self._plain[key] = Value(expr, value.shape)
        return self._plain[key]

    def identity_slots(self, channels: int) -> Slots:
        slots = np.full(-(-channels // self.lanes) * self.lanes, -1, np.int64)
        slots[:channels] = np.arange(channels)
        return slots

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
            expr = self.emit(lambda x: layout.block_channels(x, lanes), value.expr, kind=_INJECTIVE, name="block")
        else:
            table = slots
            if value.slots is not None:
                table = np.where(slots >= 0, _places(value.slots, channels)[np.maximum(slots, 0)], -1)
            expr = self.emit(
                lambda x, where: layout.gather_slots(x, where, lanes),
                value.expr,
                self._table(table),
                kind=_INJECTIVE,
                name="block",
            )
        self.transforms += 1
        self._blocked[key] = Value(expr, value.shape, slots)
        return self._blocked[key]

    def _table(self, places: Slots) -> relax.Var:
        return self.param(places.astype("int32"), ("table", places.tobytes()))

    def spread(self, node: Node, slots: Slots, shape: tuple[int, ...], hole: float) -> relax.Var | None:
        """A constant that broadcasts to `shape` and varies along channels at most, in blocked form [1, CB, 1, 1, L]."""
        padded = node.value.reshape((1,) * (4 - node.value.ndim) + node.value.shape) if node.value.ndim <= 4 else None
        if padded is None or padded.shape[0] != 1 or padded.shape[2:] != (1, 1):
            return None
        channel = np.broadcast_to(padded.reshape(-1), (shape[1],))
        packed = np.where(slots >= 0, channel[np.maximum(slots, 0)], hole).astype(node.value.dtype)
        return self.param(packed.reshape(1, -1, 1, 1, self.lanes), ("spread", node, slots.tobytes(), hole))


# -- bfloat16 ------------------------------------------------------------------------------------------


def _contractions(graph: Graph, lanes: int) -> frozenset[Node]:
    """Operators that have a form for bfloat16: convolutions in one group, products with constant weights."""
    return frozenset(node for node in graph.nodes() if node.dtype == "float32" and _contracts(node, lanes))


def _contracts(node: Node, lanes: int) -> bool:
    if node.op == "nn.conv2d":
        data, weight = node.args[:2]
        blocked = node.attrs.data_layout == "NCHW" and node.attrs.kernel_layout == "OIHW"
        return blocked and weight.op == CONSTANT and int(node.attrs.groups) == 1 and data.shape[1] >= lanes
    if node.op in ("matmul", MATMUL):
        data, weight = node.args[:2]
        return len(data.shape) >= 2 and weight.op == CONSTANT and weight.value.ndim == 2 and data.shape[-1] % 2 == 0
    return False


def _sources(contractions: frozenset[Node]) -> frozenset[Node]:
    """The operators whose results contractions read, possibly moved: they store bfloat16."""
    found: set[Node] = set()
    pending = [node.args[0] for node in contractions]
    while pending:
        node = pending.pop()
        if node in found or node.op in (INPUT, CONSTANT, TUPLE_ITEM):
            continue
        found.add(node)
        if node.op in _MOVERS:
            pending += node.inputs
    return frozenset(found)


def _joined(graph: Graph, contractions: frozenset[Node]) -> frozenset[Node]:
    """Where an operator joins two contractions element by element, what the first of them gives.

    Only one can be computed in the operator's kernel: the other's result is stored, and read there.
    """

    def origin(node: Node) -> Node | None:
        node = _origin(node)
        return node if node in contractions else None

    found = set()
    for node in graph.nodes():
        if node.op in elementwise.BINARY and all(source.shape == node.shape for source in node.args):
            left, right = map(origin, node.args)
            if left is not None and right is not None and left is not right:
                found.add(node.args[0])
    return frozenset(found)


# -- order of channels ---------------------------------------------------------------------------------


def _orders(graph: Graph, users: dict[Node, list[Node]], lanes: int) -> dict[Node, Slots]:
    """The slots in which to store what is added to the result of a gathered convolution: that convolution's.

    Only for values that are brought into order anyway, or whose channels lie as their parts' did: one kernel then
    applies activations and reorders for all readers. The chain of residual sums behind keeps the order.
    """
    found: dict[Node, Slots] = {}
    for node in graph.nodes():
        slots = _grouped_slots(node, lanes, in_order=True) if node.op == "nn.conv2d" else None
        if slots is None:
            continue
        while len(users[node]) == 1:
            (reader,) = users[node]
            others = [source for source in reader.inputs if source is not node]
            if reader.op in elementwise.BINARY and len(others) == 1 and others[0].op != CONSTANT:
                if others[0].shape == node.shape and _origin(others[0]).op in _JOINERS:
                    found.setdefault(others[0], slots)
                break
            if reader is node or not _is_map(reader):
                break
            node = reader
    return found


def _is_map(node: Node) -> bool:
    """Whether a node applies an elementwise operator to one value, with constants at most beside it."""
    variables = [source for source in node.inputs if source.op != CONSTANT]
    return node.op in (*elementwise.UNARY, *elementwise.BINARY) and len(variables) == 1


def _origin(node: Node) -> Node:
    """The value that elementwise operators with constants are applied to."""
    while _is_map(node):
        (node,) = (source for source in node.inputs if source.op != CONSTANT)
    return node


# -- rules: (lowering, node) -> Value, or None to leave the node to Relax ------------------------------


def _places(slots: Slots, channels: int) -> Slots:
    """The slot that holds each of `channels` channels."""
    places = np.full(channels, -1, np.int64)
    held = slots >= 0
    places[slots[held]] = np.nonzero(held)[0]
    return places


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _pair(values: Any) -> tuple[int, int]:
    height, width = _ints(values)
    return height, width


def _sides(padding: Any) -> tuple[int, int, int, int]:
    """Padding as top, left, bottom, right; Relax also has the first two alone for the same on both sides."""
    top, left, *rest = _ints(padding)
    bottom, right = rest or (top, left)
    return top, left, bottom, right


def _conv2d(lo: _Lowering, node: Node) -> Value | None:
    data, weight = node.args[:2]
    attrs = node.attrs
    if weight.op != CONSTANT or (attrs.data_layout, attrs.kernel_layout) != ("NCHW", "OIHW") or node.dtype != "float32":
        return None
    window = conv.Window(_pair(weight.shape[2:]), _pair(attrs.strides), _pair(attrs.dilation), _sides(attrs.padding))
    groups, lanes = int(attrs.groups), lo.lanes
    narrow = lo.narrows(node)
    source = lo.narrowed(data) if narrow else lo.value(data)
    channels, out_channels = data.shape[1], node.shape[1]
    if groups == channels == out_channels and groups > 1:
        source = lo.to_blocked(source)
        packed = lo.param(
            conv.pack_depthwise_weight(weight.value, source.slot_map, lanes),
            ("depthwise", weight, source.slot_map.tobytes()),
        )
        expr = lo.emit(
            lambda x, w: conv.depthwise_conv2d(x, w, window),
            source.expr,
            packed,
            kind=OUT_ELEMENTWISE_FUSABLE,
            name="depthwise_conv2d",
        )
        return Value(expr, node.shape, source.slots)
    out_slots = lo.identity_slots(out_channels)
    if source.slots is None and groups == 1 and channels < lanes:
        packed = lo.param(conv.pack_plain_conv_weight(weight.value, lanes), ("first", weight))
        expr = lo.emit(
            lambda x, w: conv.conv2d_plain(x, w, window),
            source.expr,
            packed,
            kind=OUT_ELEMENTWISE_FUSABLE,
            name="conv2d",
        )
        return Value(expr, node.shape, out_slots)
    gathered = _gathered_conv2d(lo, node, source, window)
    if gathered is not None:
        return gathered
    source = lo.to_blocked(source, lo.identity_slots(channels) if groups > 1 else None)
    band = conv.band_of(out_channels, channels, groups, len(source.slot_map) // lanes, lanes)
    packed_weight = conv.pack_conv_weight(weight.value, source.slot_map, groups, band, lanes)
    packed = lo.param(
        bfloat16.in_pairs(packed_weight) if narrow else packed_weight,
        ("conv", weight, source.slot_map.tobytes(), narrow),
    )
    expr = lo.emit(
        lambda x, w: conv.conv2d(x, w, window, band), source.expr, packed, kind=OUT_ELEMENTWISE_FUSABLE, name="conv2d"
    )
    return Value(expr, node.shape, out_slots)


def _gathered_conv2d(lo: _Lowering, node: Node, source: Value, window: conv.Window) -> Value | None:
    """A 1x1 convolution that reads its channels wherever they are, or None where it better reads whole blocks."""
    data, weight = node.args[:2]
    source = lo.to_blocked(source)
    groups = int(node.attrs.groups)
    if groups == 1:
        out_slots = lo.identity_slots(node.shape[1]) if _reads_part(lo, node, source.slot_map) else None
    else:
        in_order = np.array_equal(source.slot_map, lo.identity_slots(data.shape[1]))
        out_slots = _grouped_slots(node, lo.lanes, in_order=in_order)
    if out_slots is None:
        return None
    gathering = conv.gathering_of(out_slots, source.slot_map, node.shape[1], data.shape[1], groups, lo.lanes)
    expr = lo.emit(
        lambda x, w, where: conv.conv2d_gathered(x, w, where, window),
        source.expr,
        lo.param(
            conv.pack_gathered_weight(weight.value, out_slots, gathering, groups, lo.lanes),
            ("gathered", weight, out_slots.tobytes()),
        ),
        lo.param(gathering.table, ("table", gathering.table.tobytes(), gathering.table.shape)),
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="conv2d",
    )
    return Value(expr, node.shape, out_slots)


def _grouped_slots(node: Node, lanes: int, *, in_order: bool) -> Slots | None:
    """The output slots of a grouped convolution that gathers its input; None for any other."""
    groups = int(node.attrs.groups)
    if groups == 1 or not _may_gather(node):
        return None
    return conv.grouped_slots(node.shape[1], node.args[0].shape[1], groups, lanes, in_order=in_order)


def _may_gather(node: Node) -> bool:
    """Whether a convolution's window and padding let it read single slots."""
    attrs, weight = node.attrs, node.args[1]
    blocked = weight.op == CONSTANT and (attrs.data_layout, attrs.kernel_layout) == ("NCHW", "OIHW")
    return blocked and node.dtype == "float32" and weight.shape[2:] == (1, 1) and not any(_ints(attrs.padding))


def _reads_part(lo: _Lowering, node: Node, slots: Slots) -> bool:
    """Whether a convolution in one group had better leave out the holes of its input: a part of the channels."""
    channels = node.args[0].shape[1]
    few = len(slots) - channels >= lo.lanes and channels <= 0.875 * len(slots)
    return few and int(node.attrs.groups) == 1 and not lo.narrows(node) and _may_gather(node)


def _part(lo: _Lowering, node: Node, source: Value, start: int) -> Value:
    """Some channels of a blocked value: itself with more holes where that is all its readers want, else a copy."""
    within = source.slot_map - start
    slots = np.where((source.slot_map >= start) & (within < node.shape[1]), within, -1)
    part = Value(source.expr, node.shape, slots)
    if all(reader.op == "nn.conv2d" and _reads_part(lo, reader, slots) for reader in lo.users[node]):
        return part
    held = slots[slots >= 0]
    return lo.to_blocked(part, np.concatenate([held, np.full(-len(held) % lo.lanes, -1, np.int64)]))


@dataclass(frozen=True)
class _Split:
    """A blocked value and the channels at which its parts begin."""

    source: Value
    starts: tuple[int, ...]


def _split(lo: _Lowering, node: Node) -> _Split | None:
    data, attrs = node.args[0], node.attrs
    if len(data.shape) != 4 or int(attrs.axis) % 4 != 1 or data.dtype != "float32" or data.op == CONSTANT:
        return None
    source = lo.stored(data)
    if source.slots is None:
        return None
    where = attrs.indices_or_sections
    if isinstance(where, (int, tirx.IntImm)):
        size = -(-data.shape[1] // int(where))
        return _Split(source, tuple(range(0, data.shape[1], size)))
    starts = (0, *_ints(where))
    has_empty = any(start >= end for start, end in zip(starts, (*starts[1:], data.shape[1]), strict=True))
    return None if has_empty else _Split(source, starts)


def _slice(lo: _Lowering, node: Node) -> Value | None:
    data, *bounds = node.args
    if len(data.shape) != 4 or data.dtype != "float32" or data.op == CONSTANT:
        return None
    axes, begin, _, *strides = ([int(item.value) for item in bound] for bound in bounds)
    source = lo.stored(data)
    if source.slots is None or axes != [1] or strides not in ([], [[1]]) or node.shape[1] == 0:
        return None
    start = begin[0] + data.shape[1] if begin[0] < 0 else begin[0]
    return _part(lo, node, source, max(start, 0))


def _pool2d(lo: _Lowering, node: Node) -> Value | None:
    attrs = node.attrs
    if attrs.layout != "NCHW" or node.dtype != "float32":
        return None
    source = lo.stored(node.args[0])
    top, left, bottom, right = _sides(attrs.padding)
    kernel, strides, dilation = _pair(attrs.pool_size), _pair(attrs.strides), _pair(attrs.dilation)
    height = pool.Window(kernel[0], strides[0], before=top, after=bottom, dilation=dilation[0])
    width = pool.Window(kernel[1], strides[1], before=left, after=right, dilation=dilation[1])
    ceil_mode = bool(attrs.ceil_mode)
    if node.op == "nn.max_pool2d":
        function = lambda x: pool.max_pool2d(x, height, width, ceil_mode)  # noqa: E731
    else:
        function = lambda x: pool.avg_pool2d(x, height, width, ceil_mode, bool(attrs.count_include_pad))  # noqa: E731
    expr = lo.emit(function, source.expr, kind=OUT_ELEMENTWISE_FUSABLE, name="pool2d")
    return lo.moved(Value(expr, node.shape, source.slots), source)


def _global_mean(lo: _Lowering, node: Node) -> Value | None:
    source_node = node.args[0]
    if node.dtype != "float32":
        return None
    rank = len(source_node.shape)
    if node.op == "mean":
        axes = None if node.attrs.axis is None else sorted(a % rank for a in _ints(node.attrs.axis))
        if rank != 4 or axes != [2, 3]:
            return None
    elif _ints(node.attrs.output_size) != (1, 1):
        return None
    source = lo.stored(source_node)
    pooled_shape = (*source_node.shape[:2], 1, 1)
    expr = lo.emit(pool.global_avg_pool2d, source.expr, kind=OUT_ELEMENTWISE_FUSABLE, name="global_avg_pool2d")
    value = Value(expr, pooled_shape, source.slots)
    return value if node.shape == pooled_shape else _reshaped(lo, value, node.shape)


def _reshaped(lo: _Lowering, value: Value, shape: tuple[int, ...]) -> Value:
    """Give `value` another shape of the same elements, with no copy of a plain or a blocked [N, C, 1, 1] value."""
    if value.slots is not None:
        _, c, h, w = value.shape
        without_holes = len(value.slots) == c and np.array_equal(value.slots, np.arange(c))
        if not (h == w == 1 and without_holes):
            value = lo.to_plain(value)
    return Value(lo.builder.emit(relax.op.reshape(value.expr, shape)), shape)


def _reshape(lo: _Lowering, node: Node) -> Value:
    return _reshaped(lo, lo.stored(node.args[0]), node.shape)


def _concat(lo: _Lowering, node: Node) -> Value | None:
    parts = list(node.args[0])
    axis = int(node.attrs.axis or 0) % max(len(node.shape), 1)
    narrow = lo.stores_narrow(node) or all(lo.stored(part).is_narrow for part in parts)
    sources = [lo.narrowed(part) if narrow else lo.value(part) for part in parts]
    slots = None
    if axis == 1 and len(node.shape) == 4 and any(s.slots is not None for s in sources):
        sources = [lo.to_blocked(s) for s in sources]
        offsets = np.cumsum([0, *(part.shape[1] for part in parts[:-1])])
        maps = [source.slot_map for source in sources]
        slots = np.concatenate([np.where(m >= 0, m + offset, -1) for m, offset in zip(maps, offsets, strict=True)])
    else:
        sources = [lo.to_plain(s) for s in sources]
    exprs = [s.expr for s in sources]
    if lo.adjacent(exprs, axis):
        return Value(lo.place_side_by_side(exprs, axis), node.shape, slots)
    return Value(
        lo.emit(lambda *x: elementwise.concat(x, axis), *exprs, kind=_INJECTIVE, name="concat"), node.shape, slots
    )


def _shuffle(lo: _Lowering, node: Node) -> Value:
    """Relabel the slots: output channel c is input channel source[c]. A plain value is blocked first."""
    value = lo.to_blocked(lo.stored(node.args[0]))
    inverse = np.argsort(node.attrs.source)
    slots = np.where(value.slot_map >= 0, inverse[np.maximum(value.slot_map, 0)], -1)
    return Value(value.expr, node.shape, slots)


def _interleave(lo: _Lowering, node: Node) -> Value:
    attrs = node.attrs
    data = node.args[0]
    value = lo.to_blocked(lo.value(data), lo.identity_slots(data.shape[1]))
    plain = attrs.phase % lo.lanes != 0
    expr = lo.emit(
        lambda x: layout.interleave(x, attrs.phase, attrs.strides, attrs.starts, node.shape, plain=plain),
        value.expr,
        kind=_INJECTIVE,
        name="interleave",
    )
    return Value(expr, node.shape, None if plain else lo.identity_slots(node.shape[1]))


def _lrn(lo: _Lowering, node: Node) -> Value:
    value = lo.value(node.args[0])
    if value.slots is not None and not np.array_equal(value.slots, np.arange(node.shape[1])):
        value = lo.to_plain(value)  # the window runs over neighbouring channels: no holes, no other order
    a = node.attrs
    expr = lo.emit(
        lambda x: local_response_norm.local_response_norm(x, size=a.size, alpha=a.alpha, beta=a.beta, bias=a.bias),
        value.expr,
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="lrn",
    )
    return Value(expr, node.shape, value.slots)


def _unary(lo: _Lowering, node: Node) -> Value | None:
    function = elementwise.unary(node.op, node.attrs, node.args[1:])
    source = lo.value(node.args[0])
    if function is None or node.dtype != "float32" or source.shape != node.shape:
        return None
    return _mapped(lo, node, source, function)


def _mapped(lo: _Lowering, node: Node, source: Value, function: elementwise.Scalar) -> Value:
    """Apply `function`, which is what `node` does to one element, in the layout that `source` has."""
    by_constant = node.op == "divide" and node.args[1].op == CONSTANT
    unsafe = node.op in elementwise.UNSAFE_ON_HOLES and not by_constant
    if unsafe and source.slots is not None and (source.slots < 0).any():
        source = lo.to_plain(source)
    name = node.op.split(".")[-1]
    expr = lo.emit(lambda x: te.compute(x.shape, lambda *i: function(x(*i)), name=name), source.expr, name=name)
    return Value(expr, node.shape, source.slots)


def _binary(lo: _Lowering, node: Node) -> Value | None:
    function = elementwise.BINARY[node.op]
    left, right = node.args
    if node.dtype != "float32" or any(n.dtype != "float32" for n in (left, right)):
        return None
    name = node.op.split(".")[-1]
    for source, other, swapped in ((left, right, False), (right, left, True)):
        if other.op == CONSTANT and other.value.size == 1 and source.op != CONSTANT and source.shape == node.shape:
            scalar = float(other.value.reshape(()))
            return _mapped(lo, node, lo.value(source), elementwise.with_scalar(node.op, scalar, swapped))
    operands = _blocked_operands(lo, node)
    if operands is not None:
        left_expr, right_expr, slots = operands
        return Value(lo.emit(function, left_expr, right_expr, name=name), node.shape, slots)
    expr = lo.emit(function, lo.plain(left).expr, lo.plain(right).expr, name=name)
    return Value(expr, node.shape)


def _blocked_operands(lo: _Lowering, node: Node) -> tuple[relax.Expr, relax.Expr, Slots] | None:
    """Both operands of a binary operator in one blocked layout, or None where the result should be plain."""
    slots: Slots | None = None
    for side in node.args:
        value = None if side.op == CONSTANT else lo.value(side)
        if value is not None and value.slots is not None and side.shape == node.shape:
            slots = value.slots
            break
    if slots is None or (node.op in elementwise.UNSAFE_ON_HOLES and node.args[1].op != CONSTANT and (slots < 0).any()):
        return None
    exprs = []
    for side in node.args:
        if side.op == CONSTANT:
            expr = lo.spread(side, slots, node.shape, hole=1.0 if node.op == "divide" else 0.0)
            if expr is None:
                return None
        elif len(side.shape) == 4 and side.shape[1] == node.shape[1]:
            expr = lo.to_blocked(lo.value(side), slots).expr
        else:
            return None
        exprs.append(expr)
    return exprs[0], exprs[1], slots


def _matmul(lo: _Lowering, node: Node) -> Value | None:
    left, right = node.args[:2]
    if node.dtype != "float32" or len(left.shape) < 2:
        return None
    if right.op == CONSTANT and right.value.ndim == 2:
        narrow = lo.narrows(node)
        packed_weight = matmul.pack_dense_weight(right.value, lo.lanes)
        packed = lo.param(bfloat16.in_pairs(packed_weight) if narrow else packed_weight, ("dense", right, narrow))
        columns = right.shape[1]
        expr = lo.emit(
            lambda x, w: matmul.dense(x, w, columns),
            lo.to_plain(lo.narrowed(left) if narrow else lo.value(left)).expr,
            packed,
            kind=OUT_ELEMENTWISE_FUSABLE,
            name="dense",
        )
        return Value(expr, node.shape)
    if len(right.shape) < 2:
        return None
    axes = (
        (node.attrs.left_axes, node.attrs.right_axes, node.attrs.out_axes) if node.op == MATMUL else (None, None, None)
    )
    operands = [lo.plain(left), lo.plain(right)]
    rank = max(len(left.shape), len(right.shape))
    for i, value in enumerate(operands):
        if len(value.shape) < rank:
            operands[i] = _reshaped(lo, value, (1,) * (rank - len(value.shape)) + value.shape)
    expr = lo.emit(
        lambda x, y: matmul.batch_matmul(x, y, lo.lanes, *axes),
        *(value.expr for value in operands),
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="batch_matmul",
    )
    return Value(expr, node.shape)


def _softmax(lo: _Lowering, node: Node) -> Value | None:
    if node.dtype != "float32":
        return None
    axis = int(node.attrs.axis) % len(node.shape)
    source = lo.value(node.args[0])
    if axis == 1 and len(node.shape) == 4 and node.shape[2:] == (1, 1):
        flat = _reshaped(lo, source, node.shape[:2])
        function = rows.softmax if node.op == "nn.softmax" else rows.log_softmax
        expr = lo.emit(lambda x: function(x, 1, lo.lanes), flat.expr, kind=OUT_ELEMENTWISE_FUSABLE, name="softmax")
        return _reshaped(lo, Value(expr, node.shape[:2]), node.shape)
    if axis != len(node.shape) - 1:
        return None
    function = rows.softmax if node.op == "nn.softmax" else rows.log_softmax
    expr = lo.emit(
        lambda x: function(x, axis, lo.lanes), lo.to_plain(source).expr, kind=OUT_ELEMENTWISE_FUSABLE, name="softmax"
    )
    return Value(expr, node.shape)


def _layer_norm(lo: _Lowering, node: Node) -> Value | None:
    data, gamma, beta = node.args[:3]
    axes = [a % len(data.shape) for a in _ints(node.attrs.axes)]
    if axes != list(range(len(data.shape) - len(axes), len(data.shape))) or not (
        node.attrs.center and node.attrs.scale
    ):
        return None
    epsilon = float(node.attrs.epsilon)
    expr = lo.emit(
        lambda x, g, b: rows.layer_norm(x, g, b, len(axes), epsilon, lo.lanes),
        *(lo.plain(n).expr for n in (data, gamma, beta)),
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="layer_norm",
    )
    return Value(expr, node.shape)


def _permute(lo: _Lowering, node: Node) -> Value:
    axes = None if node.attrs.axes is None else _ints(node.attrs.axes)
    expr = lo.emit(lambda x: topi.transpose(x, axes), lo.to_plain(lo.stored(node.args[0])).expr, name="transpose")
    return Value(expr, node.shape)


def _take(lo: _Lowering, node: Node) -> Value | None:
    """Gather along one axis; an index outside is clamped, where TVM's own lowering would read foreign memory."""
    data, indices = node.args[:2]
    if node.attrs.axis is None:
        return None
    axis = int(node.attrs.axis)
    expr = lo.emit(
        lambda x, i: topi.take(x, i, axis, mode="clip"),
        lo.plain(data).expr,
        lo.plain(indices).expr,
        kind=_INJECTIVE,
        name="take",
    )
    return Value(expr, node.shape)


def _tuple_item(lo: _Lowering, node: Node) -> Value:
    source = lo.values[node.args[0]]
    if isinstance(source, _Split):
        return _part(lo, node, source.source, source.starts[node.attrs.index])
    return Value(lo.builder.emit(relax.TupleGetItem(source.expr, node.attrs.index)), node.shape)


_RULES: dict[str, Callable[[_Lowering, Node], Any]] = {
    "nn.conv2d": _conv2d,
    "nn.max_pool2d": _pool2d,
    "nn.avg_pool2d": _pool2d,
    "nn.adaptive_avg_pool2d": _global_mean,
    "mean": _global_mean,
    "reshape": _reshape,
    "concat": _concat,
    CHANNEL_SHUFFLE: _shuffle,
    INTERLEAVE: _interleave,
    LRN: _lrn,
    "matmul": _matmul,
    MATMUL: _matmul,
    "nn.softmax": _softmax,
    "nn.log_softmax": _softmax,
    "nn.layer_norm": _layer_norm,
    "permute_dims": _permute,
    "take": _take,
    "split": _split,
    "strided_slice": _slice,
    TUPLE_ITEM: _tuple_item,
    **dict.fromkeys(elementwise.UNARY, _unary),
    **dict.fromkeys(elementwise.BINARY, _binary),
}


def register_rule(operator: str, rule: Callable[[_Lowering, Node], Value | None]) -> None:
    """Lower a Relax operator ("nn.conv1d") by `rule`, in this process; for operators whose rule is not in this file.

    Raises:
        InputError: the operator has a rule already.
    """
    if operator in _RULES:
        raise InputError(f"operator {operator} has a lowering rule already: change that one")
    _RULES[operator] = rule


def _legalize(mod: tvm.IRModule) -> tvm.IRModule:
    with tvm.target.Target("llvm"):
        mod = relax.backend.DispatchSortScan()(mod)
    return relax.transform.LegalizeOps(skip_ops=list(_KEPT))(mod)


def _fuse(mod: tvm.IRModule, inputs: int) -> tvm.IRModule:
    """Fuse elementwise readers into their producers, and injective chains into one kernel each."""
    passes = [
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]
    mod["main"] = mod["main"].with_attr("num_input", inputs)
    with tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(mod)


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"input_{cleaned}"
