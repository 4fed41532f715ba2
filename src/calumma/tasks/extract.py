"""From a fused Relax module to its tasks: one per distinct PrimFunc, however often the model calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import ir, relax, tirx
from tvm_ffi import structural_hash

from calumma.core.values import Hardware, Task, Workload
from calumma.space import KnobSpace, design_space

_NAME_ATTRS = ("global_symbol", "op_pattern", "tirx.noalias", "tir.noalias")


@dataclass(frozen=True)
class ModelTasks:
    """A module whose every kernel is distinct, with its tasks in order of first call."""

    mod: tvm.IRModule
    """`main` calls each distinct PrimFunc under one name, `Task.name`."""
    tasks: tuple[Task, ...]
    functions: Mapping[str, tirx.PrimFunc]
    """Workload hash -> the unscheduled function."""
    spaces: Mapping[str, KnobSpace]
    """Workload hash -> its design space."""

    def scheduled(self, configs: Mapping[str, Mapping]) -> tvm.IRModule:
        """The module with every kernel scheduled: by `configs` (workload hash -> knob values), else by its default."""
        updates = {}
        for task in self.tasks:
            space = self.spaces[task.workload.hash]
            config = configs.get(task.workload.hash) or space.decode(space.default())
            func = space.schedule(config).mod["main"]
            updates[self.mod.get_global_var(task.name)] = func.with_attr("global_symbol", task.name)
        result = tvm.IRModule(dict(self.mod.functions.items()))
        for var, func in updates.items():
            result.update_func(var, func)
        return result


def extract(mod: tvm.IRModule, hardware: Hardware, threads: int) -> ModelTasks:
    """Find the tasks of a fused module and the design space of each."""
    calls = Counter(_called_kernels(mod))
    representative: dict[str, str] = {}
    functions: dict[str, tirx.PrimFunc] = {}
    names: dict[str, str] = {}
    for name in dict.fromkeys(_called_kernels(mod)):
        func = _normalised(mod[name])
        key = f"{structural_hash(func) & (2**64 - 1):016x}"
        functions.setdefault(key, func)
        representative.setdefault(key, name)
        names[name] = key
    weights: Counter[str] = Counter()
    for name, count in calls.items():
        weights[names[name]] += count
    spaces = {key: design_space(func, hardware, threads) for key, func in functions.items()}
    tasks = tuple(_task(key, func, representative[key], weights[key], spaces[key]) for key, func in functions.items())
    return ModelTasks(_redirect(mod, {n: representative[k] for n, k in names.items()}), tasks, functions, spaces)


def _task(key: str, func: tirx.PrimFunc, name: str, weight: int, space: KnobSpace) -> Task:
    arguments = tuple((tuple(int(d) for d in p.ty.shape), str(p.ty.dtype)) for p in func.params)
    size = sum(float(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in arguments)
    return Task(
        workload=Workload(key, ir.save_json(func)),
        name=name,
        weight=weight,
        anchor=space.template,
        flops=_flops(func),
        size_bytes=size,
        arguments=arguments,
    )


def _flops(func: tirx.PrimFunc) -> float:
    """Floating-point operations of one call, as TVM counts them from the function's body."""
    return float(tvm.s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": func})))


def _normalised(func: tirx.PrimFunc) -> tirx.PrimFunc:
    for attr in _NAME_ATTRS:
        if func.attrs is not None and attr in func.attrs:
            func = func.without_attr(attr)
    return func.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)


def _called_kernels(mod: tvm.IRModule) -> list[str]:
    """Names of the kernels that `main` calls, one per call, in order."""
    names = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, ir.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                names.append(str(value.args[0].name_hint))
    return names


def _redirect(mod: tvm.IRModule, target: Mapping[str, str]) -> tvm.IRModule:
    """Let `main` call `target[name]` wherever it calls `name`, and drop what is no longer called."""
    variables = {name: mod.get_global_var(name) for name in target}

    @relax.expr_functor.mutator
    class Redirect(relax.PyExprMutator):
        def visit_call_(self, call: ir.Call) -> ir.Call:
            if getattr(call.op, "name", "") == "relax.call_tir" and str(call.args[0].name_hint) in target:
                callee = variables[target[str(call.args[0].name_hint)]]
                return ir.Call(call.op, [callee, *call.args[1:]], call.attrs, call.ty_args)
            return call

    mutator = Redirect(mod)
    mutator.builder_.update_func(mod.get_global_var("main"), mutator.visit_expr(mod["main"]))
    return relax.transform.DeadCodeElimination(["main"])(mutator.builder_.get())
