"""Matrix products of nodes, sums over repeated indices (Einstein's), determinants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.core.errors import ModelError
from calumma.expressions import statements
from calumma.graph.build import expression, operator, reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.semantics.reductions import reduced


def matmul(left: Node, right: Node) -> Node:
    """A matrix product as NumPy's matmul has it: leading axes are broadcast, vectors are rows or columns.

    A sum over no elements is 0.
    """
    if len(left.shape) > 1 and len(right.shape) > 1:
        if left.shape[-1] == 0:
            batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
            return constant(np.zeros((*batch, left.shape[-2], right.shape[-1]), left.dtype))
        return operator(relax.op.matmul, left, right)
    rows = left.shape[:-1] if len(left.shape) > 1 else ()
    columns = right.shape[-1:] if len(right.shape) > 1 else ()
    batch = right.shape[:-2] if len(left.shape) == 1 else ()
    a = reshape(left, (1, *left.shape)) if len(left.shape) == 1 else left
    b = reshape(right, (*right.shape, 1)) if len(right.shape) == 1 else right
    return reshape(matmul(a, b), (*batch, *rows, *columns))


def scaled(node: Node, factor: float) -> Node:
    """A node times a number, in the node's type; the node itself for 1."""
    return node if factor == 1.0 else operator(relax.op.multiply, node, scalar(factor, node.dtype))


def swapped(node: Node) -> Node:
    """A node with its last two axes swapped."""
    rank = len(node.shape)
    return transpose(node, [*range(rank - 2), rank - 1, rank - 2])


# -- Einstein's sums ------------------------------------------------------------------------------

_Labels = tuple[str, ...]


def einsum(equation: str, operands: Sequence[Node]) -> Node:
    """A sum of products, written as NumPy's einsum: with an ellipsis, repeated indices, or no arrow.

    Raises:
        ModelError: the equation does not fit the operands.
    """
    terms, result = _parsed(equation, [len(operand.shape) for operand in operands])
    factors = [_diagonal(operand, labels) for operand, labels in zip(operands, terms, strict=True)]
    node, labels = factors[0]
    for index, (other, other_labels) in enumerate(factors[1:], 2):
        wanted = set(result).union(*(term for _, term in factors[index:]))
        node, labels = _contracted(node, labels, other, other_labels, wanted)
    node, labels = _summed(node, labels, set(result))
    if set(labels) != set(result):
        raise ModelError(f"equation {equation!r}: an index of the result is in no term; export the model again")
    return transpose(node, [labels.index(label) for label in result])


def _parsed(equation: str, ranks: Sequence[int]) -> tuple[list[_Labels], _Labels]:
    """The indices of every term and of the result; those of an ellipsis are numbers, counted from the last."""
    left, arrow, right = "".join(equation.split()).partition("->")
    terms = left.split(",")
    flaw = ModelError(f"equation {equation!r} does not fit operands of {list(ranks)} dimensions; export it again")
    if len(terms) != len(ranks):
        raise flaw
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(count < 0 or (count and "..." not in term) for count, term in zip(hidden, terms, strict=True)):
        raise flaw
    most = max(count if "..." in term else 0 for count, term in zip(hidden, terms, strict=True))

    def labels(term: str, count: int) -> _Labels:
        before, dots, after = term.partition("...")
        return (*before, *(str(i) for i in reversed(range(count if dots else 0))), *after)

    found = [labels(term, count) for term, count in zip(terms, hidden, strict=True)]
    if arrow:
        return found, labels(right, most)
    letters = left.replace("...", "").replace(",", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return found, (*labels("...", most), *once)


def _diagonal(node: Node, labels: _Labels) -> tuple[Node, _Labels]:
    """A node with each of its indices once: of repeated ones the diagonal."""
    unique = tuple(dict.fromkeys(labels))
    if unique == labels:
        return node, labels
    sizes = dict(zip(labels, node.shape, strict=True))
    if any(sizes[label] != size for label, size in zip(labels, node.shape, strict=True)):
        raise ModelError(f"a repeated index has several sizes in {node.shape}; export the model again")

    def body(x: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Var) -> tirx.Expr:
            return x(*(i[unique.index(label)] for label in labels))

        return te.compute([sizes[label] for label in unique], element, name="diagonal")

    return expression(body, node, name="diagonal"), unique


def _summed(node: Node, labels: _Labels, wanted: set[str]) -> tuple[Node, _Labels]:
    """A node summed over the indices that nobody wants."""
    axes = [axis for axis, label in enumerate(labels) if label not in wanted]
    return reduced("sum", node, axes, keepdims=False), tuple(label for label in labels if label in wanted)


def _contracted(
    left: Node, left_labels: _Labels, right: Node, right_labels: _Labels, wanted: set[str]
) -> tuple[Node, _Labels]:
    """The product of two factors, summed over the indices that nobody wants."""
    left, left_labels = _without_ones(left, left_labels, dict(zip(right_labels, right.shape, strict=True)))
    right, right_labels = _without_ones(right, right_labels, dict(zip(left_labels, left.shape, strict=True)))
    left, left_labels = _summed(left, left_labels, wanted | set(right_labels))
    right, right_labels = _summed(right, right_labels, wanted | set(left_labels))
    shared = [label for label in left_labels if label in right_labels]
    batch = [label for label in shared if label in wanted]
    summed = [label for label in shared if label not in wanted]
    rows = [label for label in left_labels if label not in shared]
    columns = [label for label in right_labels if label not in shared]
    sizes = dict(zip((*left_labels, *right_labels), (*left.shape, *right.shape), strict=True))

    def arranged(node: Node, labels: _Labels, *groups: list[str]) -> Node:
        moved = transpose(node, [labels.index(label) for group in (batch, *groups) for label in group])
        kept = [sizes[label] for label in batch]
        return reshape(moved, [*kept, *(math.prod(sizes[label] for label in group) for group in groups)])

    result = (*batch, *rows, *columns)
    a, b = arranged(left, left_labels, rows, summed), arranged(right, right_labels, summed, columns)
    product = operator(relax.op.matmul if summed else relax.op.multiply, a, b)
    return reshape(product, [sizes[label] for label in result]), result


def _without_ones(node: Node, labels: _Labels, others: dict[str, int]) -> tuple[Node, _Labels]:
    """A node without the axes of extent 1 that the other factor broadcasts."""
    kept = [
        (label, size) for label, size in zip(labels, node.shape, strict=True) if size != 1 or others.get(label, 1) == 1
    ]
    return reshape(node, [size for _, size in kept]), tuple(label for label, _ in kept)


# -- determinants ---------------------------------------------------------------------------------


def determinant(node: Node) -> Node:
    """Determinants of the square matrices in the last two axes, by elimination with row pivots.

    Raises:
        ModelError: the matrices are not square.
    """
    *batch, size, columns = node.shape
    if size != columns:
        raise ModelError(f"determinants of {size} x {columns}: the matrices are not square; export the model again")
    matrices = reshape(node, (math.prod(batch), size, size))

    def body(x: te.Tensor) -> te.Tensor:
        outputs = [(matrices.shape, node.dtype), (matrices.shape[:1], node.dtype)]
        return statements.kernel("determinant", _eliminate, [x], outputs)

    return reshape(expression(body, matrices, name="determinant")[1], batch)


def _eliminate(x: Any, rest: Any, result: Any) -> None:
    """Statements: what is left of every matrix, and the product of its pivots."""
    count, size = int(x.shape[0]), int(x.shape[1])
    dtype = str(x.dtype)
    pivot, held = statements.counter("int32"), statements.counter(dtype)
    with T.serial(0, count) as b:
        result[b] = statements.constant(1, dtype)
        with T.serial(0, size) as i, T.serial(0, size) as j:
            rest[b, i, j] = x[b, i, j]
        with T.serial(0, size) as k:
            pivot[0] = k
            with T.serial(k, size) as i:
                larger = tirx.abs(rest[b, i, k]) > tirx.abs(rest[b, pivot[0], k])
                pivot[0] = statements.either(larger, i, pivot[0])
            with T.serial(0, size) as j:
                held[0] = rest[b, k, j]
                rest[b, k, j] = rest[b, pivot[0], j]
                rest[b, pivot[0], j] = held[0]
            held[0] = rest[b, k, k]
            result[b] = result[b] * statements.either(pivot[0] == k, held[0], -held[0])
            held[0] = statements.either(
                held[0] == statements.constant(0, dtype), statements.constant(1, dtype), held[0]
            )
            with T.serial(k + 1, size) as i, T.serial(k + 1, size) as j:
                rest[b, i, j] = rest[b, i, j] - rest[b, i, k] / held[0] * rest[b, k, j]
