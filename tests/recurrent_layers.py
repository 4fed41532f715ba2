"""Recurrent layers of small sizes for tests, and NumPy's results for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.contractions.recurrent.expression import pack_input_weights, pack_weights, padded_vectors
from calumma.contractions.recurrent.recurrent_loops import RecurrentLayer
from calumma.graph.recurrence import Recurrence
from calumma.semantics.recurrent import default_activations

_FIELDS = ("inputs", "bias", "peepholes", "initial", "lengths")


def layer(cell: str, steps: int, batch: int, hidden: int, lanes: int, **options: Any) -> RecurrentLayer:
    """A layer with the usual activation functions; `options` are fields of `RecurrentLayer` and `Recurrence`."""
    own = {name: options.pop(name) for name in _FIELDS if name in options}
    return RecurrentLayer(Recurrence(cell, default_activations(cell), **options), steps, batch, hidden, lanes, **own)


def arguments(of: RecurrentLayer, seed: int = 0) -> list[NDArray[Any]]:
    """Random arguments of a layer's function, as it takes them."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    gates = len(of.recurrence.gates) * of.hidden
    found = [draw(of.steps, of.batch, of.inputs or gates)]
    if of.inputs:
        found += [pack_input_weights(draw(gates, of.inputs), of), pack_input_weights(draw(gates, 1), of)[:, :, 0]]
    found += pack_weights(draw(gates, of.hidden), of)
    if of.bias:
        found.append(padded_vectors(draw(of.hidden), of))
    if of.peepholes:
        found.append(padded_vectors(draw(3, of.hidden), of))
    found += [draw(of.batch, of.hidden) for given in of.initial if given]
    if of.lengths:
        found.append(rng.integers(1, of.steps + 1, of.batch).astype("int32"))
    return found


def expected(of: RecurrentLayer, given: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """What the function gives for arguments as `arguments` makes them, without clipping and with the usual
    functions."""
    cell = of.recurrence
    rest = iter(given)
    x = next(rest)
    if of.inputs:
        weight, added = next(rest).transpose(1, 2, 0, 3), next(rest).transpose(1, 0, 2)
        columns_of = weight.reshape(len(cell.gates), of.inputs, -1)[..., : of.hidden]
        x = np.concatenate([x @ part for part in columns_of], 2)
        x = x + added.reshape(len(cell.gates), -1)[:, : of.hidden].reshape(-1)
    packed = [next(rest) for _ in of.phases]
    columns = {
        gate: array[:, :, g].transpose(1, 0, 2).reshape(of.hidden, -1)[:, : of.hidden]
        for phase, array in zip(of.phases, packed, strict=True)
        for g, gate in enumerate(phase)
    }
    bias = next(rest)[: of.hidden] if of.bias else 0
    p = next(rest)[:, : of.hidden] if of.peepholes else np.zeros((3, 1))
    h, c = (next(rest).copy() if have else np.zeros((of.batch, of.hidden)) for have in of.initial)
    lengths = next(rest) if of.lengths else np.full(of.batch, of.steps)
    y = np.zeros((of.steps, of.batch, of.hidden))
    for step in range(of.steps):
        time = of.steps - 1 - step if cell.reverse else step
        gate = dict(zip(cell.gates, np.split(x[time], len(cell.gates), 1), strict=True))
        new, state = _STEPS[cell.cell](of, gate, columns, h, c, bias, p)
        runs = (time < lengths)[:, None]
        y[time] = np.where(runs, new, 0)
        h, c = np.where(runs, new, h), np.where(runs, state, c)
    return [y, h, c] if cell.cell == "lstm" else [y, h]


def _sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def _lstm(of: RecurrentLayer, x: Any, w: Any, h: Any, c: Any, _: Any, p: Any) -> tuple[NDArray, NDArray]:
    i = _sigmoid(x["i"] + h @ w["i"] + p[0] * c)
    f = 1 - i if of.recurrence.input_forget else _sigmoid(x["f"] + h @ w["f"] + p[2] * c)
    state = f * c + i * np.tanh(x["c"] + h @ w["c"])
    return _sigmoid(x["o"] + h @ w["o"] + p[1] * state) * np.tanh(state), state


def _gru(of: RecurrentLayer, x: Any, w: Any, h: Any, c: Any, bias: Any, _: Any) -> tuple[NDArray, NDArray]:
    z, r = _sigmoid(x["z"] + h @ w["z"]), _sigmoid(x["r"] + h @ w["r"])
    linear = of.recurrence.linear_before_reset
    candidate = np.tanh(x["h"] + (r * (h @ w["h"] + bias) if linear else (r * h) @ w["h"]))
    return (1 - z) * candidate + z * h, c


def _rnn(of: RecurrentLayer, x: Any, w: Any, h: Any, c: Any, *_: Any) -> tuple[NDArray, NDArray]:
    return np.tanh(x["h"] + h @ w["h"]), c


_STEPS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
