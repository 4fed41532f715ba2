"""A model as scheduled kernels, and how its Relax function is read as a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.artifact.plan import Lifetime, Plan, Section, Slot, Step, align, place, tensor_bytes
from calumma.core.errors import InternalError
from calumma.core.values import TensorSpec


@dataclass(frozen=True)
class LoweredModel:
    """A model as a sequence of scheduled kernels, ready for code generation."""

    mod: Any
    """`tvm.IRModule`. Its Relax function `main(inputs..., params...)` calls the module's PrimFuncs by `R.call_tir` and
    returns a tensor or a tuple; `R.reshape` costs nothing, nor does `R.concat`, whose parts must be results of kernels
    that lie side by side in memory. It holds no constants: every weight is a parameter."""
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
    return plan


_Value = int | tuple
"""What a Relax variable stands for: the index of a tensor, or a tuple of such values."""


@dataclass
class _Storage:
    """Bytes that one or more tensors share: a reshape shares those of its argument."""

    section: Section
    size_bytes: int
    first_step: int
    last_step: int
    parent: int | None = None
    """The storage this one is a part of: that of a concatenation it was written into."""
    offset: int = 0
    """Bytes from the start of the parent."""


class _Reader:
    """Walks the bindings of `main` in order and collects tensors, the lifetimes of their storage, and kernel calls.

    Step -1 is the entry, where inputs are written.
    """

    def __init__(self) -> None:
        self.relax = tvm_compat.load().relax
        self.values: dict[Any, _Value] = {}
        self.tensors: list[tuple[int, tuple[int, ...], str]] = []  # storage, shape, dtype
        self.storages: list[_Storage] = []
        self.steps: list[Step] = []

    def define(self, param: Any, section: Section) -> int:
        """A parameter of `main`."""
        index = self.new(param.ty, section)
        self.values[param] = index
        return index

    def bind(self, binding: Any) -> None:
        value, kind = binding.value, binding.var.ty
        operator = _name(value)
        if operator == "relax.call_tir":
            self.values[binding.var] = self.call(value, kind)
        elif operator == "relax.reshape":
            (source,) = _flat(self.value(value.args[0]))
            storage, _, dtype = self.tensors[source]
            self.values[binding.var] = self.add(storage, _shape(kind), dtype)
        elif operator == "relax.concat":
            self.values[binding.var] = self.concat(tuple(_flat(self.value(value.args[0]))), kind)
        else:
            self.values[binding.var] = self.value(value)

    def call(self, call: Any, result: Any) -> _Value:
        kernel = str(call.args[0].name_hint)
        if len(call.args) > 2:
            raise InternalError(f"kernel {kernel} takes symbolic shapes, expected fixed ones")
        step = len(self.steps)
        outputs = self.allocate(result, step)
        slots = (*_flat(self.value(call.args[1])), *_flat(outputs))
        for slot in slots:
            self.storages[self.tensors[slot][0]].last_step = step
        self.steps.append(Step(kernel, slots))
        return outputs

    def concat(self, parts: Sequence[int], kind: Any) -> int:
        """The parts side by side: each becomes a range of one storage, and its kernel writes there at once."""
        result = self.new(kind, "arena")
        parent, offset = len(self.storages) - 1, 0
        for part in parts:
            index, shape, dtype = self.tensors[part]
            storage = self.storages[index]
            if storage.section != "arena" or storage.parent is not None or storage.first_step < 0:
                raise InternalError(
                    f"part {shape} of a concatenation cannot be placed: an input, a weight or placed twice"
                )
            storage.parent, storage.offset = parent, offset
            offset += tensor_bytes(shape, dtype)
        self.storages[parent].first_step = min(self.storages[self.tensors[part][0]].first_step for part in parts)
        return result

    def allocate(self, kind: Any, step: int) -> _Value:
        """New tensors for the result of a kernel."""
        if isinstance(kind, self.relax.TupleType):
            return tuple(self.allocate(part, step) for part in kind.fields)
        return self.new(kind, "arena", step)

    def new(self, kind: Any, section: Section, step: int = -1) -> int:
        shape, dtype = _shape(kind), str(kind.dtype)
        self.storages.append(_Storage(section, tensor_bytes(shape, dtype), step, step))
        return self.add(len(self.storages) - 1, shape, dtype)

    def add(self, storage: int, shape: tuple[int, ...], dtype: str) -> int:
        self.tensors.append((storage, shape, dtype))
        return len(self.tensors) - 1

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

    def plan(self, lowered: LoweredModel, params: Sequence[int], outputs: tuple[int, ...]) -> Plan:
        for output in outputs:
            self.storages[self.tensors[output][0]].last_step = len(self.steps)
        for storage in self.storages:  # a parent comes after its parts
            if storage.parent is not None:
                whole = self.storages[storage.parent]
                whole.first_step = min(whole.first_step, storage.first_step)
                whole.last_step = max(whole.last_step, storage.last_step)
        arena = [storage for storage in self.storages if storage.section == "arena" and storage.parent is None]
        offsets, arena_bytes = place([Lifetime(s.size_bytes, s.first_step, s.last_step) for s in arena])
        in_arena = iter(offsets)
        weights_bytes = 0
        starts = []
        for storage in self.storages:
            if storage.parent is not None:
                starts.append(0)
            elif storage.section == "arena":
                starts.append(next(in_arena))
            else:
                starts.append(weights_bytes)
                weights_bytes += align(storage.size_bytes)
        for index in reversed(range(len(self.storages))):
            storage = self.storages[index]
            if storage.parent is not None:
                starts[index] = starts[storage.parent] + storage.offset
        n_inputs = len(lowered.inputs)
        return Plan(
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            input_slots=tuple(params[:n_inputs]),
            output_slots=outputs,
            param_slots=tuple(params[n_inputs:]),
            slots=tuple(Slot(self.storages[s].section, starts[s], shape, dtype) for s, shape, dtype in self.tensors),
            steps=tuple(self.steps),
            arena_bytes=arena_bytes,
            weights_bytes=weights_bytes,
            input_views=self.views(params[:n_inputs], outputs),
            output_views=self.views(outputs, params),
        )

    def views(self, slots: Sequence[int], others: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """For each slot all tensors in its storage; none if that is tied to its place.

        It is where it is a part of a concatenation, or also that of one of `others`, or of two of `slots`.
        """
        ends = Counter(self.tensors[slot][0] for slot in (*slots, *others))
        parents = {storage.parent for storage in self.storages}
        shown: dict[int, list[int]] = {}
        for index, (storage, _, _) in enumerate(self.tensors):
            shown.setdefault(storage, []).append(index)

        def of(storage: int) -> tuple[int, ...]:
            is_tied = storage in parents or self.storages[storage].parent is not None or ends[storage] > 1
            return () if is_tied else tuple(shown[storage])

        return tuple(of(self.tensors[slot][0]) for slot in slots)


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
