"""Which elements hold, and which boxes are kept: as many results as the values say, in buffers of the largest size.

Indices are int64, and zero behind the last one.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions.sorting import heap, is_later, key, sink
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
            items = T.buffer_proxy(T.alloc_buffer((n,), "int32"))
            held = counter("int32")
            held[0] = 0
            with T.serial(0, stop) as i:
                keys[i] = ~key(values[image, category, i], "float32")
                items[held[0]] = i.astype("int32")
                passes = constant(1, "bool") if least is None else values[image, category, i] > least
                held[0] = held[0] + passes.astype("int32")
            candidates = _Candidates(keys, items, held)
            with T.serial(0, bound) as i:
                kept[group, i] = constant(0)
            kept_boxes = _Boxes(corners, image, bound, centred)
            most_kept = tirx.min(limit[0], constant(bound))
            counts[group] = _choose(candidates, kept, group, most_kept, kept_boxes, threshold[0])

    inputs = [boxes, scores, most, iou, *(tensor for tensor in (score, number) if tensor is not None)]
    groups = batch * classes
    return kernel("selected_boxes", body, inputs, [((groups, bound), "int64"), ((groups,), "int64")])


class _Candidates:
    """Boxes by falling score: a heap, of which only as much is put in order as is asked for."""

    def __init__(self, keys: Any, items: Any, count: Any) -> None:
        """Emit making the heap of the first `count` of `items`."""
        self._keys, self._items, self.count = keys, items, count
        heap(items, count[0], self._above)

    def _above(self, a: Any, b: Any) -> tirx.Expr:
        return is_later(self._keys, b, a)

    def next(self) -> tirx.Expr:
        """Emit taking the first one out."""
        first = T.Bind(self._items[0])
        self.count[0] = self.count[0] - 1
        self._items[0] = self._items[self.count[0]]
        sink(self._items, self.count[0], constant(0, "int32"), self._above)
        return first


def _choose(
    candidates: _Candidates, kept: Any, group: Any, most: Any, boxes: _Boxes, threshold: tirx.Expr
) -> tirx.Expr:
    """Emit the choice among the boxes of a group; returns how many are kept."""
    chosen = counter("int64")
    chosen[0] = constant(0)
    with T.While(tirx.all(candidates.count[0] > 0, chosen[0] < most)):
        item = candidates.next()
        box = boxes.read(item)
        overlaps, other = counter("bool"), counter("int64")
        overlaps[0], other[0] = constant(0, "bool"), constant(0)
        with T.While(tirx.all(other[0] < chosen[0], tirx.Not(overlaps[0]))):
            boxes.compare(box, other[0], threshold, overlaps)
            other[0] = other[0] + constant(1)
        with T.If(tirx.Not(overlaps[0])), T.Then():
            kept[group, chosen[0]] = item.astype("int64")
            boxes.keep(box, chosen[0])
            chosen[0] = chosen[0] + constant(1)
    return chosen[0]


class _Boxes:
    """The boxes of an image, and the edges and areas of those that are kept so far."""

    def __init__(self, corners: Any, image: Any, bound: int, centred: bool) -> None:
        self._corners, self._image, self._centred = corners, image, centred
        self._kept = [T.buffer_proxy(T.alloc_buffer((bound,), "float32")) for _ in range(5)]

    def read(self, item: Any) -> list[tirx.Expr]:
        """Emit reading a box: low and high edge of the first axis, of the second, and the area."""
        edges: list[tirx.Expr] = []
        for axis in (0, 1):
            first, second = (self._corners[self._image, item, side] for side in (axis, axis + 2))
            if self._centred:
                half = second * constant(0.5, "float32")
                edges += [T.Bind(first - half), T.Bind(first + half)]
            else:
                edges += [T.Bind(_lower(first, second)), T.Bind(_higher(first, second))]
        return [*edges, T.Bind((edges[1] - edges[0]) * (edges[3] - edges[2]))]

    def keep(self, box: list[tirx.Expr], place: Any) -> None:
        """Emit noting a box as kept."""
        for held, value in zip(self._kept, box, strict=True):
            held[place] = value

    def compare(self, box: list[tirx.Expr], place: Any, threshold: tirx.Expr, overlaps: Any) -> None:
        """Emit setting `overlaps` where a box shares more than the threshold with a kept one."""
        kept, zero = [held[place] for held in self._kept], constant(0, "float32")
        sizes = [T.Bind(_lower(box[high], kept[high]) - _higher(box[low], kept[low])) for low, high in ((0, 1), (2, 3))]
        with T.If(tirx.all(*(size > zero for size in sizes))), T.Then():
            common = T.Bind(sizes[0] * sizes[1])
            whole = T.Bind(box[4] + kept[4] - common)
            is_area = tirx.all(*(area > zero for area in (common, box[4], kept[4], whole)))
            overlaps[0] = tirx.all(is_area, common / whole > threshold)


def _lower(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The lower of two numbers; NaN does not matter, as it does to TVM's minimum here."""
    return tirx.Select(a < b, a, b)


def _higher(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    return tirx.Select(a < b, b, a)


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
