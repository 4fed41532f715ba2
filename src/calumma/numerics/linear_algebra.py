"""Factorisations of small matrices and what is made of them, by serial loops, one thread for each matrix.

Matrices are the last two axes; leading ones are a batch. Everything is computed in float64 and handed back in the type
of the argument. A matrix that has no inverse gives infinities or NaN. Sources: Golub and Van Loan, Matrix Computations,
4th edition, chapters 3 to 5 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as T

from calumma.core.errors import ModelError
from calumma.expressions import statements
from calumma.expressions.statements import either
from calumma.extents.selection import top_k
from calumma.graph.build import cast, expression, operator, reshape, scalar
from calumma.graph.nodes import Node, constant
from calumma.semantics.movement import broadcast, sliced, triangle
from calumma.semantics.products import matmul, swapped

_SWEEPS = 15
"""Of Jacobi rotations over all pairs: convergence is quadratic, ten are enough for 100 columns."""


def _f64(value: float) -> tirx.Expr:
    return tirx.const(value, "float64")


def _kernel(
    name: str, body: Callable[..., None], nodes: Sequence[Node], results: Sequence[tuple[tuple[int, ...], str]]
) -> list[Node]:
    """Loops over the matrices of a batch.

    Args:
        body: the number of a matrix, then buffers of which it is the first index; emits the statements.
        nodes: with one leading axis.
        results: shapes without that axis, and types.
    """
    count = nodes[0].shape[0]
    outputs = [((count, *shape), dtype) for shape, dtype in results]
    if any(0 in shape for shape, _ in outputs):
        return [constant(np.zeros(shape, dtype)) for shape, dtype in outputs]
    if any(0 in node.shape for node in nodes):
        raise ModelError("factors of a matrix without elements; leave them out")

    def every(*buffers: Any) -> None:
        with T.parallel(0, count) as b:
            body(b, *buffers)

    found = expression(lambda *tensors: _one_or_more(name, every, tensors, outputs), *nodes, name=name)
    return list(found) if isinstance(found, tuple) else [found]


def _one_or_more(name: str, body: Any, tensors: Any, outputs: Any) -> Any:
    made = statements.kernel(name, body, tensors, outputs)
    return made if len(made) > 1 else made[0]


def _batch(x: Node) -> tuple[Node, tuple[int, ...]]:
    """Matrices in float64 behind one another, and the leading axes they had."""
    lead = x.shape[:-2]
    return reshape(cast(x, "float64"), (math.prod(lead), *x.shape[-2:])), lead


def _copy(b: Any, source: Any, target: Any, rows: int, columns: int) -> None:
    with T.serial(0, rows) as i, T.serial(0, columns) as j:
        target[b, i, j] = source[b, i, j]


# -- triangles -------------------------------------------------------------------------------------


def lu(x: Node) -> tuple[Node, Node]:
    """Both factors of a matrix with rows swapped in one, and with which row each was swapped: int32, from 1."""
    (flat, lead), (m, n) = _batch(x), x.shape[-2:]
    k = min(m, n)

    def body(b: Any, a: Any, out: Any, swaps: Any) -> None:
        _copy(b, a, out, m, n)
        pivot, held = statements.counter("int32"), statements.counter("float64")
        with T.serial(0, k) as step:
            pivot[0] = step
            with T.serial(step, m) as i:
                larger = tirx.abs(out[b, i, step]) > tirx.abs(out[b, pivot[0], step])
                pivot[0] = either(larger, i, pivot[0])
            swaps[b, step] = pivot[0] + 1
            with T.serial(0, n) as j:
                held[0] = out[b, step, j]
                out[b, step, j] = out[b, pivot[0], j]
                out[b, pivot[0], j] = held[0]
            with T.serial(step + 1, m) as i:
                out[b, i, step] = out[b, i, step] / out[b, step, step]
                with T.serial(step + 1, n) as j:
                    out[b, i, j] = out[b, i, j] - out[b, i, step] * out[b, step, j]

    factors, swaps = _kernel("lu", body, [flat], [((m, n), "float64"), ((k,), "int32")])
    return cast(reshape(factors, (*lead, m, n)), x.dtype), reshape(swaps, (*lead, k))


def permutation(swaps: Node, m: int) -> Node:
    """The matrix (m, m) that undoes swaps of rows: P of A = P L U; float64."""
    lead, k = swaps.shape[:-1], swaps.shape[-1]

    def body(b: Any, swaps: Any, out: Any) -> None:
        order = T.buffer_proxy(T.alloc_buffer((m,), "int32"))
        held = statements.counter("int32")
        with T.serial(0, m) as i:
            order[i] = i
            with T.serial(0, m) as j:
                out[b, i, j] = _f64(0)
        with T.serial(0, k) as i:
            held[0] = order[i]
            order[i] = order[swaps[b, i] - 1]
            order[swaps[b, i] - 1] = held[0]
        with T.serial(0, m) as i:
            out[b, order[i], i] = _f64(1)

    (found,) = _kernel("permutation", body, [reshape(swaps, (math.prod(lead), k))], [((m, m), "float64")])
    return reshape(found, (*lead, m, m))


def unpacked(factors: Node) -> tuple[Node, Node]:
    """The lower factor (m, k), whose diagonal is 1, and the upper one (k, n), k the smaller of m and n."""
    m, n = factors.shape[-2:]
    k, rank = min(m, n), len(factors.shape)
    lower = sliced(factors, {rank - 1: slice(0, k)})
    lower = triangle(lower, scalar(-1, "int64"), upper=False)
    lower = operator(relax.op.add, lower, constant(np.eye(m, k, dtype=factors.dtype)))
    return lower, triangle(sliced(factors, {rank - 2: slice(0, k)}), scalar(0, "int64"), upper=True)


def cholesky(x: Node, *, upper: bool = False) -> Node:
    """The triangular factor L of A = L L^T, or U of A = U^T U; only that triangle of A is read."""
    if upper:
        return swapped(cholesky(swapped(x)))
    (flat, lead), n = _batch(x), x.shape[-1]

    def body(b: Any, a: Any, out: Any) -> None:
        total = statements.counter("float64")
        with T.serial(0, n) as i, T.serial(0, n) as j:
            out[b, i, j] = _f64(0)
        with T.serial(0, n) as j, T.serial(0, n - j) as step:
            i = T.Bind(j + step)
            total[0] = a[b, i, j]
            with T.serial(0, j) as k:
                total[0] = total[0] - out[b, i, k] * out[b, j, k]
            out[b, i, j] = either(i == j, tirx.sqrt(total[0]), total[0] / out[b, j, j])

    (found,) = _kernel("cholesky", body, [flat], [((n, n), "float64")])
    return cast(reshape(found, (*lead, n, n)), x.dtype)


def triangular_solve(a: Node, b: Node, *, upper: bool, left: bool = True, unit: bool = False) -> Node:
    """X of A X = B, or with `left` false of X A = B, where A is triangular.

    Args:
        a: (.., n, n); of which one triangle is read.
        b: (.., n, columns), or (.., rows, n); leading axes are broadcast.
        unit: the diagonal counts as 1.
    """
    if not left:
        return swapped(triangular_solve(swapped(a), swapped(b), upper=not upper, unit=unit))
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    n, columns = b.shape[-2:]
    wide = [broadcast(x, (*lead, *x.shape[-2:])) for x in (a, b)]
    flat = [_batch(x)[0] for x in wide]

    def body(m: Any, a: Any, b: Any, x: Any) -> None:
        total = statements.counter("float64")
        with T.serial(0, n) as step, T.serial(0, columns) as j:
            i = T.Bind(n - 1 - step if upper else step)
            total[0] = b[m, i, j]
            with T.serial(0, step) as k:
                column = n - 1 - k if upper else k
                total[0] = total[0] - a[m, i, column] * x[m, column, j]
            x[m, i, j] = total[0] if unit else total[0] / a[m, i, i]

    (found,) = _kernel("triangular_solve", body, flat, [((n, columns), "float64")])
    return cast(reshape(found, (*lead, n, columns)), b.dtype)


def lu_solve(factors: Node, swaps: Node, b: Node, *, left: bool = True, adjoint: bool = False) -> Node:
    """X of A X = B, or of X A = B, for A given by `lu`; adjoint: for the transpose of A."""
    if not left:
        return swapped(lu_solve(factors, swaps, swapped(b), adjoint=not adjoint))
    order = permutation(swaps, factors.shape[-1])
    factors = cast(factors, "float64")
    wide = cast(b, "float64")
    if adjoint:
        y = triangular_solve(swapped(factors), wide, upper=False)
        z = triangular_solve(swapped(factors), y, upper=True, unit=True)
        return cast(matmul(order, z), b.dtype)
    y = triangular_solve(factors, matmul(swapped(order), wide), upper=False, unit=True)
    return cast(triangular_solve(factors, y, upper=True), b.dtype)


def solve(a: Node, b: Node, *, left: bool = True) -> Node:
    """X of A X = B, or of X A = B."""
    return cast(lu_solve(*lu(cast(a, "float64")), b, left=left), b.dtype)


def inverse(x: Node) -> Node:
    return solve(x, constant(np.broadcast_to(np.eye(x.shape[-1], dtype=x.dtype), x.shape)))


def log_determinant(x: Node) -> tuple[Node, Node]:
    """The sign of the determinant, and the logarithm of its magnitude."""
    n, lead = x.shape[-1], x.shape[:-2]
    if n == 0:
        return constant(np.ones(lead, x.dtype)), constant(np.zeros(lead, x.dtype))
    factors, swaps = lu(cast(x, "float64"))
    flat = reshape(factors, (math.prod(lead), n, n)), reshape(swaps, (math.prod(lead), n))

    def body(b: Any, factors: Any, swaps: Any, sign: Any, size: Any) -> None:
        sign[b], size[b] = _f64(1), _f64(0)
        with T.serial(0, n) as i:
            held = T.Bind(factors[b, i, i])
            one = either(held < _f64(0), _f64(-1), either(held > _f64(0), _f64(1), held))
            sign[b] = sign[b] * either(swaps[b, i] == i + 1, one, _f64(0) - one)
            size[b] = size[b] + tirx.log(tirx.abs(held))

    found = _kernel("log_determinant", body, flat, [((), "float64"), ((), "float64")])
    sign, size = (cast(reshape(result, lead), x.dtype) for result in found)
    return sign, size


# -- orthogonal factors ----------------------------------------------------------------------------


def reflections(x: Node) -> tuple[Node, Node]:
    """R, and below its diagonal Householder's vectors without their leading 1; and their factors tau (LAPACK geqrf)."""
    (flat, lead), (m, n) = _batch(x), x.shape[-2:]
    k = min(m, n)

    def body(b: Any, a: Any, out: Any, tau: Any) -> None:
        _copy(b, a, out, m, n)
        total = statements.counter("float64")
        with T.serial(0, k) as step:
            total[0] = _f64(0)
            with T.serial(step + 1, m) as i:
                total[0] = total[0] + out[b, i, step] * out[b, i, step]
            alpha = T.Bind(out[b, step, step])
            size = T.Bind(tirx.sqrt(alpha * alpha + total[0]))
            none = T.Bind(total[0] <= _f64(0))
            beta = T.Bind(either(none, alpha, either(alpha >= _f64(0), _f64(0) - size, size)))
            factor = T.Bind(either(none, _f64(0), (beta - alpha) / either(none, _f64(1), beta)))
            tau[b, step] = factor
            with T.serial(step + 1, m) as i:
                out[b, i, step] = out[b, i, step] / either(none, _f64(1), alpha - beta)
            out[b, step, step] = beta
            with T.serial(step + 1, n) as j:
                total[0] = out[b, step, j]
                with T.serial(step + 1, m) as i:
                    total[0] = total[0] + out[b, i, step] * out[b, i, j]
                out[b, step, j] = out[b, step, j] - factor * total[0]
                with T.serial(step + 1, m) as i:
                    out[b, i, j] = out[b, i, j] - factor * total[0] * out[b, i, step]

    factors, tau = _kernel("reflections", body, [flat], [((m, n), "float64"), ((k,), "float64")])
    return cast(reshape(factors, (*lead, m, n)), x.dtype), cast(reshape(tau, (*lead, k)), x.dtype)


def reflected(vectors: Node, tau: Node, columns: int) -> Node:
    """The first columns of the product of Householder's reflections (LAPACK orgqr)."""
    (flat, lead), m = _batch(vectors), vectors.shape[-2]
    k = tau.shape[-1]
    scale = reshape(cast(tau, "float64"), (math.prod(lead), k))
    if k == 0:
        return constant(np.broadcast_to(np.eye(m, columns, dtype=vectors.dtype), (*lead, m, columns)))

    def body(b: Any, v: Any, tau: Any, out: Any) -> None:
        total = statements.counter("float64")
        with T.serial(0, m) as i, T.serial(0, columns) as j:
            out[b, i, j] = either(i == j, _f64(1), _f64(0))
        with T.serial(0, k) as back, T.serial(0, columns) as j:
            step = T.Bind(k - 1 - back)
            total[0] = out[b, step, j]
            with T.serial(step + 1, m) as i:
                total[0] = total[0] + v[b, i, step] * out[b, i, j]
            total[0] = total[0] * tau[b, step]
            out[b, step, j] = out[b, step, j] - total[0]
            with T.serial(step + 1, m) as i:
                out[b, i, j] = out[b, i, j] - total[0] * v[b, i, step]

    (found,) = _kernel("reflected", body, [flat, scale], [((m, columns), "float64")])
    return cast(reshape(found, (*lead, m, columns)), vectors.dtype)


def qr(x: Node, *, complete: bool) -> tuple[Node, Node]:
    """Q (.., m, k) and R (.., k, n): k is m where it is complete, else the smaller of m and n."""
    m, n = x.shape[-2:]
    k = m if complete else min(m, n)
    factors, tau = reflections(cast(x, "float64"))
    upper = triangle(sliced(factors, {len(x.shape) - 2: slice(0, k)}), scalar(0, "int64"), upper=True)
    return cast(reflected(factors, tau, k), x.dtype), cast(upper, x.dtype)


# -- eigenvalues and singular values ---------------------------------------------------------------


def _rotated_columns(x: Node) -> tuple[Node, Node]:
    """W = A V with orthogonal columns, and V, by Jacobi rotations of columns (Hestenes); float64, for m >= n."""
    (flat, lead), (m, n) = _batch(x), x.shape[-2:]

    def body(b: Any, a: Any, w: Any, v: Any) -> None:
        _copy(b, a, w, m, n)
        p, q, r = (statements.counter("float64") for _ in range(3))
        with T.serial(0, n) as i, T.serial(0, n) as j:
            v[b, i, j] = either(i == j, _f64(1), _f64(0))
        with T.serial(0, _SWEEPS), T.serial(0, n - 1) as i, T.serial(0, n - 1 - i) as step:
            j = T.Bind(i + 1 + step)
            p[0], q[0], r[0] = _f64(0), _f64(0), _f64(0)
            with T.serial(0, m) as k:
                p[0] = p[0] + w[b, k, i] * w[b, k, i]
                q[0] = q[0] + w[b, k, j] * w[b, k, j]
                r[0] = r[0] + w[b, k, i] * w[b, k, j]
            none = T.Bind(tirx.abs(r[0]) <= _f64(1e-300))
            ratio = T.Bind((q[0] - p[0]) / either(none, _f64(1), _f64(2) * r[0]))
            root = tirx.abs(ratio) + tirx.sqrt(_f64(1) + ratio * ratio)
            tangent = T.Bind(either(none, _f64(0), either(ratio < _f64(0), _f64(-1), _f64(1)) / root))
            cosine = T.Bind(_f64(1) / tirx.sqrt(_f64(1) + tangent * tangent))
            sine = T.Bind(cosine * tangent)
            for matrix, rows in ((w, m), (v, n)):
                with T.serial(0, rows) as k:
                    left, right = T.Bind(matrix[b, k, i]), T.Bind(matrix[b, k, j])
                    matrix[b, k, i] = cosine * left - sine * right
                    matrix[b, k, j] = sine * left + cosine * right

    w, v = _kernel("rotated_columns", body, [flat], [((m, n), "float64"), ((n, n), "float64")])
    return reshape(w, (*lead, m, n)), reshape(v, (*lead, n, n))


def singular_values(x: Node) -> Node:
    """In descending order, as many as the smaller extent."""
    tall = x if x.shape[-2] >= x.shape[-1] else swapped(x)
    w, _ = _rotated_columns(tall)
    sizes = operator(relax.op.sqrt, operator(relax.op.sum, operator(relax.op.multiply, w, w), [len(w.shape) - 2]))
    return cast(top_k(sizes, sizes.shape[-1], len(sizes.shape) - 1, largest=True)[0], x.dtype)


def pseudo_inverse(x: Node, relative: float, absolute: float = 0.0) -> Node:
    """V S^-1 U^T of x = U S V^T without singular values at or below a part of the largest one, or a number."""
    if x.shape[-2] < x.shape[-1]:
        return swapped(pseudo_inverse(swapped(x), relative, absolute))
    w, v = _rotated_columns(x)
    rank = len(w.shape)
    squares = operator(relax.op.sum, operator(relax.op.multiply, w, w), [rank - 2], True)
    sizes = operator(relax.op.sqrt, squares)
    largest = operator(relax.op.max, sizes, [rank - 1], True)
    least = operator(
        relax.op.maximum, operator(relax.op.multiply, largest, scalar(relative, "float64")), scalar(absolute, "float64")
    )
    kept = operator(relax.op.greater, sizes, least)
    safe = operator(relax.op.where, kept, squares, scalar(math.inf, "float64"))
    return cast(matmul(operator(relax.op.divide, v, safe), swapped(w)), x.dtype)


def symmetric_eigenvalues(x: Node, *, upper: bool = False) -> Node:
    """In ascending order, of a matrix of which one triangle is read, by Jacobi rotations."""
    (flat, lead), n = _batch(x), x.shape[-1]

    def body(b: Any, a: Any, w: Any, values: Any) -> None:
        with T.serial(0, n) as i, T.serial(0, n) as j:
            low, high = tirx.min(i, j), tirx.max(i, j)
            w[b, i, j] = a[b, low, high] if upper else a[b, high, low]
        with T.serial(0, _SWEEPS), T.serial(0, n - 1) as i, T.serial(0, n - 1 - i) as step:
            j = T.Bind(i + 1 + step)
            off = T.Bind(w[b, i, j])
            none = T.Bind(tirx.abs(off) <= _f64(1e-300))
            ratio = T.Bind((w[b, j, j] - w[b, i, i]) / either(none, _f64(1), _f64(2) * off))
            root = tirx.abs(ratio) + tirx.sqrt(_f64(1) + ratio * ratio)
            tangent = T.Bind(either(none, _f64(0), either(ratio < _f64(0), _f64(-1), _f64(1)) / root))
            cosine = T.Bind(_f64(1) / tirx.sqrt(_f64(1) + tangent * tangent))
            sine = T.Bind(cosine * tangent)
            with T.serial(0, n) as k:
                left, right = T.Bind(w[b, k, i]), T.Bind(w[b, k, j])
                w[b, k, i] = cosine * left - sine * right
                w[b, k, j] = sine * left + cosine * right
            with T.serial(0, n) as k:
                left, right = T.Bind(w[b, i, k]), T.Bind(w[b, j, k])
                w[b, i, k] = cosine * left - sine * right
                w[b, j, k] = sine * left + cosine * right
        with T.serial(0, n) as i:
            values[b, i] = w[b, i, i]

    found = _kernel("eigenvalues", body, [flat], [((n, n), "float64"), ((n,), "float64")])
    values = reshape(found[1], (*lead, n))
    return cast(top_k(values, n, len(lead), largest=False)[0], x.dtype)


_HALVINGS = 10
_TERMS = 20


def exponential(x: Node) -> Node:
    """The matrix exponential: Taylor's series of a small part, squared again and again."""
    wide = operator(relax.op.multiply, cast(x, "float64"), scalar(0.5**_HALVINGS, "float64"))
    identity = constant(np.broadcast_to(np.eye(x.shape[-1]), x.shape))
    total = identity
    for k in range(_TERMS, 0, -1):
        term = operator(relax.op.multiply, matmul(wide, total), scalar(1 / k, "float64"))
        total = operator(relax.op.add, term, identity)
    for _ in range(_HALVINGS):
        total = matmul(total, total)
    return cast(total, x.dtype)
