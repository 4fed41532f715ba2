"""Fusion of elementwise readers into their producers, by TVM's passes, within limits that TVM's compile time sets.

A fused chain becomes one expression. TVM's analyzer works on expressions whose bindings are expanded: a variable counts
as often as it is used, so that each tanh in a chain, which uses its argument 36 times, makes the whole 36 times as
large. The *expanded size* of an expression is its number of operations after that expansion. A kernel whose expression
would grow beyond a limit is kept out of fusion: its argument is stored, and read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import ir, relax, s_tir, tirx

from calumma.graph.context import OPAQUE
from calumma.space import loops
from calumma.tvm_compat import kernel_calls

_MOST_EXPANDED = 2_000_000
"""Four tanh in a row (36^4) build in 0.1 s, five in 1.4 s, six in 51 s: measured with TVM 0.27 on a core of 2.6 GHz."""
_MOST_IN_A_ROW = 256
"""Kernels that feed one another in one fused function: TVM's passes take more than linear time in its length."""


def fuse(mod: tvm.IRModule, inputs: int) -> tvm.IRModule:
    """Fuse elementwise readers into their producers, and injective chains into one kernel each.

    Args:
        mod: `main` takes `inputs` inputs before its parameters and calls one PrimFunc per operator.
    """
    mod = _cut(mod)
    passes = [
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]
    mod["main"] = mod["main"].with_attr("num_input", inputs)
    with tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(mod)


def _cut(mod: tvm.IRModule) -> tvm.IRModule:
    """Keep kernels out of fusion where a chain would become too large."""
    kernels: dict[str, _Kernel] = {}
    apart: dict[str, ir.GlobalVar] = {}
    sizes: dict[Any, tuple[int, int]] = {}  # variable -> expanded size of what it is computed by, kernels in a row
    cut: list[tuple[Any, str]] = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.TupleGetItem):
                sizes[binding.var] = sizes.get(binding.value.tuple_value, (1, 0))
            if not kernel_calls.is_call(binding):
                continue
            name = str(binding.value.args[0].name_hint)
            if name not in kernels:
                kernels[name] = _Kernel(mod[name])
            chain = [sizes.get(argument, (1, 0)) for argument in kernel_calls.arguments(binding.value)]
            size = kernels[name].expanded([s for s, _ in chain])
            calls = 1 + max((count for _, count in chain), default=0)
            if (size > _MOST_EXPANDED or calls > _MOST_IN_A_ROW) and any(count for _, count in chain):
                cut.append((binding.value, name))
                size, calls = 1, 0
            sizes[binding.var] = (size, calls) if kernels[name].is_map else (1, 0)
    if not cut:
        return mod
    builder = relax.BlockBuilder(mod)
    for name in dict.fromkeys(name for _, name in cut):
        opaque = mod[name].with_attr("op_pattern", OPAQUE)
        apart[name] = builder.add_func(opaque, f"{name}_apart")
    mod = builder.get()
    chosen = {call: apart[name] for call, name in cut}
    main = mod["main"]
    body = kernel_calls.rewritten(
        main, lambda call: kernel_calls.with_kernel(call, chosen[call]) if call in chosen else call
    )
    mod["main"] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    return mod


class _Kernel:
    """What one operator's PrimFunc does to the expanded size of what it reads.

    Attributes:
        is_map: whether its result is an expression of its arguments' elements, without a reduction.
    """

    def __init__(self, func: tirx.PrimFunc) -> None:
        sch = s_tir.Schedule(func)
        self._params = list(func.params)
        nodes = [sch.get(block) for block in loops.blocks_of(sch)]
        self.is_map = bool(nodes) and all(node.init is None for node in nodes)
        self._bodies = [node.body for node in nodes if isinstance(node.body, tirx.BufferStore)]
        self.is_map &= len(self._bodies) == len(nodes)

    def expanded(self, arguments: list[int]) -> int:
        """The largest expanded size in the function, given those of its arguments."""
        sizes: dict[Any, int] = dict(zip(self._params, arguments, strict=False))
        largest = 1
        for body in self._bodies:
            size = max(1, _expanded(body.value, sizes, {}))
            sizes[body.buffer] = size
            largest = max(largest, size)
        return largest


def _expanded(expression: Any, buffers: Mapping[Any, int], variables: Mapping[Any, int]) -> int:
    """Operations of an expression whose bindings are expanded."""
    if isinstance(expression, ir.TensorLoad):
        return buffers.get(expression.source, 1)
    if isinstance(expression, tirx.Var):
        return variables.get(expression, 0)
    if isinstance(expression, tirx.Let):
        value = _expanded(expression.value, buffers, variables)
        return _expanded(expression.body, buffers, {**variables, expression.var: value})
    below = [_expanded(child, buffers, variables) for child in loops.children(expression)]
    return 1 + sum(below) if below else 0
