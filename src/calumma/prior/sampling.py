"""Prior-based task sampling: new layers, drawn attribute by attribute from the distribution of real ones.

Ryu, Park & Sung, "One-Shot Tuner for Deep Learning Compilers" (CC 2022), section 3.2. Each attribute is drawn given
those before it. The conditional distributions are the empirical ones of `networks`, smoothed, so that combinations and
values come out that no network of the table has:

    P(a_k = v | a_1 .. a_(k-1))  ~  sum over rows r of  w_r  prod_(i<k) K_i(r_i, a_i)  J_k(v | r_k)

w_r weighs a row so that a network counts as the square root of its number of layers; K compares what was drawn so far
with the row: words by equality with a little leakage, numbers by a Gaussian of their log2; J moves a number a little:
sizes as another input resolution would, channels as another width would.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.rng import generator
from calumma.families.samples import AttributeValue, Layer, LayerWindow
from calumma.prior.networks import networks

SHARES = {
    "conv": 24,
    "pointwise": 24,
    "dense": 12,
    "depthwise": 10,
    "first": 6,
    "grouped": 6,
    "attention": 6,
    "pool": 4,
    "rows": 3,
    "elementwise": 3,
    "transposed": 2,
}
"""Family -> its share of the layers drawn, in percent."""

_LEAK = 0.02
"""Weight of a row whose word is another one, relative to the same."""
_BANDWIDTH = 0.5
"""Of numbers, in powers of two."""
_KEPT = 0.6
"""Numbers that stay as a real layer has them."""
_RESOLUTIONS = np.array([112, 128, 160, 192, 240, 256, 288, 320, 384, 448, 512]) / 224
_WIDTH_DEVIATION = 0.4
_ROWS_DEVIATION = 0.6
_ATTEMPTS = 1000

_MAX_FLOPS = 6e9
_MAX_BYTES = 96e6
"""Of any one tensor: what is larger takes long to measure and teaches nothing new."""


@dataclass(frozen=True)
class _Rows:
    """The real layers of one family."""

    attributes: tuple[str, ...]
    columns: dict[str, NDArray]
    """Attribute -> its value in each row; log2 for numbers."""
    values: dict[str, tuple[AttributeValue, ...]]
    weights: NDArray[np.float64]


class LayerSampler:
    """Draws layers. The n-th layer of a family depends on the seed and on what is left out, on nothing else."""

    def __init__(self, seed: int = 0, exclude: Collection[str] = ()) -> None:
        """Prepare the distributions.

        Args:
            seed: decides everything.
            exclude: names of networks whose layers are left out of the table, and are never drawn either.

        Raises:
            InputError: a network that is not in the table, or nothing is left of a family.
        """
        known = networks()
        unknown = sorted(set(exclude) - set(known))
        if unknown:
            raise InputError(f"no network is called {unknown[0]!r}: one of {', '.join(sorted(known))}")
        self._seed = seed
        self._forbidden = frozenset(layer for name in exclude for layer in known[name])
        rows: dict[str, list[tuple[Layer, float]]] = {family: [] for family in SHARES}
        for name, layers in known.items():
            if name in exclude:
                continue
            for family in SHARES:
                own = [layer for layer in layers if layer.family == family and layer not in self._forbidden]
                rows[family].extend((layer, len(own) ** -0.5) for layer in own)
        empty = [family for family in SHARES if not rows[family]]
        if empty:
            raise InputError(f"no layer of family {empty[0]} is left: leave out fewer networks")
        self._rows = {family: _table(layers) for family, layers in rows.items()}

    def draw(self, family: str, number: int) -> Layer:
        """Return layer `number` of a family; a layer may be drawn more than once."""
        rng = generator(self._seed, "layer", family, number)
        for _ in range(_ATTEMPTS):
            layer = self._attempt(family, rng)
            if layer not in self._forbidden and feasible(layer):
                return layer
        raise InputError(
            f"no feasible layer of family {family} came out in {_ATTEMPTS} draws: leave out fewer networks"
        )

    def _attempt(self, family: str, rng: np.random.Generator) -> Layer:
        table = self._rows[family]
        weights = table.weights
        drawn: list[tuple[str, AttributeValue]] = []
        for attribute in table.attributes:
            row = int(rng.choice(len(weights), p=weights / weights.sum()))
            value = table.values[attribute][row]
            if isinstance(value, int):
                value = _moved(attribute, value, rng)
            drawn.append((attribute, value))
            weights = weights * _likeness(table.columns[attribute], value)
        return _completed(Layer(family, tuple(drawn)), rng)


def in_turn(families: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Families by their shares, evenly mixed, each with the number of its layer: ("conv", 0), ("pointwise", 0), ..."""
    given = dict.fromkeys(families, 0)
    while True:
        family = min(families, key=lambda name: (given[name] + 0.5) / SHARES[name])
        yield family, given[family]
        given[family] += 1


def _table(layers: Sequence[tuple[Layer, float]]) -> _Rows:
    attributes = tuple(name for name, _ in layers[0][0].values)
    values = {name: tuple(layer[name] for layer, _ in layers) for name in attributes}
    columns = {
        name: np.log2(np.array(column, dtype=float)) if isinstance(column[0], int) else np.array(column)
        for name, column in values.items()
    }
    return _Rows(attributes, columns, values, np.array([weight for _, weight in layers]))


def _likeness(column: NDArray, value: AttributeValue) -> NDArray[np.float64]:
    """K: how much each row says about layers with this value."""
    if isinstance(value, str):
        return np.where(column == value, 1.0, _LEAK)
    likeness: NDArray[np.float64] = np.exp(-0.5 * ((column - math.log2(value)) / _BANDWIDTH) ** 2)
    return likeness + 1e-6  # somewhere far from all rows any of them will do


def _moved(attribute: str, value: int, rng: np.random.Generator) -> int:
    """J: the number as it is, or a little moved."""
    if attribute in ("groups", "heads") or value == 1 or rng.random() < _KEPT:
        return value
    if attribute == "size":
        return max(1, math.ceil(value * float(rng.choice(_RESOLUTIONS))))
    if attribute in ("rows", "columns"):
        return max(1, round(value * 2 ** rng.normal(0, _ROWS_DEVIATION)))
    if value < 8:
        return int(rng.integers(1, 8))
    moved = value * 2 ** rng.normal(0, _WIDTH_DEVIATION)
    step = int(rng.choice([16, 8, 4], p=[0.7, 0.2, 0.1]))
    return max(step, step * round(moved / step))


def _completed(layer: Layer, rng: np.random.Generator) -> Layer:
    """What one attribute implies for another: groups divide the channels, attention has one length of keys."""
    values = dict(layer.values)
    if layer.family == "grouped":
        groups = layer.number("groups")
        for side in ("inputs", "outputs"):
            values[side] = groups * max(1, round(layer.number(side) / groups))
    if layer.family in ("attention", "rows") and layer.number("rows") > 1:
        # Most attention is of a sequence to itself; layer normalisation and logits have nothing to compare with.
        if layer.family == "attention" and rng.random() < 0.8:
            values["columns" if layer["form"] == "scores" else "inputs"] = layer["rows"]
        elif layer["form"] == "softmax" and layer.number("heads") > 1 and rng.random() < 0.8:
            values["columns"] = layer["rows"]
    return Layer(layer.family, tuple(values.items()))


def feasible(layer: Layer) -> bool:
    """Whether a layer can be computed and is small enough to be measured often."""
    flops, sizes = _cost(layer)
    return min(sizes) > 0 and flops <= _MAX_FLOPS and 4 * max(sizes) <= _MAX_BYTES


def _cost(layer: Layer) -> tuple[float, tuple[float, ...]]:
    """Floating-point operations, and elements of input, weights and result; 0 elements where nothing comes out."""
    number, values = layer.number, dict(layer.values)
    if layer.family == "dense":
        rows, inputs, outputs = number("rows"), number("inputs"), number("outputs")
        return 2.0 * rows * inputs * outputs, (rows * inputs, inputs * outputs, rows * outputs)
    if layer.family == "attention":
        heads, rows, columns, inputs = (number(name) for name in ("heads", "rows", "columns", "inputs"))
        return 2.0 * heads * rows * columns * inputs, (heads * rows * inputs, heads * rows * columns)
    if layer.family == "rows":
        elements = number("heads") * number("rows") * number("columns")
        return 10.0 * elements, (elements,)
    size, inputs = number("size"), number("inputs")
    source = float(inputs * size * size)
    if layer.family == "elementwise":
        return source, (source,)
    if layer.family == "pool":
        window = LayerWindow.parse(layer.text("form").partition(" ")[2] or "1x1/1d1p0")
    else:
        window = LayerWindow.parse(layer.text("window"))
    high, wide = (max(0, extent) for extent in window.results(size))
    # A window mostly over padding is one nobody would use.
    if max(window.kernel) > 2 * size + 1 or max(window.padding) * 2 > max(size, 2) + 1:
        high = 0
    taps = window.kernel[0] * window.kernel[1]
    if layer.family in ("pool", "depthwise"):
        return 2.0 * taps * inputs * high * wide, (source, inputs * high * wide)
    outputs = number("outputs")
    weights = float(taps * inputs * outputs) / (number("groups") if "groups" in values else 1)
    if layer.family == "transposed":
        across = (size - 1) * window.stride - 2 * window.padding[0] + window.kernel[0]
        return 2.0 * weights * size * size, (source, weights, float(outputs * max(0, across) ** 2))
    return 2.0 * weights * high * wide, (source, weights, float(outputs * high * wide))
