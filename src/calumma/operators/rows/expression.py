"""Operators on one row at a time: softmax and log-softmax of float32, layer normalisation of any float.

A row that is reduced along its contiguous axis is reduced by `lanes` x `chains` partial results at once, so that the
loop is vector code with several independent accumulators. Where the vector does not divide the row, the last vector
starts earlier and overlaps the one before it: no scalar tail. A maximum does not mind; a sum masks what came twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx

from calumma.expressions import math
from calumma.space.blocks import OPERATOR

_CHAINS = (4, 2, 1)
_Index = tuple[tirx.Expr, ...]


def softmax(x: te.Tensor, axis: int, lanes: int) -> te.Tensor:
    """exp(x - max) / sum exp(x - max) along `axis`."""
    axis %= x.ndim
    highest = _reduce(x.shape, axis, 1, lanes, "softmax_max", lambda *i: x(*i), te.max)
    powers = te.compute(x.shape, lambda *i: math.exp(x(*i) - highest(*_without(i, axis))), name="softmax_exp")
    total = _reduce(x.shape, axis, 1, lanes, "softmax_sum", lambda *i: powers(*i), te.sum)
    scale = te.compute(total.shape, lambda *i: _f32(1.0) / total(*i), name="softmax_scale")
    return te.compute(
        x.shape,
        lambda *i: powers(*i) * scale(*_without(i, axis)),
        name="softmax",
        attrs={OPERATOR: "softmax"},
    )


def log_softmax(x: te.Tensor, axis: int, lanes: int) -> te.Tensor:
    """x - max - log(sum exp(x - max)) along `axis`."""
    axis %= x.ndim
    highest = _reduce(x.shape, axis, 1, lanes, "log_softmax_max", lambda *i: x(*i), te.max)
    total = _reduce(
        x.shape, axis, 1, lanes, "log_softmax_sum", lambda *i: math.exp(x(*i) - highest(*_without(i, axis))), te.sum
    )
    shift = te.compute(total.shape, lambda *i: math.log(total(*i)), name="log_softmax_shift")
    return te.compute(
        x.shape,
        # In this order: the maximum may be so large that the logarithm beside it is rounded away.
        lambda *i: x(*i) - highest(*_without(i, axis)) - shift(*_without(i, axis)),
        name="log_softmax",
        attrs={OPERATOR: "log_softmax"},
    )


def layer_norm(
    x: te.Tensor,
    gamma: te.Tensor | None,
    beta: te.Tensor | None,
    axes: int,
    epsilon: float,
    lanes: int,
) -> te.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over the last `axes` axes.

    Args:
        gamma: scale in the shape of the normalised axes; None for none.
        beta: shift in the shape of the normalised axes; None for none.
    """
    first = x.ndim - axes
    count = tirx.const(float(_product(x.shape[first:])), x.dtype)
    total = _reduce(x.shape, first, axes, lanes, "layer_norm_sum", lambda *i: x(*i), te.sum)
    mean = te.compute(total.shape, lambda *i: total(*i) / count, name="layer_norm_mean")

    def squared(*i: tirx.Expr) -> tirx.Expr:
        centred = x(*i) - mean(*_row(i, first))
        return centred * centred

    squares = _reduce(x.shape, first, axes, lanes, "layer_norm_squares", squared, te.sum)
    scale = te.compute(
        squares.shape,
        lambda *i: _reciprocal_root(squares(*i) / count, epsilon, x.dtype),
        name="layer_norm_scale",
    )

    def normalised(*i: tirx.Expr) -> tirx.Expr:
        value = (x(*i) - mean(*_row(i, first))) * scale(*_row(i, first))
        value = value if gamma is None else value * gamma(*i[first:])
        return value if beta is None else value + beta(*i[first:])

    return te.compute(x.shape, normalised, name="layer_norm", attrs={OPERATOR: "layer_norm"})


def _reciprocal_root(square: tirx.Expr, epsilon: float, dtype: str) -> tirx.Expr:
    """1 / sqrt(square + epsilon)."""
    return tirx.const(1.0, dtype) / tirx.sqrt(square + tirx.const(epsilon, dtype))


def _reduce(
    shape: Sequence[tirx.Expr],
    first: int,
    axes: int,
    lanes: int,
    name: str,
    value: Callable[..., tirx.Expr],
    combine: Callable,
) -> te.Tensor:
    """Reduce value(*index) over `axes` axes from `first` on; the result has the remaining axes.

    `combine` is te.max or te.sum.
    """
    rows = [*shape[:first], *shape[first + axes :]] or [1]
    contiguous = first + axes == len(shape)
    reduced = [int(extent) for extent in shape[first : first + axes]]
    length = reduced[-1]
    if not contiguous or length < lanes:
        k = [te.reduce_axis((0, extent), name="k") for extent in reduced]
        after = slice(first, None) if not contiguous else slice(0, 0)
        return te.compute(rows, lambda *i: combine(value(*i[:first], *k, *i[after]), axis=k), name=name)
    vectors = -(-length // lanes)
    chains = next(c for c in _CHAINS if vectors % c == 0 and (vectors // c >= 2 or c == 1))
    ragged = length % lanes != 0
    k = [te.reduce_axis((0, extent), name="k") for extent in (*reduced[:-1], vectors // chains)]

    def partial(*i: tirx.Expr) -> tirx.Expr:
        chain, lane = i[-2], i[-1]
        start = (k[-1] * chains + chain) * lanes
        begin = tirx.min(start, length - lanes) if ragged else start
        element = value(*i[:first], *k[:-1], begin + lane)
        if ragged and combine is te.sum:
            element = tirx.Select(lane >= start - begin, element, tirx.const(0.0, str(element.ty)))
        return combine(element, axis=k)

    parts = te.compute((*rows, chains, lanes), partial, name=f"{name}_partial")
    join = (lambda a, b: a + b) if combine is te.sum else tirx.max
    if chains > 1:
        chained = parts
        parts = te.compute(
            (*rows, 1, lanes),
            lambda *i: _tree([chained(*i[:-2], c, i[-1]) for c in range(chains)], join),
            name=f"{name}_chains",
        )
    return te.compute(rows, lambda *i: _tree([parts(*i, 0, lane) for lane in range(lanes)], join), name=name)


def _tree(values: list[tirx.Expr], join: Callable) -> tirx.Expr:
    """Combine values pairwise: a chain as short as can be."""
    while len(values) > 1:
        half = (len(values) + 1) // 2
        values = [join(a, b) for a, b in zip(values, values[half:], strict=False)] + values[len(values) - half : half]
    return values[0]


def _without(index: _Index, axis: int) -> _Index:
    """Index of the tensor reduced along `axis`."""
    return _row(index[:axis] + index[axis + 1 :])


def _row(index: _Index, first: int | None = None) -> _Index:
    """Index of a reduced tensor: the first axes; a tensor reduced along all its axes keeps one element."""
    return index[:first] or (tirx.const(0, "int32"),)


def _product(extents: Sequence[tirx.Expr]) -> int:
    product = 1
    for extent in extents:
        product *= int(extent)
    return product


def _f32(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")
