"""The instructions for bfloat16 of CPUs with AVX512_BF16.

`vdpbf16ps`, dot products of pairs that float32 adds up. A schedule marks a vectorised loop over 16 lanes l whose only
inner loop runs over the two halves q of a pair:

    c[l] = c[l] + float32(a[2 p + q]) * float32(b[2 l + q])

When the function is built, that becomes one instruction on c[0:16], the pair of `a` in all lanes, and b[0:32]. It
multiplies twice as much per cycle as float32's multiply-add.

`vcvtneps2bf16`, rounding of 16 float32 values, in the place of the arithmetic that `nearest` writes.

TVM computes bfloat16 in float32 and knows no vectors of it, so that instructions are functions in LLVM's language that
are handed over as text, called, and inlined.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx

from calumma.tvm_compat import BFLOAT16, target_features

MARK = "calumma.bfloat16_dot"
"""Annotation of the loop over lanes."""
LANES = 16
PAIR = 2
_DOT, _ROUND = "calumma.bfloat16_dot", "calumma.bfloat16_round"
_WORD = "bfloat16_word"
_IMPORT = "pragma_import_llvm"
_TEXT = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define linkonce_odr <16 x float> @{_DOT}(<16 x float> %sums, <16 x i32> %pairs, <16 x i32> %others) alwaysinline {{
  %a = bitcast <16 x i32> %pairs to <32 x bfloat>
  %b = bitcast <16 x i32> %others to <32 x bfloat>
  %c = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %c
}}
define linkonce_odr <16 x i16> @{_ROUND}(<16 x float> %x) alwaysinline {{
  %y = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %bits = bitcast <16 x bfloat> %y to <16 x i16>
  ret <16 x i16> %bits
}}
"""


def nearest(value: Any) -> Any:
    """A float32 value as the nearest bfloat16; of two as near, the even one."""
    # TVM's own cast writes the value out twice; one that binds variables (erf, tanh) may stand in one place alone.
    word = tirx.Var(_WORD, "uint32")
    one, most, half = (tirx.const(n, "uint32") for n in (1, 0x7FFF, 16))
    upper = (word + most + ((word >> half) & one)) >> half
    return tirx.reinterpret("bfloat16", tirx.Let(word, tirx.reinterpret("uint32", value), upper.astype("uint16")))


def dot(sums: Any, pair: Any, pairs: Any) -> Any:
    """sums (float32 x 16) + the products of one pair (2 elements of 16 bits) with 16 pairs (32 elements)."""
    both = tirx.Broadcast(tirx.reinterpret("int32", pair), LANES)
    return tirx.call_pure_extern("float32x16", _DOT, sums, both, tirx.reinterpret("int32x16", pairs))


def insert(mod: tvm.IRModule) -> tvm.IRModule:
    """Put the instruction in place of all marked loops of a module's functions, and bits into their own buffers."""
    updated = {
        var: _as_bits(_inserted(func)) if isinstance(func, tirx.PrimFunc) else func
        for var, func in mod.functions.items()
    }
    return tvm.IRModule(updated, attrs=mod.attrs)


def finish(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A lowered function with rounding by instruction where its target has that, and with definitions where needed."""
    if BFLOAT16 not in target_features(str(func.attrs["target"].attrs.get("mcpu", "x86-64"))):
        return func
    body = tvm_ffi.structural_map(func.body, (tirx.Let, _rounded))
    called: set[str] = set()
    tvm_ffi.structural_walk(
        body, (ir.Call, lambda call: called.update(getattr(arg, "value", "") for arg in call.args[:1]))
    )
    if not {_DOT, _ROUND} & called:
        return func
    return func.with_body(tirx.AttrStmt(tirx.IntImm("int32", 0), _IMPORT, ir.StringImm(_TEXT), body))


def _rounded(let: tirx.Let) -> Any:
    if let.var.name != _WORD or str(let.var.ty) != f"uint32x{LANES}":
        return let
    return tirx.call_pure_extern("uint16x16", _ROUND, tirx.reinterpret("float32x16", let.value))


def _as_bits(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Let buffers of bfloat16 that the function allocates hold the bits.

    TVM would make them float32, and bits that are taken of their elements then have the wrong width.
    """
    held: dict[Any, Any] = {}

    def find(block: s_tir.SBlock) -> None:
        for buffer in block.alloc_buffers:
            if str(buffer.dtype) == "bfloat16":
                held[buffer] = tirx.decl_buffer(buffer.shape, "uint16", buffer.name, scope=buffer.scope())

    def load(node: ir.TensorLoad) -> Any:
        if node.source not in held:
            return node
        return tirx.reinterpret("bfloat16", tirx.BufferLoad(held[node.source], node.indices))

    def store(node: tirx.BufferStore) -> Any:
        if node.buffer not in held:
            return node
        return tirx.BufferStore(held[node.buffer], tirx.reinterpret("uint16", node.value), node.indices)

    def region(node: ir.TensorRegion) -> Any:
        return tirx.BufferRegion(held[node.source], node.region) if node.source in held else node

    def allocate(block: s_tir.SBlock) -> Any:
        if not any(buffer in held for buffer in block.alloc_buffers):
            return block
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            block.body,
            block.init,
            [held.get(buffer, buffer) for buffer in block.alloc_buffers],
            block.match_buffers,
            block.annotations,
        )

    tvm_ffi.structural_walk(func.body, (s_tir.SBlock, find))
    if not held:
        return func
    changes = [(ir.TensorLoad, load), (tirx.BufferStore, store), (ir.TensorRegion, region), (s_tir.SBlock, allocate)]
    return func.with_body(tvm_ffi.structural_map(func.body, changes))


def _inserted(func: tirx.PrimFunc) -> tirx.PrimFunc:
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, _visit)))


def _visit(loop: tirx.For) -> Any:
    if MARK not in loop.annotations:
        return loop
    realize, inside = loop.body.body, (loop.loop_var, loop.body.loop_var)
    block = realize.block
    outer = [
        (iv, value)
        for iv, value in zip(block.iter_vars, realize.iter_values, strict=True)
        if not any(value.same_as(variable) for variable in inside)
    ]
    kept = {iv.var for iv, _ in outer}

    def first(expression: Any) -> Any:
        """The expression in the first lane and half."""
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
    at = vector(store.indices, LANES)
    value = dot(
        tirx.BufferLoad(store.buffer, at),
        tirx.BufferLoad(pair.source, vector(pair.indices, PAIR)),
        tirx.BufferLoad(pairs.source, vector(pairs.indices, PAIR * LANES)),
    )
    touched = ((store.buffer, store.indices, LANES), (pair.source, pair.indices, PAIR))
    sums, data, weights = (
        _region(buffer, [first(index) for index in indices], length)
        for buffer, indices, length in (*touched, (pairs.source, pairs.indices, PAIR * LANES))
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
