"""A model made ready for tuning: imported, lowered, split into tasks with spaces and bounds; and put together again."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import tvm

from calumma import tvm_compat
from calumma.artifact import LoweredModel
from calumma.artifact.repacking import repack
from calumma.core.errors import InputError
from calumma.core.keys import Key, key_of
from calumma.core.values import PRECISIONS, Hardware, KnobValue, MeasureRecord, Status, Task
from calumma.frontend.importer import import_model
from calumma.frontend.lowering import LoweredGraph, lower
from calumma.frontend.simplify import simplify
from calumma.space import KnobSpace, design_space
from calumma.target import Target
from calumma.tasks import ModelTasks, extract
from calumma.tasks.roofline import MachineLimits, bound_s, machine_limits

Configs = Mapping[str, Mapping[str, KnobValue]]
"""Workload hash -> knob values by name."""

_CLEAR_GAIN = 0.97
"""A recorded schedule replaces the default only if its latency is at most this share of the recorded default's."""


@dataclass(frozen=True)
class TunableModel:
    """A model as tasks, with everything needed to schedule and build it for one CPU and thread count."""

    name: str
    model_hash: str
    target: Target
    threads: int
    graph: LoweredGraph
    parts: ModelTasks
    tasks: tuple[Task, ...]
    spaces: Mapping[str, KnobSpace]
    """Workload hash -> its design space."""
    limits: MachineLimits
    bounds: Mapping[str, float]
    """Workload hash -> roofline bound of one call in seconds."""
    tolerance: float | None = None
    """Relative error above which an algorithm is not considered; None takes all."""
    precision: str = PRECISIONS[0]
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


def check_precision(precision: str, target: Target) -> None:
    """Raise InputError for a precision that there is not, or not on this CPU."""
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r}: there is no such precision; one of {', '.join(PRECISIONS)}")
    if precision != PRECISIONS[0] and target.dot_product("bfloat16") is None:
        raise InputError(
            f"precision={precision!r}: {target.mcpu} has no bfloat16 dot product, which it needs; use fp32"
        )


def prepare(
    model: Any,
    *,
    example_inputs: Sequence[Any] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int,
    mcpu: str | None = None,
    tolerance: float | None = None,
    precision: str = PRECISIONS[0],
    on_phase: Callable[[str], None] = lambda name: None,
) -> TunableModel:
    """Import a model and split it into tasks.

    Args:
        model, example_inputs, shapes: as in `frontend.importer.import_model`.
        threads: threads the model will run on.
        mcpu: LLVM's name of the CPU to compile for; the host by default.
        precision: what contractions read, one of `PRECISIONS`.
        tolerance: relative error above which an algorithm is not considered (`KnobSpace.within`); all are by default.
        on_phase: called with the name of every phase that begins, here and later.

    Raises:
        InputError: the model cannot be imported, or the CPU is unknown.
    """
    target = tvm_compat.target_for(mcpu)
    check_precision(precision, target)
    phases: dict[str, float] = {}
    start = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal start
        now = time.perf_counter()
        phases[phase] = now - start
        start = now

    on_phase("import")
    imported = import_model(model, example_inputs=example_inputs, shapes=shapes)
    lap("import")
    on_phase("lower")
    graph = lower(simplify(imported.graph), target, precision)
    lap("lower")
    on_phase("tasks")
    parts = extract(graph.mod, len(graph.inputs))
    lap("tasks")
    on_phase("spaces")
    spaces = {key: design_space(func, target, threads) for key, func in parts.functions.items()}
    if tolerance is not None:
        spaces = {key: space.within(tolerance) for key, space in spaces.items()}
    lap("spaces")
    on_phase("roofline")
    limits = machine_limits(target, threads)
    # A bound must hold for every run: what might stay in L3 counts as if it did, unlike in `cache_state`.
    resident = sum(p.nbytes for p in graph.params) <= target.l3_bytes
    bounds = {
        task.workload.hash: _bound_s(task, spaces[task.workload.hash], parts, limits, resident) for task in parts.tasks
    }
    lap("roofline")
    tasks = tuple(replace(task, anchor=spaces[task.workload.hash].template) for task in parts.tasks)
    return TunableModel(
        imported.name,
        imported.model_hash,
        target,
        threads,
        graph,
        parts,
        tasks,
        spaces,
        limits,
        bounds,
        tolerance,
        precision,
        phases,
        on_phase,
    )


def _bound_s(task: Task, space: KnobSpace, parts: ModelTasks, limits: MachineLimits, resident: bool) -> float:
    """Roofline bound of one call in seconds, by the algorithm that needs least."""
    weight_bytes = parts.weight_bytes[task.workload.hash]
    other_bytes = task.size_bytes - weight_bytes
    return min(
        bound_s(flops, weights, other_bytes, limits, resident)
        for flops, weights in space.costs(task.flops, weight_bytes)
    )


def recorded_configs(model: TunableModel, records: Iterable[MeasureRecord]) -> dict[str, Mapping[str, KnobValue]]:
    """The best verified schedules among records of this model's workloads: workload hash -> configuration.

    Records of another hardware, thread count, toolchain or template version must have been left out by the caller
    or are skipped here where they would not fit the space. A schedule is used only if its latency is clearly below the
    default's, where that was recorded too. A record from before some knob existed says nothing of today's default, and
    is used only where that was recorded.
    """
    Place = tuple[str, Key]  # workload hash, configuration
    median: dict[Place, list[float]] = {}
    verified: set[Place] = set()
    wrong: set[Place] = set()
    configs: dict[Place, Mapping[str, KnobValue]] = {}
    older: set[Place] = set()
    default_known: set[str] = set()
    for record in records:
        candidate = record.candidate
        space = model.spaces.get(candidate.workload.hash)
        if space is None or (candidate.template, candidate.template_version) != (space.template, space.version):
            continue
        try:
            indices = space.encode(candidate.config)
        except InputError:
            continue
        if not space.valid(indices[None, :])[0]:
            continue
        place = (candidate.workload.hash, key_of(indices))
        configs[place] = space.decode(indices)
        if not configs[place].keys() <= candidate.config.keys():
            older.add(place)
        if configs[place] == model.defaults[place[0]]:
            default_known.add(place[0])
        if record.result.status is Status.OK:
            median.setdefault(place, []).append(record.result.latency_s)
            if "verify" in record.result.phases_s:
                verified.add(place)
        elif record.result.status is Status.WRONG_OUTPUT:
            wrong.add(place)
    best: dict[str, tuple[float, Mapping[str, KnobValue]]] = {}
    default_s: dict[str, float] = {}
    for place, latencies in median.items():
        key, latency = place[0], min(latencies)
        if configs[place] == model.defaults[key]:
            default_s[key] = latency
        elif place in older and key not in default_known:
            continue
        elif place in verified - wrong and latency < best.get(key, (float("inf"),))[0]:
            best[key] = (latency, configs[place])
    return {
        key: config
        for key, (latency, config) in best.items()
        if latency <= _CLEAR_GAIN * default_s.get(key, float("inf"))
    }
