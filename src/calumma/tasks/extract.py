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
from calumma.tvm_compat import kernel_calls, marks


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
    """Find the tasks of a fused module whose `main` takes `inputs` inputs before its weights.

    A call in a loop counts as often as the loop is thought to run. Kernels that control flow itself needs are no tasks.
    """
    weights = set(mod["main"].params[inputs:])
    calls: Counter[str] = Counter()
    weight_arguments: dict[str, list[bool]] = {}
    for binding, times in marks.counted(mod["main"]):
        call = binding.value
        if not kernel_calls.is_call(binding) or marks.FIXED in (mod[call.args[0]].attrs or ()):
            continue
        name = str(call.args[0].name_hint)
        calls[name] += times
        weight_arguments[name] = [argument in weights for argument in kernel_calls.arguments(call)]
    functions: dict[str, tirx.PrimFunc] = {}
    representative: dict[str, str] = {}
    key_of: dict[str, str] = {}
    weight_bytes: dict[str, float] = {}
    for name in calls:
        func = _normalised(mod[name], weight_arguments[name])
        key = _key(func)
        key_of[name] = key
        if key not in functions:
            functions[key] = func
            representative[key] = name
            weight_bytes[key] = weight_bytes_of(func)
    uses: Counter[str] = Counter()
    for name, count in calls.items():
        uses[key_of[name]] += count
    tasks = tuple(task_of(func, representative[key], uses[key], key) for key, func in functions.items())
    distinct = _redirect(mod, {name: representative[key] for name, key in key_of.items()})
    return ModelTasks(distinct, tasks, functions, weight_bytes)


def task_of(func: tirx.PrimFunc, name: str, weight: int = 1, key: str = "") -> Task:
    """Describe a normalised function as a task that a model calls `weight` times; `key` is its hash, if known."""
    arguments = _arguments(func)
    return Task(
        workload=Workload(key or _key(func), str(ir.save_json(func))),
        name=name,
        weight=weight,
        anchor=name.removeprefix("fused_").rstrip("0123456789_"),
        flops=_flops(func),
        size_bytes=sum(_size_bytes(*argument) for argument in arguments),
        arguments=arguments,
    )


def weight_bytes_of(func: tirx.PrimFunc) -> float:
    """Bytes of a normalised function's arguments that are weights of the model."""
    arguments = _arguments(func)
    return sum(_size_bytes(*arguments[int(position)]) for position in func.attrs[WEIGHTS])


def _key(func: tirx.PrimFunc) -> str:
    return f"{structural_hash(func) & (2**64 - 1):016x}"


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


def _redirect(mod: tvm.IRModule, target: Mapping[str, str]) -> tvm.IRModule:
    """Let `main` call `target[name]`, if there is one, wherever it calls `name`, and drop what is no longer called."""
    main = mod["main"]

    def redirected(call: ir.Call) -> ir.Call:
        name = str(call.args[0].name_hint)
        return kernel_calls.with_kernel(call, mod.get_global_var(target.get(name, name)))

    body = kernel_calls.rewritten(main, redirected)
    distinct = tvm.IRModule(dict(mod.functions.items()), attrs=mod.attrs)
    distinct["main"] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    return relax.transform.DeadCodeElimination(["main"])(distinct)
