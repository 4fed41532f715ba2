"""Every sampled configuration of the matmul template computes the right products."""

import numpy as np
import pytest
from tvm import topi

from calumma.contractions.matmul import expression as matmul
from calumma.contractions.matmul.space import MatmulSpace
from tests import isas, reference
from tests.prim_funcs import check_space, prim_func

DENSE = {
    "one row": ((1, 64), 48),
    "one row, 1000 columns": ((1, 32), 1000),
    "one row, a prime number of column pairs": ((1, 16), 352),
    "one row, a prime number of column triples": ((1, 16), 528),
    "one column": ((6, 24), 1),
    "197 rows": ((1, 197, 16), 48),
    "odd everything": ((13, 17), 19),
    "rows over two axes": ((2, 9, 32), 40),
}

# shapes of both operands, then how each is transposed and the result written
BATCHED = {
    "plain": ((2, 9, 24), (2, 24, 20), None, None, None),
    "matrices": ((18, 12), (12, 33), None, None, None),
    "one row": ((3, 1, 16), (3, 16, 40), None, None, None),
    "197 rows": ((1, 197, 8), (1, 8, 24), None, None, None),
    "queries and keys of heads": ((1, 9, 2, 16), (1, 9, 2, 16), (0, 2, 1, 3), (0, 2, 3, 1), None),
    "values, heads joined": ((1, 2, 9, 9), (1, 9, 2, 16), None, (0, 2, 1, 3), (0, 2, 1, 3)),
    "left broadcasts": ((1, 1, 7, 8), (2, 3, 8, 16), None, None, None),
    "right broadcasts": ((2, 3, 7, 8), (1, 3, 8, 5), None, None, None),
}


def _dense(name, isa, n):
    lanes = isas.lanes(isa)
    shape, columns = DENSE[name]
    data, weight = reference.random(*shape), reference.random(shape[-1], columns)
    bias = reference.random(columns)
    packed = matmul.pack_dense_weight(weight, lanes)

    def layer(x, w, b):
        return topi.nn.relu(topi.add(matmul.dense(x, w, columns), b))

    func = prim_func(layer, data.shape, packed.shape, bias.shape)
    expected = np.maximum(data.astype("float64") @ weight + bias, 0).astype("float32")
    check_space(MatmulSpace, func, [data, packed, bias], expected, isas.target(isa), n)


def _transposed(array, axes):
    return array if axes is None else array.transpose(axes)


def _batched(name, isa, n):
    lanes = isas.lanes(isa)
    left_shape, right_shape, left_axes, right_axes, out_axes = BATCHED[name]
    left, right = reference.random(*left_shape), reference.random(*right_shape, seed=1)
    product = np.matmul(_transposed(left.astype("float64"), left_axes), _transposed(right, right_axes))
    expected = _transposed(product, out_axes).astype("float32")

    def operator(x, y):
        return matmul.batch_matmul(x, y, lanes, left_axes, right_axes, out_axes)

    func = prim_func(operator, left.shape, right.shape)
    check_space(MatmulSpace, func, [left, right], expected, isas.target(isa), n)


@pytest.mark.parametrize("name", DENSE)
def test_dense(name):
    _dense(name, isas.NATIVE, n=10)


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize("name", ["one row", "197 rows", "odd everything"])
def test_dense_narrow_vectors(name, isa):
    _dense(name, isa, n=4)


@pytest.mark.parametrize("name", BATCHED)
def test_batch_matmul(name):
    _batched(name, isas.NATIVE, n=12)


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize("name", ["queries and keys of heads", "plain"])
def test_batch_matmul_narrow_vectors(name, isa):
    _batched(name, isa, n=5)


def test_scaled_product_with_a_mask():
    left, right, mask = reference.random(2, 9, 8), reference.random(2, 8, 20, seed=1), reference.random(1, 1, 20)
    func = prim_func(
        lambda x, y, m: topi.add(topi.multiply(matmul.batch_matmul(x, y, isas.lanes()), 0.5), m),
        left.shape,
        right.shape,
        mask.shape,
    )
    expected = 0.5 * np.matmul(left, right) + mask
    check_space(MatmulSpace, func, [left, right, mask], expected, isas.target(), n=8)


@pytest.mark.parametrize("level, lanes", isas.LEVELS.items())
def test_every_size_has_a_default(level, lanes):
    target = isas.target(level)
    for rows in (1, 2, 3, 5, 11, 13, 14):
        for blocks in (1, 2, 5, 11, 13, 22, 26, 33, 39, 62):
            func = prim_func(lambda x, w: matmul.dense(x, w, blocks * lanes), (rows, 8), _packed(8, blocks, lanes))  # noqa: B023
            space = MatmulSpace(func, target, 2)
            assert space.valid(space.default()[None])[0]


def _packed(depth, blocks, lanes):
    return matmul.column_blocks(blocks * lanes, lanes), depth, lanes
