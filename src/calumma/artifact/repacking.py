"""Weights in the form that a model's schedules take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import tvm
from tvm import ir, relax

from calumma.artifact.lowered import LoweredModel
from calumma.space import Repacking
from calumma.tvm_compat import kernel_calls


def repack(lowered: LoweredModel, wanted: Mapping[str, Mapping[int, Repacking]]) -> LoweredModel:
    """Give every kernel its weights in the form it wants; a weight that no kernel takes any more is dropped.

    Args:
        lowered: a model whose kernels are scheduled, with the weights as the unscheduled kernels take them.
        wanted: kernel -> position of the argument -> how that weight is repacked.
    """
    if not any(wanted.values()):
        return lowered
    main = lowered.mod["main"]
    inputs, held = list(main.params[: len(lowered.inputs)]), list(main.params[len(lowered.inputs) :])
    arrays = dict(zip(held, lowered.params, strict=True))
    params: dict[tuple[relax.Var, str], relax.Var] = {}

    def argument(kernel: str, position: int, value: relax.Expr) -> relax.Expr:
        repacking = wanted.get(kernel, {}).get(position)
        if repacking is None:
            return value
        key = (value, repacking.name)
        if key not in params:
            array = repacking.apply(arrays[value])
            params[key] = relax.Var(f"{value.name}_{repacking.name}", relax.TensorType(array.shape, str(array.dtype)))
            arrays[params[key]] = array
        return params[key]

    def repacked(call: ir.Call) -> ir.Call:
        kernel = str(call.args[0].name_hint)
        values = [argument(kernel, i, value) for i, value in enumerate(kernel_calls.arguments(call))]
        return kernel_calls.with_arguments(call, values)

    body = kernel_calls.rewritten(main, repacked)
    free = set(relax.analysis.free_vars(body))
    used = [var for var in arrays if var in free]
    mod = tvm.IRModule(dict(lowered.mod.functions.items()), attrs=lowered.mod.attrs)
    mod["main"] = relax.Function([*inputs, *used], body, main.ret_ty, main.is_pure, main.attrs)
    return replace(lowered, mod=mod, params=tuple(arrays[var] for var in used))
