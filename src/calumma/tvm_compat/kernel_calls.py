"""The kernel calls of a lowered module: what `main`, a sequence of bindings, hands to which PrimFunc.

They are rewritten here and not by a `relax.PyExprMutator`: one of those refers to itself through TVM, so that neither
it nor anything its methods know of is ever freed, and a model's weights are a lot to keep.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, relax

OPERATOR = "relax.call_tir"


def of(main: relax.Function) -> list[ir.Call]:
    """The calls in order."""
    return [binding.value for block in main.body.blocks for binding in block.bindings if is_call(binding)]


def rewritten(main: relax.Function, change: Callable[[ir.Call], ir.Call]) -> relax.SeqExpr:
    """The body of `main` with `change(call)` for every call; the results keep their types."""
    builder = relax.BlockBuilder()

    def binding(old: relax.Binding) -> relax.Binding:
        return relax.VarBinding(old.var, builder.normalize(change(old.value))) if is_call(old) else old

    blocks = [type(block)([binding(old) for old in block.bindings]) for block in main.body.blocks]
    return relax.SeqExpr(blocks, main.body.body)


def arguments(call: ir.Call) -> tuple[relax.Expr, ...]:
    """What a call hands to its kernel, outputs not included."""
    return tuple(call.args[1].fields)


def with_arguments(call: ir.Call, values: list[relax.Expr]) -> ir.Call:
    """The same kernel, called with other arguments."""
    return ir.Call(call.op, [call.args[0], relax.Tuple(values), *call.args[2:]], call.attrs, call.ty_args)


def with_kernel(call: ir.Call, kernel: ir.GlobalVar) -> ir.Call:
    """The same arguments, handed to another kernel."""
    return ir.Call(call.op, [kernel, *call.args[1:]], call.attrs, call.ty_args)


def is_call(binding: relax.Binding) -> bool:
    """Whether a binding calls a kernel."""
    return getattr(getattr(binding.value, "op", None), "name", "") == OPERATOR
