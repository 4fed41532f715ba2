"""The index of the largest or the smallest element, as NumPy has it: NaN is both, and of several the first counts.

Two reductions, of which each is vector code: the extremum itself, and the least index where it stands.
"""

from __future__ import annotations

from tvm import te, tirx, topi


def argmax(x: te.Tensor, axis: int, keepdims: bool = False, last: bool = False) -> te.Tensor:
    """int64 indices of the largest elements along `axis`; of the last ones if `last`."""
    return _index_of(x, topi.max(x, axis, keepdims=True), axis, keepdims, last)


def argmin(x: te.Tensor, axis: int, keepdims: bool = False, last: bool = False) -> te.Tensor:
    """int64 indices of the smallest elements along `axis`; of the last ones if `last`."""
    return _index_of(x, topi.min(x, axis, keepdims=True), axis, keepdims, last)


def _index_of(x: te.Tensor, extremum: te.Tensor, axis: int, keepdims: bool, last: bool) -> te.Tensor:
    axis %= x.ndim
    length = int(x.shape[axis])
    k = te.reduce_axis((0, length), name="k")
    outer = [extent for i, extent in enumerate(x.shape) if i != axis]
    nowhere = tirx.const(-1 if last else length, "int32")

    def index(*i: tirx.Expr) -> tirx.Expr:
        element, wanted = x(*i[:axis], k, *i[axis:]), extremum(*i[:axis], 0, *i[axis:])
        here = k.astype("int64").astype("int32")  # indices become 64 bits wide, and places are not to
        place = tirx.Select(element == wanted, here, nowhere)
        if str(x.dtype).startswith(("float", "bfloat")):  # NaN is not equal to itself
            place = tirx.Select(tirx.isnan(element), here, place)
        return (te.max if last else te.min)(place, axis=k)

    found = te.compute(outer, index, name="index_of_extremum")
    shape = [1 if i == axis else extent for i, extent in enumerate(x.shape)] if keepdims else outer

    def result(*i: tirx.Expr) -> tirx.Expr:
        return found(*(i[:axis] + i[axis + 1 :] if keepdims else i)).astype("int64")

    return te.compute(shape, result, name="index")
