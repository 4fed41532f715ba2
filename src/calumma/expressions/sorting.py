"""Order: stable sorting of a row, the best k elements of every row, and the distinct ones among many.

Loops in TIR, since their course depends on values. Elements are compared by *keys*, int64 numbers in the order of the
elements: -0.0 and 0.0 have one key, every NaN has the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions.statements import constant, counter, either, kernel

Before = Callable[[Any, Any], Any]
"""(item, item) -> whether the first is to come strictly before the second; may emit statements."""
_FEW = 8
"""Of rows of at least k times this many elements the best k are found by a heap; others are sorted."""
_MANTISSA_END = {32: 0x7F800000, 64: 0x7FF0000000000000}
"""Bits of infinity: what is larger in magnitude is no number."""


def key(element: tirx.Expr, dtype: str) -> tirx.Expr:
    """The key of an element."""
    if not dtype.startswith(("float", "bfloat")):
        wide = element.astype("int64")
        return wide ^ constant(-(2**63)) if dtype == "uint64" else wide
    if dtype not in ("float32", "float64"):
        element, dtype = element.astype("float32"), "float32"
    bits = int(dtype.removeprefix("float"))
    kind = f"int{bits}"
    word = tirx.reinterpret(kind, element)
    most = constant(2 ** (bits - 1) - 1, kind)
    size = word & most
    ordered = either(word < constant(0, kind), constant(0, kind) - size, size)
    return either(size > constant(_MANTISSA_END[bits], kind), most, ordered).astype("int64")


def merge_sort(items: Any, count: Any, most: int, before: Before) -> None:
    """Emit a stable sort of the first `count` of int32 `items`, which has 2 * `most` elements; the result is in front.

    Runs of 1, 2, 4, ... items are merged from one half of `items` into the other.
    """
    width, source = counter("int32"), counter("int32")
    width[0], source[0] = 1, 0
    with T.While(width[0] < count):
        target = T.Bind(most - source[0])
        with T.serial(0, (count + (2 * width[0] - 1)) // (2 * width[0])) as run:
            low = T.Bind(run * (2 * width[0]))
            middle = T.Bind(tirx.min(low + width[0], count))
            high = T.Bind(tirx.min(low + 2 * width[0], count))
            left, right = counter("int32"), counter("int32")
            left[0], right[0] = low, middle
            with T.serial(0, high - low) as step:
                # Both are read whether or not they are there.
                first = T.Bind(items[source[0] + tirx.min(left[0], middle - 1)])
                second = T.Bind(items[source[0] + tirx.min(right[0], high - 1)])
                overtakes = before(second, first)
                with T.If(tirx.all(right[0] < high, tirx.any(left[0] >= middle, overtakes))):
                    with T.Then():
                        items[target + low + step] = second
                        right[0] = right[0] + 1
                    with T.Else():
                        items[target + low + step] = first
                        left[0] = left[0] + 1
        width[0], source[0] = width[0] * 2, target
    with T.If(source[0] > 0), T.Then(), T.serial(0, count) as i:
        items[i] = items[most + i]


def top_k(x: te.Tensor, k: int, *, largest: bool) -> list[te.Tensor]:
    """The first k of every row (rows, n) in descending order, or ascending: values and int64 indices (rows, k).

    Of equal elements the one with the lower index comes first. NaN is larger than any number, as in NumPy and torch.
    """
    rows, n = (int(extent) for extent in x.shape)
    dtype = str(x.dtype)
    few = _FEW * k <= n

    def body(data: Any, values: Any, indices: Any) -> None:
        with T.parallel(0, rows) as row:
            sorted_items = k if few else n
            keys = T.buffer_proxy(T.alloc_buffer((n,), "int64"))
            items = T.buffer_proxy(T.alloc_buffer((2 * sorted_items,), "int32"))
            with T.serial(0, n) as i:
                found = key(data[row, i], dtype)
                keys[i] = ~found if largest else found
            if few:
                _best(keys, items, n, k)
            else:
                _fill(items, n)
            merge_sort(
                items,
                constant(sorted_items, "int32"),
                sorted_items,
                lambda a, b: is_later(keys, b, a) if few else keys[a] < keys[b],
            )
            with T.serial(0, k) as i:
                values[row, i] = data[row, items[i]]
                indices[row, i] = items[i].astype("int64")

    return kernel("top_k", body, [x], [((rows, k), dtype), ((rows, k), "int64")])


def _fill(items: Any, n: int) -> None:
    with T.serial(0, n) as i:
        items[i] = i


def _best(keys: Any, items: Any, n: int, k: int) -> None:
    """Emit a search for the k first of n keys, in any order: a heap with the last of the k first so far on top."""

    def later(a: Any, b: Any) -> tirx.Expr:
        return is_later(keys, a, b)

    _fill(items, k)
    heap(items, constant(k, "int32"), later)
    with T.serial(k, n) as i, T.If(keys[i] < keys[items[0]]), T.Then():
        items[0] = i
        sink(items, constant(k, "int32"), constant(0, "int32"), later)


def heap(items: Any, count: Any, above: Before) -> None:
    """Emit making a heap of the first `count` of `items`: none is below one that it is to be above."""
    with T.serial(0, count // 2) as i:
        sink(items, count, count // 2 - 1 - i, above)


def sink(items: Any, count: Any, start: Any, above: Before) -> None:
    """Emit a move of an item down a heap, until it is above those below it."""
    place, moves = counter("int32"), counter("bool")
    place[0], moves[0] = start, constant(1, "bool")
    moving = T.Bind(items[start])
    with T.While(tirx.all(moves[0], 2 * place[0] + 1 < count)):
        left = T.Bind(2 * place[0] + 1)
        right = T.Bind(tirx.min(left + 1, count - 1))
        child = T.Bind(tirx.Select(above(items[right], items[left]), right, left))
        below = T.Bind(items[child])
        moves[0] = above(below, moving)
        with T.If(moves[0]), T.Then():
            items[place[0]] = below
            place[0] = child
    items[place[0]] = moving


def is_later(keys: Any, a: Any, b: Any) -> tirx.Expr:
    """Whether item a comes after item b: by key, then by number."""
    return tirx.any(keys[a] > keys[b], tirx.all(keys[a] == keys[b], a > b))


def unique(x: te.Tensor, *, ordered: bool, nan_is_one: bool) -> list[te.Tensor]:
    """The distinct rows of (n, m).

    Args:
        ordered: in lexicographic order; otherwise in that of their first occurrence.
        nan_is_one: whether one NaN counts as equal to another.

    Returns:
        int64: where each distinct row occurs first (n,), how often it occurs (n,), both zero behind the last of them;
        for every row which distinct row it is (n,); and their number ().
    """
    n, m = (int(extent) for extent in x.shape)
    dtype = str(x.dtype)

    def body(data: Any, first: Any, counts: Any, inverse: Any, number: Any) -> None:
        items = T.buffer_proxy(T.alloc_buffer((2 * n,), "int32"))
        keys = T.buffer_proxy(T.alloc_buffer((n * m,), "int64"))
        with T.serial(0, n) as i, T.serial(0, m) as j:
            keys[i * m + j] = key(data[i, j], dtype)
        _fill(items, n)
        merge_sort(items, constant(n, "int32"), n, lambda a, b: _precedes(keys, m, a, b))
        number[0] = constant(0)
        with T.serial(0, n) as i:
            first[i], counts[i] = constant(0), constant(0)
        with T.serial(0, n) as i:
            item = T.Bind(items[i])
            is_new = _differs(data, keys, m, items[tirx.max(i - 1, 0)], item, nan_is_one, dtype)
            with T.If(tirx.any(i == 0, is_new)), T.Then():
                first[number[0]] = item.astype("int64")
                number[0] = number[0] + constant(1)
            inverse[item] = number[0] - constant(1)
            counts[number[0] - constant(1)] = counts[number[0] - constant(1)] + constant(1)
        if not ordered:
            _by_occurrence(n, first, counts, inverse, number)

    vector = ((n,), "int64")
    return kernel("unique", body, [x], [vector, vector, vector, ((), "int64")])


def _precedes(keys: Any, m: int, a: Any, b: Any) -> Any:
    """Emit the comparison of two rows of keys in lexicographic order."""
    if m == 1:
        return keys[a] < keys[b]
    column = counter("int32")
    column[0] = 0
    with T.While(tirx.all(column[0] < m - 1, keys[a * m + column[0]] == keys[b * m + column[0]])):
        column[0] = column[0] + 1
    return keys[a * m + column[0]] < keys[b * m + column[0]]


def _differs(data: Any, keys: Any, m: int, a: Any, b: Any, nan_is_one: bool, dtype: str) -> Any:
    """Emit whether two rows differ."""
    differ = counter("bool")
    differ[0] = constant(0, "bool")
    with T.serial(0, m) as j:
        unequal = keys[a * m + j] != keys[b * m + j]
        if not nan_is_one and dtype.startswith(("float", "bfloat")):
            unequal = tirx.any(unequal, tirx.isnan(data[b, j].astype("float64")))
        differ[0] = tirx.any(differ[0], unequal)
    return differ[0]


def _by_occurrence(n: int, first: Any, counts: Any, inverse: Any, number: Any) -> None:
    """Emit a change of order: distinct rows as they occur first, instead of sorted."""
    rank = T.buffer_proxy(T.alloc_buffer((n,), "int64"))
    seen = T.buffer_proxy(T.alloc_buffer((n,), "int64"))
    with T.serial(0, n) as i:
        seen[i] = constant(0)
    with T.serial(0, number[0]) as group:
        seen[first[group]] = group + constant(1)
    found = counter("int64")
    found[0] = constant(0)
    held = T.buffer_proxy(T.alloc_buffer((n,), "int64"))
    with T.serial(0, n) as i:
        held[i] = counts[i]
    with T.serial(0, n) as i, T.If(seen[i] > constant(0)), T.Then():
        group = T.Bind(seen[i] - constant(1))
        rank[group] = found[0]
        counts[found[0]] = held[group]
        first[found[0]] = i.astype("int64")
        found[0] = found[0] + constant(1)
    with T.serial(0, n) as i:
        inverse[i] = rank[inverse[i]]
