"""How branches and loops are lowered: the bindings of their graphs, between marks, in the one `main` of the module.

What control flow itself needs are kernels too, scalar ones and copies, so that a run stays one program of kernel calls.
They are no tasks: there is nothing to choose about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import ir, relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from calumma.graph.context import LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import CONSTANT, Graph, Node
from calumma.tvm_compat import marks

Walk = Callable[[Graph], None]
"""Lowers the nodes of a graph whose inputs have values."""

_GUESSED_TRIPS = 16
"""How often a loop is thought to run if that is not known: as much as its kernels weigh when a model is tuned."""
_MOST_TRIPS = 1 << 20
"""A larger trip count says nothing of how often a loop runs: it is there because one had to be given."""


def lower_branch(lo: LoweringContext, node: Node, walk: Walk) -> Value:
    """Lower `calumma.branch`; its value is the tuple of its results."""
    condition, captured = node.args
    attrs = node.attrs
    _mark(lo, marks.BRANCH, [lo.plain(condition).expr])
    results = _results(lo, attrs.then, captured, attrs.refusals[0], walk)
    _mark(lo, marks.OTHERWISE, results)
    results = _results(lo, attrs.otherwise, captured, attrs.refusals[1], walk)
    return Value(_mark(lo, marks.JOIN, results, results), ())


def _results(lo: LoweringContext, graph: Graph, captured: Sequence[Node], refusal: str, walk: Walk) -> list[relax.Expr]:
    """What a branch gives."""
    if refusal:
        _mark(lo, marks.REFUSE, [ir.StringImm(refusal)])
    with lo.region():
        _bind(lo, graph.inputs, captured)
        walk(graph)
        return [lo.fresh(result) for result in graph.outputs]


def _bind(lo: LoweringContext, inputs: Sequence[Node], captured: Sequence[Node]) -> None:
    """Let the inputs of a graph have the values of what it captures, in whatever layout these are."""
    lo.values.update((port, lo.stored(value)) for port, value in zip(inputs, captured, strict=True))


def lower_loop(lo: LoweringContext, node: Node, walk: Walk) -> Value:
    """Lower `calumma.loop`; its value is the tuple of its results."""
    trips, condition, carried, captured = node.args
    attrs, body = node.attrs, node.attrs.body
    limit = None if trips is None or trips.op == CONSTANT else lo.plain(trips).expr
    known = int(trips.value) if trips is not None and limit is None else None
    begins = None if condition is None else lo.plain(condition).expr
    initial = [_goes_on(lo, begins, None, limit, known), _scalar(lo, lambda: tirx.IntImm("int64", 0), name="zero")]
    initial += [lo.copied(lo.plain(value)) for value in carried]
    times = tirx.IntImm("int64", known if known is not None and known <= _MOST_TRIPS else _GUESSED_TRIPS)
    state_tuple = _mark(lo, marks.LOOP, [relax.Tuple(initial), times], initial)
    state = [lo.builder.emit(relax.TupleGetItem(state_tuple, i)) for i in range(len(initial))]
    with lo.region():
        _, iteration, *values = state
        changing = body.inputs[: 1 + len(values)]
        lo.values.update((port, Value(expr, port.shape)) for port, expr in zip(changing, state[1:], strict=True))
        _bind(lo, body.inputs[len(changing) :], captured)
        walk(body)
        goes_on, *following = body.outputs
        following, stacked = following[: attrs.carried], following[attrs.carried :]
        rows = [_write_row(lo, lo.plain(row).expr, iteration, attrs.rows) for row in stacked]
        always = goes_on.op == CONSTANT and bool(goes_on.value)
        sources = [
            _goes_on(lo, None if always else lo.plain(goes_on).expr, iteration, limit, known),
            _scalar(lo, lambda i: i() + 1, iteration, name="count"),
            *(
                expr if result is port else lo.fresh(result)
                for result, port, expr in zip(following, changing[1:], values, strict=True)
            ),
        ]
        replaced = [old if new is old else _copied(lo, new) for old, new in zip(state, sources, strict=True)]
    groups = [relax.Tuple(group) for group in (replaced, sources, rows)]
    return Value(_mark(lo, marks.REPEAT, groups, [*replaced, *rows]), ())


def _goes_on(
    lo: LoweringContext,
    condition: relax.Expr | None,
    iteration: relax.Expr | None,
    limit: relax.Expr | None,
    known: int | None,
) -> relax.Var:
    """Whether another iteration is made.

    Args:
        condition: what the loop's own condition says; None if that always holds.
        iteration: the one that ends; None before the first.
        limit, known: the most iterations, as a tensor or as a number; None for neither.
    """
    arguments = [argument for argument in (condition, iteration, limit) if argument is not None]

    def function(*tensors: te.Tensor) -> Any:
        rest = iter(tensors)
        holds = tirx.IntImm("bool", 1) if condition is None else next(rest)()
        made = tirx.IntImm("int64", 0) if iteration is None else next(rest)() + 1
        if limit is not None:
            return tirx.And(holds, made < next(rest)())
        return holds if known is None else tirx.And(holds, made < tirx.IntImm("int64", known))

    return _scalar(lo, function, *arguments, name="goes_on")


def _scalar(lo: LoweringContext, function: Callable[..., Any], *args: relax.Expr, name: str) -> relax.Var:
    """A kernel of scalars."""
    inputs = [te.placeholder((), str(arg.ty.dtype), name=f"a{i}") for i, arg in enumerate(args)]
    result = te.compute((), lambda: function(*inputs), name=name)
    return lo.emit_function(
        te.create_prim_func([*inputs, result]),
        *args,
        result=relax.TensorType((), result.dtype),
        name=name,
        scheduled=True,
    )


def _copied(lo: LoweringContext, expr: relax.Expr) -> relax.Var:
    """The same elements in another place."""
    source = te.placeholder([int(d) for d in expr.ty.shape], str(expr.ty.dtype), name="source")
    result = te.compute(source.shape, lambda *i: source(*i), name="copy")
    return lo.emit_function(te.create_prim_func([source, result]), expr, result=expr.ty, name="carry", scheduled=True)


def _write_row(lo: LoweringContext, row: relax.Expr, iteration: relax.Expr, rows: int) -> relax.Var:
    """A kernel that writes one row of a tensor of `rows`, and nothing else of it."""
    shape, dtype = [int(d) for d in row.ty.shape], str(row.ty.dtype)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        source = T.arg("row", T.buffer(shape, dtype))
        index = T.arg("iteration", T.buffer((), "int64"))
        out = T.arg("out", T.buffer((rows, *shape), dtype))
        place = tirx.Min(index[()], tirx.IntImm("int64", rows - 1))  # never into foreign memory
        if shape:
            with T.grid(*shape) as where:
                where = where if len(shape) > 1 else [where]
                T.buffer_store(out, source[tuple(where)], [place, *where])
        else:
            T.buffer_store(out, source[()], [place])
    return lo.emit_function(
        builder.get(), row, iteration, result=relax.TensorType((rows, *shape), dtype), name="write_row", scheduled=True
    )


def _mark(lo: LoweringContext, kind: str, args: Sequence[relax.Expr], results: Sequence[relax.Expr] = ()) -> relax.Var:
    """Emit a mark that gives tensors like `results`."""
    types = [relax.TupleType([result.ty for result in results])]
    return lo.builder.emit(ir.Call(relax.ExternFunc(kind), list(args), None, types))
