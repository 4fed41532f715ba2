"""From a fused Relax module to its tasks: one per distinct PrimFunc, however often the model calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import ir, relax, s_tir, tirx
from tvm_ffi import structural_hash

from calumma.core.values import WEIGHTS, Task, Workload
from calumma.space import loops


@dataclass(frozen=True)
class ModelTasks:
    """A module whose every kernel is distinct, with its tasks in order of first call."""

    mod: tvm.IRModule
    """`main` calls each distinct PrimFunc under one name, `Task.name`."""
    tasks: tuple[Task, ...]
    functions: Mapping[str, tirx.PrimFunc]
    """Workload hash -> the unscheduled function."""
    weight_bytes: Mapping[str, float]
    """Workload hash -> bytes of its arguments that are the model's weights."""


def extract(mod: tvm.IRModule, inputs: int) -> ModelTasks:
    """Find the tasks of a fused module whose `main` takes `inputs` inputs before its weights."""
    weights = set(mod["main"].params[inputs:])
    calls: Counter[str] = Counter()
    weight_arguments: dict[str, list[bool]] = {}
    for call in _kernel_calls(mod):
        name = str(call.args[0].name_hint)
        calls[name] += 1
        weight_arguments[name] = [argument in weights for argument in call.args[1].fields]
    functions: dict[str, tirx.PrimFunc] = {}
    representative: dict[str, str] = {}
    key_of: dict[str, str] = {}
    weight_bytes: dict[str, float] = {}
    for name in calls:
        func = _normalised(mod[name], weight_arguments[name])
        key = f"{structural_hash(func) & (2**64 - 1):016x}"
        key_of[name] = key
        if key not in functions:
            functions[key] = func
            representative[key] = name
            flags = weight_arguments[name]
            weight_bytes[key] = sum(
                _size_bytes(*argument)
                for argument, is_weight in zip(_arguments(func), flags, strict=False)
                if is_weight
            )
    uses: Counter[str] = Counter()
    for name, count in calls.items():
        uses[key_of[name]] += count
    tasks = tuple(_task(key, func, representative[key], uses[key]) for key, func in functions.items())
    distinct = _redirect(mod, {name: representative[key] for name, key in key_of.items()})
    return ModelTasks(distinct, tasks, functions, weight_bytes)


def _task(key: str, func: tirx.PrimFunc, name: str, weight: int) -> Task:
    arguments = _arguments(func)
    return Task(
        workload=Workload(key, str(ir.save_json(func))),
        name=name,
        weight=weight,
        anchor=name.removeprefix("fused_").rstrip("0123456789_"),
        flops=_flops(func),
        size_bytes=sum(_size_bytes(*argument) for argument in arguments),
        arguments=arguments,
    )


def _flops(func: tirx.PrimFunc) -> float:
    """Floating-point operations of one call: operations per point times points, over all blocks."""
    sch = s_tir.Schedule(func)
    return float(sum(loops.points(sch, block) * loops.operations(sch, block) for block in loops.blocks_of(sch)))


def _arguments(func: tirx.PrimFunc) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((tuple(int(d) for d in p.ty.shape), str(p.ty.dtype)) for p in func.params)


def _size_bytes(shape: tuple[int, ...], dtype: str) -> float:
    return float(np.prod(shape)) * np.dtype(dtype).itemsize


def _normalised(func: tirx.PrimFunc, weights: list[bool]) -> tirx.PrimFunc:
    """The function under the name `main`; of its place in the model only which arguments are weights remains.

    That decides what is cold when the task is measured.
    """
    if func.attrs is not None and "op_pattern" in func.attrs:
        func = func.without_attr("op_pattern")
    positions = [i for i, is_weight in enumerate(weights) if is_weight]
    return func.with_attrs({"global_symbol": "main", "tirx.noalias": True, WEIGHTS: positions})


def _kernel_calls(mod: tvm.IRModule) -> list[ir.Call]:
    """The kernel calls of `main`, in order."""
    bindings = (binding for block in mod["main"].body.blocks for binding in block.bindings)
    return [b.value for b in bindings if getattr(getattr(b.value, "op", None), "name", "") == "relax.call_tir"]


def _redirect(mod: tvm.IRModule, target: Mapping[str, str]) -> tvm.IRModule:
    """Let `main` call `target[name]` wherever it calls `name`, and drop what is no longer called."""
    variables = {name: mod.get_global_var(name) for name in target}

    @relax.expr_functor.mutator
    class Redirect(relax.PyExprMutator):
        def visit_call_(self, call: ir.Call) -> ir.Call:
            if getattr(call.op, "name", "") != "relax.call_tir":
                return call
            callee = variables[target[str(call.args[0].name_hint)]]
            return ir.Call(call.op, [callee, *call.args[1:]], call.attrs, call.ty_args)

    mutator = Redirect(mod)
    mutator.builder_.update_func(mod.get_global_var("main"), mutator.visit_expr(mod["main"]))
    return relax.transform.DeadCodeElimination(["main"])(mutator.builder_.get())
