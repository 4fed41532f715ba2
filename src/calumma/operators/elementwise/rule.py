"""How elementwise operators are lowered: in the layout that their operands have, where nothing poisons its holes."""

from __future__ import annotations

from tvm import relax, te

from calumma.expressions import elementwise as expression
from calumma.graph.context import Declined, LoweringContext
from calumma.graph.layouts import Slots, Value
from calumma.graph.nodes import CONSTANT, Node


def lower_unary(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of operators of one tensor."""
    function = expression.unary(node.op, node.attrs, node.args[1:])
    source = lo.value(node.args[0])
    if function is None:
        return Declined("its function depends on attributes that are not known here")
    if not lo.computes(node) or source.shape != node.shape:
        return Declined(f"it computes {node.dtype}{list(node.shape)} of {list(source.shape)}")
    return _mapped(lo, node, source, function)


def lower_binary(lo: LoweringContext, node: Node) -> Value | Declined:
    """The rule of operators of two tensors."""
    function = expression.BINARY[node.op]
    left, right = node.args
    if not all(lo.computes(n) for n in (node, left, right)):
        return Declined(f"it computes {node.dtype} of {left.dtype} and {right.dtype}")
    name = node.op.split(".")[-1]
    for source, other, swapped in ((left, right, False), (right, left, True)):
        if other.op == CONSTANT and other.value.size == 1 and source.op != CONSTANT and source.shape == node.shape:
            scalar = float(other.value.reshape(()))
            return _mapped(lo, node, lo.value(source), expression.with_scalar(node.op, scalar, swapped))
    operands = _blocked_operands(lo, node)
    if operands is not None:
        left_expr, right_expr, slots = operands
        return Value(lo.emit(function, left_expr, right_expr, name=name), node.shape, slots)
    expr = lo.emit(function, lo.plain(left).expr, lo.plain(right).expr, name=name)
    return Value(expr, node.shape)


def lower_map(lo: LoweringContext, node: Node) -> Value:
    """The rule of `calumma.map`."""
    return _mapped(lo, node, lo.value(node.args[0]), node.attrs.function, node.attrs.name, not node.attrs.finite)


def _mapped(
    lo: LoweringContext,
    node: Node,
    source: Value,
    function: expression.Scalar,
    name: str = "",
    unsafe: bool | None = None,
) -> Value:
    """Apply `function`, which is what `node` does to one element, in the layout that `source` has."""
    by_constant = node.op == "divide" and node.args[1].op == CONSTANT
    if unsafe is None:
        unsafe = node.op in expression.UNSAFE_ON_HOLES and not by_constant
    if unsafe and source.slots is not None and (source.slots < 0).any():
        source = lo.to_plain(source)
    name = name or node.op.split(".")[-1]
    expr = lo.emit(lambda x: te.compute(x.shape, lambda *i: function(x(*i)), name=name), source.expr, name=name)
    return Value(expr, node.shape, source.slots)


def _blocked_operands(lo: LoweringContext, node: Node) -> tuple[relax.Expr, relax.Expr, Slots] | None:
    """Both operands of a binary operator in one blocked layout, or None where the result should be plain."""
    slots: Slots | None = None
    for side in node.args:
        value = None if side.op == CONSTANT else lo.value(side)
        if value is not None and value.slots is not None and side.shape == node.shape:
            slots = value.slots
            break
    poisoned = node.op in expression.UNSAFE_ON_HOLES and node.args[1].op != CONSTANT
    if slots is None or (poisoned and (slots < 0).any()):
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
