"""A model prepared for choosing schedules: tasks with spaces and bounds; and put together again with those chosen."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import tvm

from calumma import tvm_compat
from calumma.artifact import LoweredModel
from calumma.artifact.repacking import repack
from calumma.core.contraction import FLOAT32
from calumma.core.protocols import Template
from calumma.core.values import Hardware, KnobValue, Task
from calumma.lowering.lowering import LoweredGraph
from calumma.operators import design_space
from calumma.pipeline.compile_options import CompileOptions
from calumma.pipeline.extraction import extract_tasks
from calumma.target import Target
from calumma.tasks import ModelTasks
from calumma.tasks.roofline import MachineLimits, bound_s, early_probe, machine_limits

Configs = Mapping[str, Mapping[str, KnobValue]]
"""Workload hash -> knob values by name."""


@dataclass(frozen=True)
class PreparedModel:
    """A model as tasks, with everything needed to schedule and build it for one CPU and thread count."""

    name: str
    model_hash: str
    target: Target
    threads: int
    graph: LoweredGraph
    parts: ModelTasks
    tasks: tuple[Task, ...]
    spaces: Mapping[str, Template]
    """Workload hash -> its design space."""
    limits: MachineLimits
    bounds: Mapping[str, float]
    """Workload hash -> roofline bound of one call in seconds."""
    tolerance: float | None = None
    """Relative error above which an algorithm is not considered; None takes all."""
    precision: str = FLOAT32.name
    """What contractions read."""
    phases_s: dict[str, float] = field(default_factory=dict)
    """Seconds by phase; later steps add theirs."""
    on_phase: Callable[[str], None] = lambda name: None
    """Called with the name of every phase that begins."""

    @property
    def hardware(self) -> Hardware:
        """The identity of the CPU in records."""
        return self.target.hardware

    @property
    def import_s(self) -> float:
        """Seconds from the model file to fused tasks, without the imports of Python and TVM."""
        return self.phases_s["import"] + self.phases_s["lower"] + self.phases_s["tasks"]

    @property
    def cache_state(self) -> str:
        """In which the model's kernels find their arguments, and so in which they are measured.

        Weights that take less than half of L3 are still there at the next run, beside activations and code; of others
        little is. (Bounds are more careful: only weights larger than L3 are certain to come from memory.)
        """
        weights = sum(param.nbytes for param in self.graph.params)
        return "warm" if weights <= self.target.l3_bytes / 2 else "cold"

    @functools.cached_property
    def defaults(self) -> Configs:
        """The configurations that are used without any measurement."""
        return {key: space.decode(space.default()) for key, space in self.spaces.items()}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the seconds inside to a phase."""
        self.on_phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases_s[name] = self.phases_s.get(name, 0.0) + time.perf_counter() - start

    def config(self, workload: str, configs: Configs) -> Mapping[str, KnobValue]:
        """The configuration of a workload in the model: the given one, unless that is its space's default."""
        default = self.defaults[workload]
        config = configs.get(workload, default)
        return config if config != default else self.defaults_in_model[workload]

    @functools.cached_property
    def defaults_in_model(self) -> Configs:
        """What the model is built with in the place of `defaults`, against which candidates are measured one by one."""
        return {key: space.decode(space.default_in_model()) for key, space in self.spaces.items()}

    def lowered(self, configs: Configs, latencies_s: Mapping[str, float] | None = None) -> LoweredModel:
        """Schedule every kernel and return the model ready for code generation.

        Args:
            configs: schedules to use; a workload that is not named gets its default.
            latencies_s: workload hash -> measured latency, kept in the artifact's metadata.
        """
        repacking = {}
        mod = tvm.IRModule(dict(self.parts.mod.functions.items()))
        for task in self.tasks:
            space, config = self.spaces[task.workload.hash], self.config(task.workload.hash, configs)
            func = space.schedule(config).mod["main"]
            mod.update_func(mod.get_global_var(task.name), func.with_attr("global_symbol", task.name))
            repacking[task.name] = space.repacking(config)
        metadata = self.metadata(configs, latencies_s or {})
        return repack(LoweredModel(mod, self.graph.params, self.graph.inputs, self.graph.outputs, metadata), repacking)

    def metadata(self, configs: Configs, latencies_s: Mapping[str, float]) -> dict[str, Any]:
        """What an artifact says of itself, as JSON values; arguments as for `lowered`."""
        rows = [
            {
                "name": task.name,
                "workload": task.workload.hash,
                "template": self.spaces[task.workload.hash].template,
                "version": self.spaces[task.workload.hash].version,
                "config": dict(self.config(task.workload.hash, configs)),
                "weight": task.weight,
                "flops": task.flops,
                "bytes": task.size_bytes,
                "bound_s": self.bounds[task.workload.hash],
                "latency_s": latencies_s.get(task.workload.hash),
            }
            for task in self.tasks
        ]
        return {
            "model": self.name,
            "model_hash": self.model_hash,
            "threads": self.threads,
            "toolchain": tvm_compat.toolchain(),
            "cpu_model": self.hardware.cpu_model,
            "fingerprint": self.hardware.fingerprint,
            "peak_flops": self.limits.peak_flops,
            "tolerance": self.tolerance,
            "precision": self.precision,
            "tasks": rows,
        }


def prepare(
    model: Any, options: CompileOptions | None = None, *, on_phase: Callable[[str], None] = lambda name: None
) -> PreparedModel:
    """Import a model, split it into tasks, and give these their spaces and bounds.

    Args:
        model: as in `frontend.importer.import_model`.
        options: what it is compiled for; by default this machine, with all physical cores. Sets the threads of TVM's
            pool in this process.
        on_phase: called with the name of every phase that begins, here and later.

    Raises:
        InputError: the model cannot be imported, or not be compiled with these options.
    """
    options = options or CompileOptions()
    threads, target = options.set_threads(), options.target()
    with early_probe(target, threads) as child:
        extracted = extract_tasks(
            model,
            target,
            options.contraction,
            example_inputs=options.example_inputs,
            shapes=options.shapes,
            on_phase=on_phase,
        )
        graph, parts, phases_s = extracted.graph, extracted.parts, dict(extracted.phases_s)
        start = time.perf_counter()
        on_phase("spaces")
        spaces = {key: design_space(func, target, threads) for key, func in parts.functions.items()}
        if options.tolerance is not None:
            spaces = {key: space.within(options.tolerance) for key, space in spaces.items()}
        phases_s["spaces"] = time.perf_counter() - start
        start = time.perf_counter()
        on_phase("roofline")
        limits = machine_limits(target, threads, child=child)
    # A bound must hold for every run: what might stay in L3 counts as if it did, unlike in `cache_state`.
    resident = sum(p.nbytes for p in graph.params) <= target.l3_bytes
    bounds = {
        task.workload.hash: _bound_s(task, spaces[task.workload.hash], parts, limits, resident) for task in parts.tasks
    }
    phases_s["roofline"] = time.perf_counter() - start
    return PreparedModel(
        name=extracted.name,
        model_hash=extracted.model_hash,
        target=target,
        threads=threads,
        graph=graph,
        parts=parts,
        tasks=tuple(replace(task, anchor=spaces[task.workload.hash].template) for task in parts.tasks),
        spaces=spaces,
        limits=limits,
        bounds=bounds,
        tolerance=options.tolerance,
        precision=options.precision,
        phases_s=phases_s,
        on_phase=on_phase,
    )


def _bound_s(task: Task, space: Template, parts: ModelTasks, limits: MachineLimits, resident: bool) -> float:
    """Roofline bound of one call in seconds, by the algorithm that needs least."""
    weight_bytes = parts.weight_bytes[task.workload.hash]
    other_bytes = task.size_bytes - weight_bytes
    return min(
        bound_s(flops, weights, other_bytes, limits, resident)
        for flops, weights in space.costs(task.flops, weight_bytes)
    )
