"""Factors, solutions, determinants and values of small matrices.

torch raises for a matrix that has no inverse or factor; here the results are infinities or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from calumma.frontend.torch.aten_registry import aten_rule
from calumma.frontend.torch.torch_node import TorchNode
from calumma.graph.build import cast, operator, reshape, scalar, transpose
from calumma.graph.nodes import Node, constant
from calumma.numerics import linear_algebra as algebra
from calumma.semantics.movement import triangle
from calumma.semantics.products import determinant, matmul, swapped


def _info(node: TorchNode, index: int) -> Node:
    """Which step of a factorisation failed: none."""
    result = node.result(index)
    return constant(np.zeros(tuple(int(size) for size in result.shape), np.int32))


@aten_rule("linalg_cholesky_ex.default", "linalg_cholesky.default", "cholesky.default")
def cholesky(node: TorchNode, self: Node, upper: bool = False, check_errors: bool = False) -> Any:
    factor = algebra.cholesky(self, upper=upper)
    return (factor, _info(node, 1)) if node.op == "linalg_cholesky_ex" else factor


@aten_rule("cholesky_solve.default")
def cholesky_solve(node: TorchNode, self: Node, input2: Node, upper: bool = False) -> Node:
    return _by_cholesky(input2, self, upper)


def _by_cholesky(factor: Node, b: Node, upper: bool) -> Node:
    lower = swapped(factor) if upper else factor
    first = algebra.triangular_solve(lower, cast(b, "float64"), upper=False)
    return cast(algebra.triangular_solve(swapped(lower), first, upper=True), b.dtype)


@aten_rule("cholesky_inverse.default")
def cholesky_inverse(node: TorchNode, self: Node, upper: bool = False) -> Node:
    return _by_cholesky(self, _identity(self), upper)


def _identity(x: Node) -> Node:
    return constant(np.broadcast_to(np.eye(x.shape[-1], dtype=x.dtype), x.shape))


@aten_rule("linalg_solve_triangular.default")
def solve_triangular(
    node: TorchNode, self: Node, B: Node, upper: bool, left: bool = True, unitriangular: bool = False
) -> Node:
    return algebra.triangular_solve(self, B, upper=upper, left=left, unit=unitriangular)


@aten_rule("triangular_solve.default")
def old_solve_triangular(
    node: TorchNode, self: Node, A: Node, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Node, Node]:
    matrix, side = (swapped(A), not upper) if transpose else (A, upper)
    return algebra.triangular_solve(matrix, self, upper=side, unit=unitriangular), A


@aten_rule("linalg_inv_ex.default", "linalg_inv.default")
def inverse(node: TorchNode, A: Node, check_errors: bool = False) -> Any:
    found = algebra.inverse(A)
    return (found, _info(node, 1)) if node.op == "linalg_inv_ex" else found


@aten_rule("linalg_lu_factor_ex.default", "linalg_lu_factor.default")
def lu_factor(node: TorchNode, A: Node, pivot: bool = True, check_errors: bool = False) -> Any:
    if not pivot:
        raise node.refused("factors without pivots are not supported")
    found = algebra.lu(A)
    return (*found, _info(node, 2)) if node.op == "linalg_lu_factor_ex" else found


@aten_rule("linalg_lu.default")
def lu(node: TorchNode, A: Node, pivot: bool = True) -> tuple[Node, ...]:
    if not pivot:
        raise node.refused("factors without pivots are not supported")
    factors, swaps = algebra.lu(A)
    return cast(algebra.permutation(swaps, A.shape[-2]), A.dtype), *algebra.unpacked(factors)


@aten_rule("lu_unpack.default")
def lu_unpack(
    node: TorchNode, LU_data: Node, LU_pivots: Node, unpack_data: bool = True, unpack_pivots: bool = True
) -> tuple[Node, ...]:
    empty = constant(np.zeros(0, LU_data.dtype))
    order = cast(algebra.permutation(LU_pivots, LU_data.shape[-2]), LU_data.dtype) if unpack_pivots else empty
    return order, *(algebra.unpacked(LU_data) if unpack_data else (empty, empty))


@aten_rule("linalg_lu_solve.default")
def lu_solve(node: TorchNode, LU: Node, pivots: Node, B: Node, left: bool = True, adjoint: bool = False) -> Node:
    return algebra.lu_solve(LU, pivots, B, left=left, adjoint=adjoint)


@aten_rule("_linalg_solve_ex.default", "linalg_solve_ex.default", "linalg_solve.default")
def solve(node: TorchNode, A: Node, B: Node, left: bool = True, check_errors: bool = False) -> Any:
    vectors = len(B.shape) == 1 or (len(A.shape) == len(B.shape) + 1 and A.shape[:-1] == B.shape)
    right = reshape(B, (*B.shape, 1)) if vectors else B
    found = algebra.solve(A, right, left=left)
    found = reshape(found, node.shape)
    if node.op == "linalg_solve":
        return found
    if node.op == "linalg_solve_ex":
        return found, _info(node, 1)
    return found, *algebra.lu(A), _info(node, 3)


@aten_rule("_linalg_det.default", "linalg_det.default")
def det(node: TorchNode, A: Node) -> Any:
    found = cast(determinant(cast(A, "float64")), A.dtype)
    return (found, *algebra.lu(A)) if node.op == "_linalg_det" else found


@aten_rule("_linalg_slogdet.default", "linalg_slogdet.default")
def log_det(node: TorchNode, A: Node) -> Any:
    found = algebra.log_determinant(A)
    return (*found, *algebra.lu(A)) if node.op == "_linalg_slogdet" else found


@aten_rule("linalg_qr.default")
def qr(node: TorchNode, A: Node, mode: str = "reduced") -> tuple[Node, Node]:
    q, r = algebra.qr(A, complete=mode == "complete")
    return constant(np.zeros(0, A.dtype)) if mode == "r" else q, r


@aten_rule("geqrf.default")
def reflections(node: TorchNode, self: Node) -> tuple[Node, Node]:
    return algebra.reflections(self)


@aten_rule("linalg_householder_product.default")
def householder_product(node: TorchNode, input: Node, tau: Node) -> Node:
    return algebra.reflected(input, tau, input.shape[-1])


@aten_rule("ormqr.default")
def reflect(
    node: TorchNode, self: Node, input2: Node, input3: Node, left: bool = True, transpose: bool = False
) -> Node:
    """A matrix times the product of reflections, from the left or the right."""
    q = algebra.reflected(self, input2, self.shape[-2])
    q = swapped(q) if transpose else q
    return matmul(q, input3) if left else matmul(input3, q)


@aten_rule("_linalg_svd.default", "linalg_svdvals.default")
def svd(node: TorchNode, A: Node, full_matrices: bool = False, compute_uv: bool = True, driver: Any = None) -> Any:
    if node.op == "linalg_svdvals":
        return algebra.singular_values(A)
    if compute_uv and any(user.args[1] != 1 for user in node.fx.users):
        raise node.refused("singular vectors, of which torch's signs depend on its library, are not supported")
    return None, algebra.singular_values(A), None


@aten_rule("_linalg_eigh.default", "linalg_eigvalsh.default")
def eigh(
    node: TorchNode, A: Node | None = None, self: Node | None = None, UPLO: str = "L", compute_v: bool = True
) -> Any:
    matrix = A if A is not None else self
    if matrix is None:
        raise node.refused("it has no argument")
    values = algebra.symmetric_eigenvalues(matrix, upper=UPLO.upper() == "U")
    if node.op == "linalg_eigvalsh":
        return values
    if compute_v and any(user.args[1] != 0 for user in node.fx.users):
        raise node.refused("eigenvectors, of which torch's signs depend on its library, are not supported")
    return values, None


@aten_rule("linalg_pinv.default", "linalg_pinv.atol_rtol_float", "linalg_pinv.atol_rtol_tensor", "pinverse.default")
def pseudo_inverse(
    node: TorchNode,
    self: Node,
    rcond: float | None = None,
    atol: float | Node | None = None,
    rtol: float | Node | None = None,
    hermitian: bool = False,
) -> Node:
    """`hermitian` decides how torch computes the same; it reads the lower triangle alone."""
    if isinstance(atol, Node) or isinstance(rtol, Node):
        raise node.refused("limits that are tensors are not supported")
    if hermitian:
        lower = triangle(self, scalar(0, "int64"), upper=False)
        strict = triangle(self, scalar(-1, "int64"), upper=False)
        self = operator(relax.op.add, lower, swapped(strict))
    given = rtol if rcond is None else rcond
    if given is None:
        given = 0.0 if atol else float(np.finfo(self.dtype).eps) * max(self.shape[-2:])
    return algebra.pseudo_inverse(self, given, atol or 0.0)


@aten_rule("linalg_matrix_exp.default", "matrix_exp.default")
def exponential(node: TorchNode, self: Node) -> Node:
    return algebra.exponential(self)


@aten_rule("linalg_tensorinv.default")
def tensor_inverse(node: TorchNode, self: Node, ind: int = 2) -> Node:
    size = math.prod(self.shape[:ind])
    return reshape(algebra.inverse(reshape(self, (size, size))), node.shape)


@aten_rule("linalg_tensorsolve.default")
def tensor_solve(node: TorchNode, self: Node, other: Node, dims: Sequence[int] | None = None) -> Node:
    moved = [dim % len(self.shape) for dim in dims or ()]
    matrix = transpose(self, [*(axis for axis in range(len(self.shape)) if axis not in moved), *moved])
    size = math.prod(other.shape)
    found = algebra.solve(reshape(matrix, (size, size)), reshape(other, (size, 1)))
    return reshape(found, node.shape)
