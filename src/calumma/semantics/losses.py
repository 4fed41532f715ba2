"""Losses of classification, as functions of nodes."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, te, tirx

from calumma.graph.build import expression, operator, scalar
from calumma.graph.nodes import Node, constant
from calumma.semantics.reductions import reduced

REDUCTIONS = ("none", "sum", "mean")


def negative_log_likelihood(
    log_probabilities: Node,
    target: Node,
    weight: Node | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Node:
    """-log p(target) of every sample, times the weight of its class.

    Args:
        log_probabilities: (N, C, ...).
        target: classes (N, ...); one outside [0, C) gives what some class gives, never foreign memory.
        weight: (C,); None for 1.
        reduction: "none", "sum", or "mean": the sum divided by that of the weights.
        ignore_index: samples of this class count as 0, and with the weight 0.
    """
    classes = log_probabilities.shape[1]
    weights = weight if weight is not None else constant(np.ones(classes, log_probabilities.dtype))

    def parts(x: te.Tensor, labels: te.Tensor, factors: te.Tensor) -> list[te.Tensor]:
        def factor(*i: tirx.Var) -> tirx.Expr:
            return tirx.Select(ignored(*i), tirx.const(0, x.dtype), factors(place(*i)))

        def ignored(*i: tirx.Var) -> tirx.Expr:
            wanted = tirx.const(-1 if ignore_index is None else ignore_index, str(labels.dtype))
            return tirx.EQ(labels(*i), wanted) if ignore_index is not None else tirx.const(False, "bool")

        def place(*i: tirx.Var) -> tirx.Expr:
            label = labels(*i).astype("int64")
            return tirx.max(tirx.min(label, tirx.const(classes - 1, "int64")), tirx.const(0, "int64"))

        def loss(*i: tirx.Var) -> tirx.Expr:
            zero = tirx.const(0, x.dtype)
            return tirx.Select(ignored(*i), zero, zero - x(i[0], place(*i), *i[1:]) * factors(place(*i)))

        shape = target.shape
        return [te.compute(shape, loss, name="loss"), te.compute(shape, factor, name="factor")]

    losses, used = expression(parts, log_probabilities, target, weights, name="negative_log_likelihood")
    if reduction == "none":
        return losses
    total = reduced("sum", losses, None, keepdims=False)
    if reduction == "sum":
        return total
    if weight is None and ignore_index is None:
        return operator(relax.op.divide, total, scalar(math.prod(target.shape), losses.dtype))
    return operator(relax.op.divide, total, reduced("sum", used, None, keepdims=False))
