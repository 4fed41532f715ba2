"""Dot products of short vectors (`target.DotProduct`) in the place of loops.

A schedule marks a vectorised loop over the lanes l whose only inner loop runs over the elements q of a pack; n is the
number of elements in a pack:

    c[l] = c[l] + float32(a[n p + q]) * float32(b[n l + q])

When the function is built, that becomes one instruction on c[0:lanes], the pack of `a` in all lanes, and b[0:n lanes].
Rounding to the type read, written as arithmetic (`bfloat16.nearest`), becomes one instruction too where there is one.

The instructions are functions in LLVM's language that are handed over as text, called, and inlined.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx

from calumma.core.errors import InternalError
from calumma.target import DotProduct
from calumma.tvm_compat import bfloat16, dot_products_of

MARK = "calumma.dot_product"
"""Annotation of the loop over lanes: the name of the instruction."""
_IMPORT = "pragma_import_llvm"


def insert(mod: tvm.IRModule, target: Any) -> tvm.IRModule:
    """Put instructions in place of all marked loops of a module's functions, and bits into their own buffers.

    Args:
        mod: scheduled functions.
        target: TVM's, of the CPU they are built for.

    Raises:
        InternalError: a schedule asks for an instruction that the CPU lacks.
    """
    dots = {dot.name: dot for dot in dot_products_of(target)}
    updated = {
        var: bfloat16.as_bits(_inserted(func, dots)) if isinstance(func, tirx.PrimFunc) else func
        for var, func in mod.functions.items()
    }
    return tvm.IRModule(updated, attrs=mod.attrs)


def finish(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A lowered function with rounding by instruction where its target has that, and with definitions where needed."""
    dots = dot_products_of(func.attrs["target"])
    for dot in dots:
        func = _finished(func, dot)
    return func


def _finished(func: tirx.PrimFunc, dot: DotProduct) -> tirx.PrimFunc:
    body = func.body
    if dot.rounding and dot.reads == "bfloat16":
        body = tvm_ffi.structural_map(body, (tirx.Let, lambda let: _rounded(let, dot)))
    called: set[str] = set()
    tvm_ffi.structural_walk(
        body, (ir.Call, lambda call: called.update(getattr(arg, "value", "") for arg in call.args[:1]))
    )
    if not {dot.function, dot.rounding} & called:
        return func
    return func.with_body(tirx.AttrStmt(tirx.IntImm("int32", 0), _IMPORT, ir.StringImm(dot.text), body))


def _rounded(let: tirx.Let, dot: DotProduct) -> Any:
    if let.var.name != bfloat16.WORD or str(let.var.ty) != f"uint32x{dot.lanes}":
        return let
    value = tirx.reinterpret(f"{dot.accumulates}x{dot.lanes}", let.value)
    return tirx.call_pure_extern(f"uint16x{dot.lanes}", dot.rounding, value)


def _called(dot: DotProduct, sums: Any, pack: Any, packs: Any) -> Any:
    """sums + the products of one pack (32 bits) with as many packs as lanes."""
    everywhere = tirx.Broadcast(tirx.reinterpret("int32", pack), dot.lanes)
    result = f"{dot.accumulates}x{dot.lanes}"
    return tirx.call_pure_extern(result, dot.function, sums, everywhere, tirx.reinterpret(f"int32x{dot.lanes}", packs))


def _inserted(func: tirx.PrimFunc, dots: dict[str, DotProduct]) -> tirx.PrimFunc:
    def visit(loop: tirx.For) -> Any:
        if MARK not in loop.annotations:
            return loop
        name = str(loop.annotations[MARK])
        if name not in dots:
            raise InternalError(f"a schedule asks for {name}, which the CPU that it is built for lacks")
        return _whole(loop, dots[name])

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, visit)))


def _whole(loop: tirx.For, dot: DotProduct) -> Any:
    """The block under a marked loop, as one that computes all lanes at once."""
    realize, inside = loop.body.body, (loop.loop_var, loop.body.loop_var)
    block = realize.block
    outer = [
        (iv, value)
        for iv, value in zip(block.iter_vars, realize.iter_values, strict=True)
        if not any(value.same_as(variable) for variable in inside)
    ]
    kept = {iv.var for iv, _ in outer}

    def first(expression: Any) -> Any:
        """The expression in the first lane and element of a pack."""
        zero = tirx.IntImm("int64", 0)
        iters = {iv.var: zero for iv in block.iter_vars if iv.var not in kept}
        return tvm_ffi.structural_map(expression, (tirx.Var, lambda variable: iters.get(variable, variable)))

    def vector(indices: Any, length: int) -> list[Any]:
        *leading, last = (first(index) for index in indices)
        return [*leading, tirx.Ramp(last, tirx.IntImm("int64", 1), length)]

    store = block.body
    loads: list[Any] = []
    tvm_ffi.structural_walk(store.value.b, (ir.TensorLoad, loads.append))
    pair, pairs = loads
    at = vector(store.indices, dot.lanes)
    value = _called(
        dot,
        tirx.BufferLoad(store.buffer, at),
        tirx.BufferLoad(pair.source, vector(pair.indices, dot.pack)),
        tirx.BufferLoad(pairs.source, vector(pairs.indices, dot.pack * dot.lanes)),
    )
    touched = ((store.buffer, store.indices, dot.lanes), (pair.source, pair.indices, dot.pack))
    sums, data, weights = (
        _region(buffer, [first(index) for index in indices], length)
        for buffer, indices, length in (*touched, (pairs.source, pairs.indices, dot.pack * dot.lanes))
    )
    whole = s_tir.SBlock(
        [iv for iv, _ in outer],
        [sums, data, weights],
        [sums],
        block.name_hint,
        tirx.BufferStore(store.buffer, value, at),
    )
    return s_tir.SBlockRealize([value for _, value in outer], realize.predicate, whole)


def _region(buffer: Any, start: list[Any], length: int) -> tirx.BufferRegion:
    """`length` elements along the last axis."""
    extents = [1] * (len(start) - 1) + [length]
    return tirx.BufferRegion(buffer, [ir.Range.from_min_extent(at, n) for at, n in zip(start, extents, strict=True)])
