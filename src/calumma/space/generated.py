"""The design space that MetaSchedule generates for a PrimFunc: for whatever has no template of its own.

TVM's schedule rules turn the function into a few *sketches*: traces whose sampling instructions are left open. Every
sampling decision is a knob here:

    sketch       which trace
    tile_i       SamplePerfectTile: the factorisations of a loop's extent, outermost factor first ("8,1,2,16")
    choice_i     SampleCategorical: an index into its candidates (the largest loop body to unroll)
    location_i   SampleComputeLocation: -1 on its own, n under loop n of the consumer, -2 inline

Sketches mostly ask the same questions, with or without a buffer for the results of a tile. The k-th decision of one
kind over one list of values is therefore one knob in all of them: a step from sketch to sketch keeps the tiles, and
what was learnt of a tile in one sketch serves in the others. A knob the chosen sketch does not have stays at index 0.

A location that the other decisions rule out means the next one outside it, as in MetaSchedule.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.s_tir import meta_schedule as ms

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import Indices
from calumma.core.values import KnobValue
from calumma.space import blocks, loops
from calumma.space.base import Knob, KnobSpace
from calumma.target import Target

_SEED = 1
"""Of the decisions that generation draws; none of them is kept."""
_SAMPLING_ROUNDS = 16
_REDUCTION_PARTS = 2
"""Factors of a reduction loop; a spatial loop has more."""
_OUTER_VECTORS = 2
"""Vectors of the last spatial loop in a default's tile: the rest of the accumulators is of other loops."""
_DENSE_OPERATIONS = 16
"""Operations per value read or written, from which tiles matter more than the order of memory."""


@dataclass(frozen=True)
class Decision:
    """One open question of a sketch."""

    kind: str
    """"tile", "choice" or "location"."""
    values: tuple[KnobValue, ...]
    steps: tuple[int, ...] = ()
    """What the values of a "choice" stand for."""


@dataclass(frozen=True)
class Sketch:
    """A trace without postprocessing, simplified as MetaSchedule's search stores it, and its decisions in order."""

    trace: Any
    decisions: tuple[Decision, ...]


class GeneratedSpace(KnobSpace):
    """Sketches and their sampling decisions. The rules ask for the number of threads: so may the sketches."""

    template = "generated"
    version = 1

    def __init__(
        self,
        func: tirx.PrimFunc,
        target: Target,
        threads: int = 1,
        *,
        traces: Sequence[Any] | None = None,
        postprocs: Sequence[Any] = (),
    ) -> None:
        """Generate the sketches with the rules of plain LLVM targets, or take them from a tuner that has its own.

        Args:
            func: the unscheduled function.
            target, threads: what it is compiled for.
            traces: sketches that a space generator of MetaSchedule made for `func`; None to generate them.
            postprocs: that generator's postprocessors, initialised; only with `traces`.
        """
        self.func = func
        self.target = target
        self.threads = threads
        if traces is None:
            generator = _generator(func, target, threads)
            traces = [sketch.trace for sketch in generator.generate_design_space(_module(func))]
            postprocs = generator.postprocs
        self._postprocs = tuple(postprocs)
        self.sketches = tuple(_sketch(trace, func) for trace in traces)
        named: dict[str, Decision] = {}
        self._names: list[tuple[str, ...]] = []
        """Names of each sketch's knobs, in the order of its decisions."""
        ordinals: dict[tuple[Decision, int], str] = {}
        for sketch in self.sketches:
            seen: Counter[Decision] = Counter()
            names = []
            for decision in sketch.decisions:
                place = (decision, seen[decision])
                seen[decision] += 1
                if place not in ordinals:
                    ordinals[place] = f"{decision.kind}_{sum(d.kind == decision.kind for d in named.values())}"
                    named[ordinals[place]] = decision
                names.append(ordinals[place])
            self._names.append(tuple(names))
        self._decisions = named
        super().__init__(
            (
                Knob("sketch", tuple(range(len(self.sketches)))),
                *(Knob(name, decision.values) for name, decision in named.items()),
            )
        )
        self._foreign = np.array([[False, *(name not in names for name in named)] for names in self._names])
        """(sketches, knobs): whether a knob is none of the sketch's."""
        self._tables = [_feature_table(knob, named.get(knob.name)) for knob in self.knobs]

    def _valid(self, indices: Indices) -> NDArray[np.bool_]:
        return ~((indices != 0) & self._foreign[indices[:, 0]]).any(axis=1)

    def sample(self, rng: np.random.Generator, n: int) -> Indices:
        """Draw the sketch first, then its decisions: where sketches differ, few points of the product are valid."""
        found = np.empty((0, len(self.knobs)), dtype=np.int32)
        for _ in range(_SAMPLING_ROUNDS):
            draws = rng.integers(0, self._counts, size=(max(2 * n, 64), len(self.knobs))).astype(np.int32)
            draws[self._foreign[draws[:, 0]]] = 0
            found = np.concatenate([found, draws])
            _, first = np.unique(found, axis=0, return_index=True)
            found = found[np.sort(first)]
            if len(found) >= n:
                return found[:n]
        return super().sample(rng, n)

    # -- knowledge about a configuration ----------------------------------------------------------

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One column per sketch; log2 of every factor of a tile; log2(1 + steps) of a choice; locations as they are;
        and log2 of the products of spatial and of reduction factors at each level of tiling."""
        return tuple(name for names, _ in self._tables for name in names) + tuple(self._levels)

    @functools.cached_property
    def _levels(self) -> dict[str, list[tuple[int, int]]]:
        """Name of a tiling level -> (knob, factor) of the factors that belong to it."""
        levels: dict[str, list[tuple[int, int]]] = {}
        for d, knob in enumerate(self.knobs):
            decision = self._decisions.get(knob.name)
            if decision is not None and decision.kind == "tile":
                parts = len(_factors(decision.values[0]))
                kind = "reduction" if parts == _REDUCTION_PARTS else "spatial"
                for level in range(parts):
                    levels.setdefault(f"{kind}_{level}", []).append((d, level))
        return levels

    def features(self, indices: Indices) -> NDArray[np.float32]:
        rows = [table[indices[:, d]] for d, (_, table) in enumerate(self._tables)]
        products = [
            np.sum([rows[d][:, level] for d, level in members], axis=0)[:, None] for members in self._levels.values()
        ]
        return np.concatenate([*rows, *products], axis=1).astype(np.float32)

    def default(self) -> Indices:
        """Register tiles by the rule of thumb that holds for every dense loop nest.

        What reads the results is computed tile by tile. The last spatial loop's innermost factor is a vector, inner
        factors of the spatial loops make about eight accumulators; as many steps of the reduction are unrolled with
        them as the largest unroll limit allows, at most four of one loop. All else stays in the outermost loops, for
        the threads. Producers are computed on their own.
        """
        sketch = max(range(len(self.sketches)), key=lambda s: (self._is_fused(s), len(self.sketches[s].decisions)))
        config = {knob.name: knob.values[0] for knob in self.knobs} | {"sketch": sketch}
        costs = self.target.costs.loops
        accumulators, unrolled, vectorised = 1, 1, False
        for name in reversed(self._names[sketch]):
            decision = self._decisions[name]
            if decision.kind == "choice":
                config[name] = decision.values[decision.steps.index(max(decision.steps))]
            if decision.kind != "tile":
                continue
            extent, parts = math.prod(_factors(decision.values[0])), len(_factors(decision.values[0]))
            if parts == _REDUCTION_PARTS:
                inner = loops.largest_divisor(extent, min(costs.generated_steps, costs.generated_unrolled // unrolled))
                unrolled *= inner
                factors = [extent // inner, inner]
            else:
                vector = 1 if vectorised else loops.largest_divisor(extent, self.target.lanes)
                most = costs.generated_accumulators // accumulators if vectorised else _OUTER_VECTORS
                more = loops.largest_divisor(extent // vector, most)
                accumulators *= more
                vectorised = True
                factors = [extent // vector // more, *[1] * (parts - 3), more, vector]
            config[name] = ",".join(map(str, factors))
        return self.encode(config)

    def _is_fused(self, sketch: int) -> bool:
        """Whether a sketch computes a consumer under the tiles of its producer."""
        return any(str(step.kind.name) == "ReverseComputeAt" for step in self.sketches[sketch].trace.insts)

    # -- applying a configuration -----------------------------------------------------------------

    def schedule(self, config: Mapping[str, KnobValue]) -> s_tir.Schedule:
        """Replay the sketch with these decisions, then TVM's postprocessors.

        Raises:
            ScheduleError: TVM cannot apply the sketch with these decisions.
            InputError: a postprocessor refuses the result.
        """
        complete = self.decode(self.encode(config))
        which = int(complete["sketch"])
        decisions = iter([_decided(self._decisions[name], complete[name]) for name in self._names[which]])
        sch = blocks.schedule_of(self.func)
        _replay(self.sketches[which].trace, sch, decisions)
        sch.enter_postproc()
        for postproc in self._postprocs:
            if not postproc.apply(sch):
                raise InputError(f"{type(postproc).__name__} refuses configuration {complete}: choose another one")
        return sch

    # -- MetaSchedule's own form ------------------------------------------------------------------

    def config_of(self, instructions: list[Any], decisions: Mapping[int, Any]) -> dict[str, KnobValue] | None:
        """The configuration of a trace given as data; None if it is no sketch of this space or decides otherwise.

        Args:
            instructions: what `Trace.as_json` gives for a trace without postprocessing, as plain JSON values.
            decisions: position of an instruction -> its decision, plain JSON values.
        """
        for which, sketch in enumerate(self.sketches):
            if plain(sketch.trace.as_json()[0]) != instructions:
                continue
            positions = [i for i, instruction in enumerate(instructions) if instruction[0] in _KINDS]
            if set(positions) != set(decisions):
                return None
            config: dict[str, KnobValue] = {knob.name: knob.values[0] for knob in self.knobs} | {"sketch": which}
            for name, position in zip(self._names[which], positions, strict=True):
                value = _recorded(decisions[position])
                if value not in self._decisions[name].values:
                    return None
                config[name] = value
            return config
        return None


_KINDS = {"SamplePerfectTile": "tile", "SampleCategorical": "choice", "SampleComputeLocation": "location"}


def matches(func: tirx.PrimFunc) -> bool:
    """Whether some reduction combines several operands and computes much from little data: what tiling is for.

    Contractions and convolutions of any rank do; sums, means and poolings read everything once or nearly so.
    """
    if not loops.is_regular(func):
        return False
    sch = s_tir.Schedule(func)
    return any(loops.is_reduction(sch, block) and _is_dense(sch, block) for block in loops.blocks_of(sch))


def _is_dense(sch: s_tir.Schedule, block: Any) -> bool:
    node = sch.get(block)
    read = [region.source for region in node.reads if not region.source.same_as(node.writes[0].source)]
    values = sum(math.prod(int(extent) for extent in buffer.shape) for buffer in (*read, node.writes[0].source))
    return len(read) > 1 and loops.points(sch, block) * loops.operations(sch, block) >= _DENSE_OPERATIONS * values


def plain(value: Any) -> Any:
    """A JSON value out of TVM's containers and immediates."""
    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, int | float) or value is None:
        return value
    return [plain(member) for member in value]


def _module(func: tirx.PrimFunc) -> tvm.IRModule:
    return tvm.IRModule({"main": func})


def _generator(func: tirx.PrimFunc, target: Target, threads: int) -> Any:
    """MetaSchedule's space generator with the rules of plain LLVM targets, set up for a target.

    The rules that CPU families add are for int8 dot products. Of the usual postprocessors RewriteLayout is left out: it
    repacks operands inside the function. The class `TuneContext` would import every tensor intrinsic of every target,
    which takes many seconds; the object behind it does not need them.
    """
    generator = ms.space_generator.PostOrderApply(
        sch_rules=ms.ScheduleRule.create("llvm"),
        postprocs=[
            ms.postproc.DisallowDynamicLoop(),
            ms.postproc.RewriteParallelVectorizeUnroll(),
            ms.postproc.RewriteReductionBlock(),
        ],
        mutator_probs={},
    )
    make = tvm.get_global_func("s_tir.meta_schedule.TuneContext")
    tvm_target = tvm_compat.tvm_target(target, threads)
    context = make(_module(func), tvm_target, generator, None, "main", 1, _SEED, None)
    tvm.get_global_func("s_tir.meta_schedule.TuneContextInitialize")(context)
    return generator


def _sketch(trace: Any, func: tirx.PrimFunc) -> Sketch:
    """Read the decisions of a generated trace off a replay: extents and loops are known only there."""
    simplified = trace.simplified(remove_postproc=True)
    sch = blocks.schedule_of(func)
    found: list[Decision] = []

    def note(instruction: Any, inputs: Any, attributes: Any, decision: Any) -> Any:
        kind = _KINDS.get(str(instruction.kind.name))
        if kind == "tile":
            values = _factorisations(int(sch.get(inputs[0]).extent), int(attributes[0]), int(attributes[1]))
            found.append(Decision(kind, tuple(",".join(map(str, value)) for value in values)))
        elif kind == "choice":
            steps = tuple(int(candidate) for candidate in attributes[0])
            found.append(Decision(kind, tuple(range(len(steps))), steps))
        elif kind == "location":
            consumers = sch.get_consumers(inputs[0])
            depth = len(sch.get_loops(consumers[0])) if consumers else 0
            found.append(Decision(kind, (-1, *range(depth), -2)))
        return decision

    simplified.apply_to_schedule(sch, True, note)
    return Sketch(simplified, tuple(found))


def _replay(trace: Any, sch: s_tir.Schedule, decisions: Iterator[Any]) -> None:
    """Apply a trace with other decisions, given in the order of its sampling instructions."""

    def decide(instruction: Any, inputs: Any, attributes: Any, decision: Any) -> Any:
        return next(decisions) if str(instruction.kind.name) in _KINDS else decision

    trace.apply_to_schedule(sch, True, decide)


@functools.lru_cache(maxsize=256)
def _factorisations(extent: int, parts: int, max_innermost: int) -> tuple[tuple[int, ...], ...]:
    """All ways to write `extent` as an ordered product of `parts` factors, the last at most `max_innermost`.

    Ordered by the innermost factor, then the next: the first leaves the whole extent in the outermost loop.
    """
    if parts == 1:
        return ((extent,),)
    return tuple(
        (*outer, inner)
        for inner in blocks.divisors(extent, max_innermost if max_innermost > 0 else None)
        for outer in _factorisations(extent // inner, parts - 1, -1)
    )


def _factors(value: KnobValue) -> tuple[int, ...]:
    return tuple(map(int, str(value).split(",")))


def _decided(decision: Decision, value: KnobValue) -> Any:
    """A knob's value as TVM takes it."""
    return list(_factors(value)) if decision.kind == "tile" else int(value)


def _recorded(decision: Any) -> KnobValue | None:
    """A decision found in a record as a knob's value; None for what no decision can be."""
    if type(decision) is int:
        return decision
    if type(decision) is list and decision and all(type(factor) is int for factor in decision):
        return ",".join(map(str, decision))
    return None


def _feature_table(knob: Knob, decision: Decision | None) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and values (n_values, width) of what one knob says by itself."""
    if decision is None:
        return tuple(f"{knob.name}_{value}" for value in knob.values), np.eye(len(knob.values), dtype=np.float32)
    if decision.kind == "tile":
        table = np.log2(np.array([_factors(value) for value in knob.values], dtype=np.float32))
        return tuple(f"{knob.name}_{level}" for level in range(table.shape[1])), table
    if decision.kind == "choice":
        return (knob.name,), np.log2(1.0 + np.array(decision.steps, dtype=np.float32))[:, None]
    return (knob.name,), np.array(knob.values, dtype=np.float32)[:, None]
