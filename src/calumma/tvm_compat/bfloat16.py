"""bfloat16, which TVM computes in float32 and has no vectors of: rounding as arithmetic, and buffers of bits."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx

WORD = "bfloat16_word"
"""Name of the variable of the bits that `nearest` rounds: where a CPU rounds by instruction, that takes the place of
its scope. Rounding is recognised by this name because expressions have no annotations that TVM's passes would keep."""


def nearest(value: Any) -> Any:
    """A float32 value as the nearest bfloat16; of two as near, the even one."""
    # TVM's own cast writes the value out twice; one that binds variables (erf, tanh) may stand in one place alone.
    word = tirx.Var(WORD, "uint32")
    one, most, half = (tirx.const(n, "uint32") for n in (1, 0x7FFF, 16))
    upper = (word + most + ((word >> half) & one)) >> half
    return tirx.reinterpret("bfloat16", tirx.Let(word, tirx.reinterpret("uint32", value), upper.astype("uint16")))


def as_bits(func: tirx.PrimFunc) -> tirx.PrimFunc:
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
