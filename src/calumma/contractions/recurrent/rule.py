"""How recurrent layers are lowered: one function for the whole sequence, whose recurrent weights are packed for it."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from calumma.contractions.recurrent import expression
from calumma.contractions.recurrent.recurrent_loops import RecurrentLayer
from calumma.core.errors import ModelError
from calumma.graph.context import LoweringContext
from calumma.graph.layouts import Value
from calumma.graph.nodes import CONSTANT, Node
from calumma.graph.recurrence import LSTM

_MOST_ELEMENTS = 2**31 - 1
"""Of one tensor: the function counts in 32 bits."""


def lower_recurrent(lo: LoweringContext, node: Node) -> Value:
    """The rule of `calumma.recurrent`."""
    x, input_weight, input_bias, weight, bias, peepholes, h0, c0, length = node.args
    steps, batch, _ = x.shape
    layer = RecurrentLayer(
        recurrence=node.attrs,
        steps=steps,
        batch=batch,
        hidden=weight.shape[1],
        lanes=lo.lanes,
        bias=bias is not None,
        peepholes=peepholes is not None,
        initial=(h0 is not None, c0 is not None),
        lengths=length is not None,
        inputs=0 if input_weight is None else input_weight.shape[1],
    )
    if max(math.prod(x.shape), math.prod(weight.shape)) > _MOST_ELEMENTS:
        raise ModelError(
            f"node {node.name}: a recurrent layer over {x.dtype}{list(x.shape)} is too large; cut the sequence"
        )
    arguments = [lo.plain(x).expr]
    if input_weight is not None:
        arguments += _input_weights(lo, input_weight, input_bias, layer)
    arguments += _weights(lo, weight, layer)
    arguments += [_vectors(lo, vector, layer) for vector in (bias, peepholes) if vector is not None]
    arguments += [lo.plain(given).expr for given in (h0, c0, length) if given is not None]
    results = [(steps, batch, layer.hidden), *[(batch, layer.hidden)] * (2 if node.attrs.cell == LSTM else 1)]
    outputs = [relax.TensorType(shape, "float32") for shape in results]
    return Value(lo.emit_function(expression.recurrent(layer), *arguments, result=outputs, name=expression.NAME), ())


def _weights(lo: LoweringContext, weight: Node, layer: RecurrentLayer) -> list[relax.Expr]:
    phases = range(len(layer.phases))
    if weight.op == CONSTANT:
        packed = expression.pack_weights(weight.value, layer)
        key = ("recurrent", weight, tuple(layer.phases))
        return [lo.param(array, (*key, phase)) for phase, array in zip(phases, packed, strict=True)]
    source = lo.plain(weight).expr
    return [
        lo.emit(lambda w, n=phase: expression.packed_weights(w, layer, n), source, name="packed_weights")
        for phase in phases
    ]


def _input_weights(lo: LoweringContext, weight: Node, bias: Node | None, layer: RecurrentLayer) -> list[relax.Expr]:
    """Input weights and their bias, both constants, as the function takes them."""
    added = np.zeros(weight.shape[0], np.float32) if bias is None else bias.value
    packed_bias = expression.pack_input_weights(added[:, None], layer)[:, :, 0]
    return [
        lo.param(expression.pack_input_weights(weight.value, layer), ("recurrent inputs", weight)),
        lo.param(packed_bias, ("recurrent bias", weight, bias)),
    ]


def _vectors(lo: LoweringContext, vectors: Node, layer: RecurrentLayer) -> relax.Expr:
    """A recurrent bias or peepholes, padded to whole blocks."""
    if vectors.op == CONSTANT:
        return lo.param(expression.padded_vectors(vectors.value, layer), ("padded", vectors, layer.lanes))
    return lo.emit(lambda v: expression.padded(v, layer), lo.plain(vectors).expr, name="padded")
