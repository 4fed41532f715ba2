"""What ONNX operators make of values whose extent along some axes is known at run time only.

An operator that is not listed here refuses such a value: what lies behind its end would get into the result. The
functions here import a node by its rule and say which extents the results have; some give the rule an input whose rest
is filled with what changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from calumma.extents import run_time_extents as extents
from calumma.extents.run_time_extents import refuse
from calumma.graph.build import expression
from calumma.graph.nodes import Node
from calumma.onnx_import import run_time_shapes
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import OnnxRule, Result
from calumma.semantics import movement

_Carrier = Callable[[OnnxNode, Sequence[Node | None], Sequence[Node]], dict[int, Node]]
"""(node, its inputs, its results) -> the extents of each result."""


def imported(node: OnnxNode, rule: OnnxRule) -> Result:
    """What a rule makes of a node, with the extents of its results.

    Raises:
        ModelError: the operator is not safe on the extents of an input.
    """
    made = run_time_shapes.shaped(node)
    if made is not None:
        return made
    result = _imported(node, rule)
    return run_time_shapes.followed(node, [result] if isinstance(result, Node) else result)


def _imported(node: OnnxNode, rule: OnnxRule) -> Result:
    if not any(given is not None and given.extents for given in node.operands):
        return rule(node)
    if node.proto.domain or node.op not in _OPERATORS:
        index, axis = next((i, min(x.extents)) for i, x in enumerate(node.operands) if x is not None and x.extents)
        raise refuse(axis, f"the operator does not allow for that in input {index}")
    return _OPERATORS[node.op](node, rule)


def _carrying(carrier: _Carrier) -> Callable[[OnnxNode, OnnxRule], Result]:
    def imported(node: OnnxNode, rule: OnnxRule) -> Result:
        return _carried(node, rule, carrier)

    return imported


def _carried(node: OnnxNode, rule: OnnxRule, carrier: _Carrier) -> Result:
    result = rule(node)
    results = [result] if isinstance(result, Node) else list(result)
    with node.looked_at():
        found = carrier(node, node.operands, [given for given in results if given is not None])
    return [given if given is None else _given(given, node, found) for given in results]


def _given(result: Node, node: OnnxNode, found: dict[int, Node]) -> Node:
    """A result with extents; another node where it is an input with others."""
    if result.extents == found:
        return result
    return extents.bounded(extents.fresh(result) if result in node.operands else result, found)


# -- elements, rows and images ----------------------------------------------------------------------


def _elementwise(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    return extents.elementwise(results[0].shape, [given for given in inputs if given is not None])


def _of_rows(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    """What computes every entry of the first axis by itself."""
    data = _only_first(inputs)
    if results[0].shape[0] != data.shape[0]:
        raise refuse(0, "the result has more or fewer")
    return extents.without(data.extents, range(1, len(data.shape)), len(data.shape), kept=True)


def _of_norm(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    rank = len(data.shape)
    return extents.without(data.extents, range(node.axis(rank, default=-1), rank), rank, kept=True)


def _of_batch_norm(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    if node.attribute("training_mode", 0):
        raise refuse(0, "statistics are taken of all of it")
    return _of_rows(node, inputs, results)


def _only_first(inputs: Sequence[Node | None]) -> Node:
    """The first input, where the others have no extents of their own."""
    data, *others = inputs
    for other in others:
        if other is not None and other.extents:
            raise refuse(min(other.extents), "the operator allows for that in its first input alone")
    assert data is not None
    return data


def _of_scan(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    axis = node.normalised_axis(int(node.constant(1, "axis")), len(data.shape))
    if node.attribute("reverse", 0) and axis in data.extents:
        raise refuse(axis, "it is summed up from its end")
    return dict(data.extents)


def _softmax(node: OnnxNode, rule: OnnxRule) -> Result:
    data = _only_first(node.operands)
    with node.looked_at():
        axis = node.axis(len(data.shape), default=-1 if node.version >= 13 else 1)
    together = [axis] if node.version >= 13 else range(axis, len(data.shape))
    filled = extents.masked(data, together, -math.inf)
    return _carried(node.with_input(0, filled), rule, lambda node, inputs, results: dict(data.extents))


def _product(node: OnnxNode, rule: OnnxRule) -> Result:
    """MatMul; rows behind the end of what is summed over count as zero."""
    left, right = (given for given in node.operands if given is not None)
    if min(len(left.shape), len(right.shape)) < 2:
        raise refuse(0, "a vector is multiplied")
    inner = len(left.shape) - 1, len(right.shape) - 2
    ends = left.extents.get(inner[0]), right.extents.get(inner[1])
    if ends[0] is not ends[1]:
        raise refuse(inner[0], "what it is multiplied with has another extent there")
    filled = node.with_input(0, extents.masked(left, inner[:1], 0)).with_input(1, extents.masked(right, inner[1:], 0))

    def carrier(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
        rank = len(results[0].shape)
        batches = [_batch_of(side) for side in (left, right)]
        found = extents.elementwise(results[0].shape[:-2], batches)
        for side, own, axis in ((left, len(left.shape) - 2, rank - 2), (right, len(right.shape) - 1, rank - 1)):
            if own in side.extents:
                found[axis] = side.extents[own]
        return found

    return _carried(filled, rule, carrier)


def _batch_of(side: Node) -> Node:
    held = {axis: extent for axis, extent in side.extents.items() if axis < len(side.shape) - 2}
    return Node("batch", shape=side.shape[:-2], extents=held)


def _of_gemm(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    row = 1 if node.flag("transA", 0) else 0
    if any(axis != row for axis in data.extents):
        raise refuse(1 - row, "all along it is summed up")
    return {0: data.extents[row]}


# -- reductions -------------------------------------------------------------------------------------

_NEUTRAL: dict[str, Callable[[str], float | int | bool]] = {
    **dict.fromkeys(("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"), lambda dtype: 0),
    "ReduceMean": lambda dtype: 0,
    "ReduceProd": lambda dtype: 1,
    "ReduceLogSumExp": extents.lowest,
    **dict.fromkeys(("ReduceMax", "ArgMax"), extents.lowest),
    **dict.fromkeys(("ReduceMin", "ArgMin"), extents.highest),
}
"""Operator -> what changes nothing in a reduction over a type."""


def _reduction(node: OnnxNode, rule: OnnxRule) -> Result:
    data = _only_first(node.operands)
    rank = len(data.shape)
    with node.looked_at():
        axes = _reduced_axes(node, rank)
        kept = node.flag("keepdims")
        if node.op.startswith("Arg") and node.attribute("select_last_index", 0) and axes[0] in data.extents:
            raise refuse(axes[0], "the last of several extrema is looked for along it")
    ended = [axis for axis in axes if axis in data.extents]
    filled = extents.masked(data, ended, _NEUTRAL[node.op](data.dtype))
    rest = {axis: extent for axis, extent in data.extents.items() if axis not in ended}
    result = _carried(
        node.with_input(0, filled), rule, lambda node, inputs, results: extents.without(rest, axes, rank, kept=kept)
    )
    if node.op != "ReduceMean" or not ended:
        return result
    if not data.dtype.startswith("float"):
        raise refuse(ended[0], "a mean of integers is taken over it")
    (mean,) = result if isinstance(result, Sequence) else (result,)
    assert mean is not None
    return extents.bounded(_of_fewer(mean, data, ended), mean.extents)


def _of_fewer(mean: Node, data: Node, ended: Sequence[int]) -> Node:
    """A mean over whole axes, of which the rest was zero, as one over what is there."""
    whole = math.prod(data.shape[axis] for axis in ended)

    def scaled(x: te.Tensor, *ends: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            there = tirx.const(1, mean.dtype)
            for end in ends:
                there = there * end().astype(mean.dtype)
            return x(*i) * (tirx.const(whole, mean.dtype) / there)

        return te.compute(x.shape, element, name="scaled")

    return expression(scaled, mean, *(data.extents[axis] for axis in ended), name="scaled")


def _reduced_axes(node: OnnxNode, rank: int) -> tuple[int, ...]:
    if node.op.startswith("Arg"):
        return (node.axis(rank, default=0),)
    given = node.attribute("axes", None) if node.has_attribute("axes") else node.integers(1, "axes")
    if not given:
        return () if node.flag("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(node.normalised_axis(int(axis), rank) for axis in given)


# -- what moves elements ----------------------------------------------------------------------------


def _of_transpose(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    rank = len(data.shape)
    return extents.permuted(data.extents, node.attribute("perm", tuple(reversed(range(rank)))))


def _axes_given(node: OnnxNode, rank: int) -> tuple[int, ...] | None:
    given = node.attribute("axes") if node.has_attribute("axes") else node.integers(1, "axes")
    return None if given is None else tuple(node.normalised_axis(int(axis), rank) for axis in given)


def _of_squeeze(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    axes = _axes_given(node, len(data.shape))
    if axes is None:
        axes = tuple(axis for axis, size in enumerate(data.shape) if size == 1)
        if any(axis not in axes and axis in data.extents for axis in range(len(data.shape))):
            raise refuse(min(data.extents), "whether it is 1 decides the shape of the result")
    return extents.without(data.extents, axes, len(data.shape))


def _of_unsqueeze(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data, rank = _only_first(inputs), len(results[0].shape)
    return extents.expanded(data.extents, _axes_given(node, rank) or (), rank)


def _of_reshape(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    target = node.attribute("shape") if node.has_attribute("shape") else node.integers(1, "shape")
    assert target is not None
    free = target.index(-1) if -1 in target else None
    if not node.attribute("allowzero", 0):  # 0 keeps an axis
        free = next((axis for axis, size in enumerate(target) if size == 0 and axis in data.extents), free)
    return extents.reshaped(data, results[0].shape, free)


def _of_flatten(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    axis = int(node.attribute("axis"))
    split = axis if axis >= 0 else axis + len(data.shape)
    (own,) = data.extents if len(data.extents) == 1 else (None,)
    if own is None:
        raise refuse(max(data.extents), "others are as well where it is flattened")
    return extents.reshaped(data, results[0].shape, 0 if own < split else 1)


def _of_gather(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data, indices = (given for given in inputs if given is not None)
    return extents.gathered(data, indices, node.axis(len(data.shape), default=0))


def _of_gather_nd(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data, indices = (given for given in inputs if given is not None)
    last = len(indices.shape) - 1
    for owner, axes in ((data, data.extents), (indices, [last])):
        for axis in axes:
            if axis in owner.extents:
                raise refuse(axis, "indices that may count from its end are looked up there")
    return dict(indices.extents)


def _of_gather_elements(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data, indices = (given for given in inputs if given is not None)
    axis = node.axis(len(data.shape), default=0)
    if axis in data.extents:
        raise refuse(axis, "indices that may count from its end are looked up there")
    return dict(indices.extents)


def _scatter(node: OnnxNode, rule: OnnxRule) -> Result:
    """Updates behind the end are written behind the end of a longer tensor, which is cut off again."""
    data, index, updates = (given for given in node.operands if given is not None)
    slices = node.op == "ScatterND"
    with node.looked_at():
        axis = 0 if slices else node.axis(len(data.shape), default=0)
    if data.extents:
        raise refuse(min(data.extents), "indices that may count from its end are written there")
    if slices and len(index.shape) - 1 in index.extents:
        raise refuse(len(index.shape) - 1, "it decides which axes are written to")
    for own in {*index.extents, *updates.extents}:
        if index.extents.get(own) is not updates.extents.get(own):
            raise refuse(own, "indices and updates are not as many")
    size = data.shape[axis]
    longer = [size + 1 if own == axis else extent for own, extent in enumerate(data.shape)]
    filled = node.with_input(0, extents.filled(data, longer)).with_input(1, _behind(index, size, slices=slices))
    written = rule(filled)
    assert isinstance(written, Node)
    return movement.sliced(written, {axis: slice(0, size)})


def _behind(index: Node, size: int, *, slices: bool) -> Node:
    """Indices, counted from the start of an axis of this size, which is the index of those behind the end.

    Args:
        slices: whether the last axis of the indices holds tuples, of which the first number is for the axis.
    """
    axes = sorted(index.extents)

    def replaced(x: te.Tensor, *ends: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            inside = tirx.all(*(i[a].astype("int64") < end() for a, end in zip(axes, ends, strict=True)))
            given, width = x(*i), tirx.const(size, index.dtype)
            counted = tirx.Select(given < 0, given + width, given)
            counted = tirx.Select(inside, tirx.max(tirx.min(counted, width - 1), tirx.const(0, index.dtype)), width)
            return tirx.Select(i[-1] == 0, counted, given) if slices else counted

        return te.compute(x.shape, element, name="behind")

    return expression(replaced, index, *(index.extents[axis] for axis in axes), name="behind")


def _concat(node: OnnxNode, rule: OnnxRule) -> Result:
    parts = [given for given in node.operands if given is not None]
    with node.looked_at():
        axis = node.axis(len(parts[0].shape), default=1)
    if not any(axis in part.extents for part in parts):
        return _carried(node, rule, lambda node, inputs, results: extents.together(parts, axis))
    node.inputs()
    node.attribute("axis", 1)
    return extents.joined(parts, axis)


def _of_split(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    data = _only_first(inputs)
    return extents.without(data.extents, (node.axis(len(data.shape), default=0),), len(data.shape), kept=True)


def _of_repetition(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    """Expand, Tile and Pad, where they leave the axis as it is."""
    data, result = _only_first(inputs), results[0]
    added = len(result.shape) - len(data.shape)
    for axis in data.extents:
        if data.shape[axis] != result.shape[axis + added] or not _is_left(node, axis, axis - len(data.shape)):
            raise refuse(axis, "it is repeated or padded")
    return {axis + added: extent for axis, extent in data.extents.items()}


def _is_left(node: OnnxNode, axis: int, from_end: int) -> bool:
    """Whether the shape, the repeats or the pads that a node is given leave an axis of its input as it is.

    Args:
        axis, from_end: the axis, counted from the start and from the end.
    """
    if node.op == "Pad":
        if node.has_input(3):
            return False
        pads = node.attribute("pads") if node.has_attribute("pads") else node.integers(1, "pads")
        return pads is not None and pads[axis] == pads[axis + len(pads) // 2] == 0
    given = node.integers(1, "shape or repeats") or ()
    return -from_end > len(given) or given[from_end] == 1


def _of_one_hot(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    indices = _only_first(inputs)
    rank = len(results[0].shape)
    return extents.expanded(indices.extents, (node.axis(rank, default=-1),), rank)


def _of_regions(node: OnnxNode, inputs: Sequence[Node | None], results: Sequence[Node]) -> dict[int, Node]:
    """RoiAlign and MaxRoiPool: a result per region."""
    images, regions, *batches = inputs
    assert images is not None and regions is not None
    own = [regions.extents.get(0), *(given.extents.get(0) for given in batches if given is not None)]
    if images.extents or set(regions.extents) - {0} or any(extent is not own[0] for extent in own):
        raise refuse(0, "regions, their images or what they are cut from have another extent")
    return {0: regions.extents[0]}


def _by_itself(node: OnnxNode, rule: OnnxRule) -> Result:
    """An operator whose rule gives its results the extents that they have."""
    return rule(node)


_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos"),
    *(
        "Cosh",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
    ),
    *("LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign"),
    *("Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
_BINARY = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_OF_ROWS = (
    *("AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"),
    *("GroupNormalization", "InstanceNormalization", "LRN", "LpPool", "MaxPool", "Resize", "SpaceToDepth", "Upsample"),
)
_BY_THEMSELVES = ("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Shape", "Size", "Slice", "TopK", "Unique")
_CARRIERS: dict[str, Any] = {
    **dict.fromkeys((*_UNARY, *_BINARY), _elementwise),
    **dict.fromkeys(_OF_ROWS, _of_rows),
    "BatchNormalization": _of_batch_norm,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _of_norm),
    "Gemm": _of_gemm,
    "CumSum": _of_scan,
    "Transpose": _of_transpose,
    "Squeeze": _of_squeeze,
    "Unsqueeze": _of_unsqueeze,
    "Reshape": _of_reshape,
    "Flatten": _of_flatten,
    "Gather": _of_gather,
    "GatherND": _of_gather_nd,
    "GatherElements": _of_gather_elements,
    "Split": _of_split,
    **dict.fromkeys(("Expand", "Tile", "Pad"), _of_repetition),
    "OneHot": _of_one_hot,
    **dict.fromkeys(("RoiAlign", "MaxRoiPool"), _of_regions),
}
_OPERATORS: dict[str, Callable[[OnnxNode, OnnxRule], Result]] = {
    **{name: _carrying(carrier) for name, carrier in _CARRIERS.items()},
    **dict.fromkeys(_NEUTRAL, _reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "MatMul": _product,
    "Concat": _concat,
    **dict.fromkeys(("Scatter", "ScatterElements", "ScatterND"), _scatter),
    **dict.fromkeys(_BY_THEMSELVES, _by_itself),
}
