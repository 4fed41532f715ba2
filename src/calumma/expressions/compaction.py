"""Which elements hold, and which boxes are kept: as many results as the values say, in buffers of the largest size.

Indices are int64, and zero behind the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions.sorting import key, merge_sort
from calumma.expressions.statements import constant, counter, kernel


def positions(x: te.Tensor) -> list[te.Tensor]:
    """Where a vector is not zero, ascending, and how often. NaN is not zero."""
    n = int(x.shape[0])
    dtype = str(x.dtype)

    def body(data: Any, found: Any, number: Any) -> None:
        count = counter("int64")
        count[0] = constant(0)
        with T.serial(0, n) as i:  # without a branch: a place that does not hold is overwritten by the next
            found[count[0]] = i.astype("int64")
            count[0] = count[0] + _holds(data[i], dtype).astype("int64")
        with T.serial(0, constant(n) - count[0]) as i:
            found[count[0] + i] = constant(0)
        number[0] = count[0]

    return kernel("positions", body, [x], [((n,), "int64"), ((), "int64")])


def _holds(element: tirx.Expr, dtype: str) -> tirx.Expr:
    if dtype == "bool":
        return element
    if dtype.startswith(("float", "bfloat")):  # to TVM, NaN is neither equal to zero nor unequal
        return key(element, dtype) != constant(0)
    return element != constant(0, dtype)


def selected_boxes(
    boxes: te.Tensor,
    scores: te.Tensor,
    most: te.Tensor,
    iou: te.Tensor,
    score: te.Tensor | None,
    number: te.Tensor | None,
    bound: int,
    *,
    centred: bool,
) -> list[te.Tensor]:
    """Greedy non-maximum suppression of every class of every image.

    The boxes of a class are taken by falling score, of equal ones the first, and kept unless they overlap one that is
    kept already: intersection over union above `iou`. Boxes without area overlap nothing.

    Args:
        boxes: (B, N, 4), two opposite corners y, x, y, x; `centred`: x and y of the centre, width, height.
        scores: (B, C, N).
        most: int64 scalar, of boxes that are kept of a class.
        iou: float32 scalar.
        score: float32 scalar, boxes whose score is not above it are left out; None: none is.
        number: int64 scalar, of the boxes that are there; None: all.
        bound: no value of `most` counts as more.

    Returns:
        The boxes kept, (B * C, bound), and their number (B * C,).
    """
    batch, n, _ = (int(extent) for extent in boxes.shape)
    classes = int(scores.shape[1])

    def body(corners: Any, values: Any, limit: Any, threshold: Any, *rest: Any) -> None:
        *optional, kept, counts = rest
        least = optional[0][0] if score is not None else None
        stop = tirx.min(optional[-1][0], constant(n)) if number is not None else constant(n)
        with T.parallel(0, batch * classes) as group:
            image, category = T.Bind(group // classes), T.Bind(group % classes)
            keys = T.buffer_proxy(T.alloc_buffer((n,), "int64"))
            items = T.buffer_proxy(T.alloc_buffer((2 * n,), "int32"))
            held = counter("int32")
            held[0] = 0
            with T.serial(0, stop) as i:
                keys[i] = ~key(values[image, category, i], "float32")
                items[held[0]] = i.astype("int32")
                passes = constant(1, "bool") if least is None else values[image, category, i] > least
                held[0] = held[0] + passes.astype("int32")
            merge_sort(items, held[0], n, lambda a, b: keys[a] < keys[b])
            with T.serial(0, bound) as i:
                kept[group, i] = constant(0)

            def overlaps(box: Any, other: Any, image: Any = image) -> tirx.Expr:
                return _shared(corners, image, other, box, centred) > threshold[0]

            counts[group] = _kept(items, held[0], kept, group, tirx.min(limit[0], constant(bound)), overlaps)

    inputs = [boxes, scores, most, iou, *(tensor for tensor in (score, number) if tensor is not None)]
    groups = batch * classes
    return kernel("selected_boxes", body, inputs, [((groups, bound), "int64"), ((groups,), "int64")])


def _kept(
    items: Any, count: Any, kept: Any, group: Any, most: Any, overlaps: Callable[[Any, Any], tirx.Expr]
) -> tirx.Expr:
    """Emit the choice among the first `count` of `items`, in their order; returns how many are kept of the group."""
    chosen, place = counter("int64"), counter("int32")
    chosen[0], place[0] = constant(0), 0
    with T.While(tirx.all(place[0] < count, chosen[0] < most)):
        box = items[place[0]].astype("int64")
        found, other = counter("bool"), counter("int64")
        found[0], other[0] = constant(0, "bool"), constant(0)
        with T.While(tirx.all(other[0] < chosen[0], tirx.Not(found[0]))):
            found[0] = overlaps(box, kept[group, other[0]])
            other[0] = other[0] + constant(1)
        with T.If(tirx.Not(found[0])), T.Then():
            kept[group, chosen[0]] = box
            chosen[0] = chosen[0] + constant(1)
        place[0] = place[0] + 1
    return chosen[0]


def _shared(boxes: Any, image: Any, one: Any, other: Any, centred: bool) -> tirx.Expr:
    """Emit the intersection of two boxes over their union; -1 where either has no area."""
    sizes: list[tirx.Expr] = []
    areas: list[list[tirx.Expr]] = [[], []]
    for axis in (0, 1):
        lows, highs = [], []
        for box, spans in zip((one, other), areas, strict=True):
            first, second = boxes[image, box, axis], boxes[image, box, axis + 2]
            if centred:
                half = second * constant(0.5, "float32")
                low, high = T.Bind(first - half), T.Bind(first + half)
            else:
                low, high = T.Bind(tirx.min(first, second)), T.Bind(tirx.max(first, second))
            lows.append(low)
            highs.append(high)
            spans.append(high - low)
        sizes.append(T.Bind(tirx.min(*highs) - tirx.max(*lows)))
    zero = constant(0, "float32")
    common = T.Bind(sizes[0] * sizes[1])
    area, other_area = (T.Bind(width * height) for width, height in areas)
    whole = T.Bind(area + other_area - common)
    overlap = tirx.all(*(size > zero for size in (*sizes, common, area, other_area, whole)))
    return T.Bind(tirx.Select(overlap, common / whole, constant(-1, "float32")))


def joined_boxes(kept: te.Tensor, counts: te.Tensor, classes: int) -> list[te.Tensor]:
    """What `selected_boxes` kept of all classes as a table (B * C * bound, 3) of image, class and box; and its rows."""
    groups, bound = (int(extent) for extent in kept.shape)

    def body(boxes: Any, numbers: Any, table: Any, rows: Any) -> None:
        row = counter("int64")
        row[0] = constant(0)
        with T.serial(0, groups) as group, T.serial(0, tirx.min(numbers[group], constant(bound))) as i:
            table[row[0], 0] = (group // classes).astype("int64")
            table[row[0], 1] = (group % classes).astype("int64")
            table[row[0], 2] = boxes[group, i]
            row[0] = row[0] + constant(1)
        with T.serial(0, constant(groups * bound) - row[0]) as i, T.serial(0, 3) as column:
            table[row[0] + i, column] = constant(0)
        rows[0] = row[0]

    return kernel("joined_boxes", body, [kept, counts], [((groups * bound, 3), "int64"), ((), "int64")])
