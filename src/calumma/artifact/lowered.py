"""A model as scheduled kernels, and how its Relax function is read as a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.artifact.plan import AnyStep, Branch, Loop, Plan, Refusal, Section, Step
from calumma.artifact.storages import Storages
from calumma.core.errors import InternalError
from calumma.core.values import TensorSpec
from calumma.tvm_compat import marks


@dataclass(frozen=True)
class LoweredModel:
    """A model as a sequence of scheduled kernels, ready for code generation."""

    mod: Any
    """`tvm.IRModule`. Its Relax function `main(inputs..., params...)` calls the module's PrimFuncs by `R.call_tir` and
    returns a tensor or a tuple: the outputs, then the run-time extents of their bounded axes in order, int64 scalars.
    `R.reshape` costs nothing, nor does `R.concat`, whose parts must be results of kernels that lie side by side in
    memory; control flow is marked (`tvm_compat.marks`). It holds no constants: every weight is a parameter."""
    params: tuple[NDArray, ...]
    """The weights, in order."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: hash of the model, hardware, versions, schedules and latencies per task."""


def read_plan(lowered: LoweredModel) -> Plan:
    """Read `main` as a list of kernel calls and give every tensor its place.

    Raises:
        InternalError: `main` does something else than call kernels, or does not fit the model's inputs and outputs.
    """
    function = lowered.mod["main"]
    n_inputs = len(lowered.inputs)
    if len(function.params) != n_inputs + len(lowered.params):
        raise InternalError(
            f"main takes {len(function.params)} arguments, expected {n_inputs} inputs and {len(lowered.params)} weights"
        )
    reader = _Reader()
    params = [reader.define(param, "arena" if i < n_inputs else "weights") for i, param in enumerate(function.params)]
    for block in function.body.blocks:
        for binding in block.bindings:
            reader.bind(binding)
    plan = reader.plan(lowered, params, tuple(_flat(reader.value(function.body.body))))
    for kind, specs, indices in (("input", plan.inputs, plan.input_slots), ("output", plan.outputs, plan.output_slots)):
        found = [(plan.slots[i].shape, plan.slots[i].dtype) for i in indices]
        if found != [(spec.shape, spec.dtype) for spec in specs]:
            raise InternalError(f"main has {kind}s {found}, expected {list(specs)}")
    for spec, indices in zip(plan.outputs, plan.output_extents, strict=True):
        found = [(plan.slots[i].shape, plan.slots[i].dtype) for i in indices]
        if found != [((), "int64")] * len(spec.bounded_axes):
            raise InternalError(f"main has extents {found} of output {spec.name}, expected one int64 scalar per axis")
    return plan


_Value = int | tuple
"""What a Relax variable stands for: the index of a tensor, or a tuple of such values."""


@dataclass
class _Region:
    """A region of `main` that is being read: a loop's, or one of a branch's two."""

    condition: int
    """Its tensor."""
    first_step: int
    outer: list[AnyStep]
    """The steps around it."""
    state: tuple[int, ...] = ()
    """Of a loop."""
    then: tuple[AnyStep, ...] = ()
    """The first region of a branch, when the second is read; and its results."""
    results: tuple[int, ...] = ()


class _Reader:
    """Walks the bindings of `main` in order and collects kernel calls, tensors and how long these are needed."""

    def __init__(self) -> None:
        self.relax = tvm_compat.load().relax
        self.values: dict[Any, _Value] = {}
        self.storages = Storages()
        self.steps: list[AnyStep] = []
        self.regions: list[_Region] = []
        self.now = 0
        """Kernel calls so far."""

    def define(self, param: Any, section: Section) -> int:
        """A parameter of `main`."""
        index = self.storages.new(_shape(param.ty), str(param.ty.dtype), section)
        self.values[param] = index
        return index

    def bind(self, binding: Any) -> None:
        value, kind = binding.value, binding.var.ty
        operator = _name(value)
        if operator == "relax.call_tir":
            self.values[binding.var] = self.call(value, kind)
        elif operator == "relax.reshape":
            (source,) = _flat(self.value(value.args[0]))
            self.values[binding.var] = self.storages.view(source, _shape(kind))
        elif operator == "relax.concat":
            parts = tuple(_flat(self.value(value.args[0])))
            self.values[binding.var] = self.storages.joined(parts, _shape(kind), str(kind.dtype))
        elif marks.mark(value):
            self.values[binding.var] = self.mark(marks.mark(value), value.args)
        else:
            self.values[binding.var] = self.value(value)

    def call(self, call: Any, result: Any) -> _Value:
        kernel = str(call.args[0].name_hint)
        if len(call.args) > 2:
            raise InternalError(f"kernel {kernel} takes symbolic shapes, expected fixed ones")
        outputs = self.allocate(result)
        slots = (*_flat(self.value(call.args[1])), *_flat(outputs))
        for slot in slots:
            self.storages.use(slot, self.now)
        self.steps.append(Step(kernel, slots))
        self.now += 1
        return outputs

    def allocate(self, kind: Any) -> _Value:
        """New tensors for the result of the next kernel."""
        if isinstance(kind, self.relax.TupleType):
            return tuple(self.allocate(part) for part in kind.fields)
        return self.storages.new(_shape(kind), str(kind.dtype), step=self.now)

    # -- control flow -----------------------------------------------------------------------------

    def mark(self, kind: str, args: Sequence[Any]) -> _Value:
        """What a mark of `tvm_compat.marks` stands for."""
        if kind == marks.REFUSE:
            self.steps.append(Refusal(str(args[0].value)))
            return ()
        if kind == marks.LOOP:
            return self.loop(tuple(_flat(self.value(args[0]))))
        tensors = [tuple(_flat(self.value(arg))) for arg in args]
        if kind == marks.BRANCH:
            ((condition,),) = tensors
            self.open(_Region(condition, self.now, self.steps))
            return ()
        if kind == marks.OTHERWISE:
            region = self.regions[-1]
            region.then, region.results = self.closed(), tuple(chain(*tensors))
            self.steps = []
            return ()
        if kind == marks.JOIN:
            return self.join(tuple(chain(*tensors)))
        if kind == marks.REPEAT:
            state, sources, stacked = tensors
            return self.repeat(state, sources, stacked)
        raise InternalError(f"main contains {kind}, expected one of the marks of control flow")

    def open(self, region: _Region) -> None:
        self.storages.use(region.condition, self.now)
        self.regions.append(region)
        self.steps = []

    def closed(self) -> tuple[AnyStep, ...]:
        return tuple(self.steps)

    def join(self, results: tuple[int, ...]) -> _Value:
        """The end of a branch: what its two regions give lies on the same bytes."""
        region = self.regions.pop()
        for one, other in zip(region.results, results, strict=True):
            self.storages.unite(one, other)
        region.outer.append(Branch(region.condition, region.then, self.closed()))
        self.steps = region.outer
        return results

    def loop(self, state: tuple[int, ...]) -> _Value:
        self.open(_Region(state[0], self.now, self.steps, state))
        return state

    def repeat(self, following: tuple[int, ...], sources: tuple[int, ...], stacked: tuple[int, ...]) -> _Value:
        """The end of a loop: the next state lies on the bytes of the last one, by a copy where it has to."""
        region = self.regions.pop()
        storages = self.storages
        for old, new, source in zip(region.state, following, sources, strict=True):
            if storages.same(old, new):
                continue
            held = any(storages.same(source, other) for other in region.state)
            if not held and storages.replaceable(old, source, region.first_step):
                self.steps = [step for step in self.steps if not (isinstance(step, Step) and step.slots[-1] == new)]
                storages.unite(old, source)
            storages.unite(old, new)
        for tensor in stacked:
            storages.stretch(tensor, region.first_step, self.now)
        storages.keep_through(region.first_step, self.now - 1)
        storages.use(region.condition, self.now)
        region.outer.append(Loop(region.condition, self.closed()))
        self.steps = region.outer
        return (*region.state, *stacked)

    # -- what comes out ---------------------------------------------------------------------------

    def value(self, expression: Any) -> _Value:
        relax = self.relax
        if isinstance(expression, relax.Var):
            return self.values[expression]
        if isinstance(expression, relax.Tuple):
            return tuple(self.value(part) for part in expression.fields)
        if isinstance(expression, relax.TupleGetItem):
            parts = self.value(expression.tuple_value)
            assert isinstance(parts, tuple)
            return parts[expression.index]
        raise InternalError(
            f"main contains {_name(expression)}, expected call_tir, reshape and tuples of their results alone"
        )

    def plan(self, lowered: LoweredModel, params: Sequence[int], returned: tuple[int, ...]) -> Plan:
        for slot in returned:
            self.storages.use(slot, self.now)
        outputs = returned[: len(lowered.outputs)]
        extents = iter(returned[len(lowered.outputs) :])
        slots, arena_bytes, weights_bytes = self.storages.placed()
        n_inputs = len(lowered.inputs)
        return Plan(
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            input_slots=tuple(params[:n_inputs]),
            output_slots=outputs,
            param_slots=tuple(params[n_inputs:]),
            slots=slots,
            steps=tuple(self.steps),
            arena_bytes=arena_bytes,
            weights_bytes=weights_bytes,
            input_views=self.storages.views(params[:n_inputs], returned),
            output_views=self.storages.views(outputs, (*params, *returned[len(outputs) :])),
            output_extents=tuple(tuple(islice(extents, len(spec.bounded_axes))) for spec in lowered.outputs),
        )


def _flat(value: _Value) -> Iterator[int]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _shape(kind: Any) -> tuple[int, ...]:
    dimensions = tuple(kind.shape)
    if not all(hasattr(dimension, "value") for dimension in dimensions):
        raise InternalError(f"main has a tensor of shape {dimensions}, expected fixed dimensions")
    return tuple(int(dimension) for dimension in dimensions)


def _name(expression: Any) -> str:
    """The operator that an expression calls, or the kind of expression it is."""
    return str(getattr(getattr(expression, "op", None), "name", type(expression).__name__))
