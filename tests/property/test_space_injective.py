"""Every sampled configuration of the injective template moves every element to its place."""

import numpy as np
import pytest
from tvm import tirx, topi

from calumma.expressions import blocking, math
from calumma.operators.rows import space as rows
from calumma.space import injective, reduction
from tests import isas
from tests.prim_funcs import check_space, prim_func


def _array(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


A, B = _array(2, 3, 5, 7, 16), _array(1, 3, 1, 1, 16)
MATRIX, ROW = _array(37, 53), _array(53)
HEADS = _array(1, 19, 3, 24)
IMAGE = _array(1, 20, 6, 7)

CASES = {
    "relu": (lambda x: topi.maximum(x, 0.0), [A], np.maximum(A, 0)),
    "bias and relu": (lambda x, b: topi.maximum(topi.add(x, b), 0.0), [A, B], np.maximum(A + B, 0)),
    "ragged flat": (lambda x: topi.multiply(x, x), [MATRIX], MATRIX * MATRIX),
    "ragged broadcast": (topi.add, [MATRIX, ROW], MATRIX + ROW),
    "transpose": (lambda x: topi.transpose(x, [0, 2, 3, 1]), [HEADS], HEADS.transpose(0, 2, 3, 1)),
    "heads": (lambda x: topi.transpose(x, [0, 2, 1, 3]), [HEADS], HEADS.transpose(0, 2, 1, 3)),
    "transpose and reshape": (
        lambda x: topi.reshape(topi.transpose(x, [0, 2, 1, 3]), (1, 3, 19 * 24)),
        [HEADS],
        HEADS.transpose(0, 2, 1, 3).reshape(1, 3, 19 * 24),
    ),
    "concat of blocks": (lambda x, y: topi.concatenate([x, y], 1), [A, A * 2], np.concatenate([A, A * 2], 1)),
    "concat of rows": (lambda x, y: topi.concatenate([x, y], 1), [MATRIX, MATRIX], np.hstack([MATRIX, MATRIX])),
    "slice": (lambda x: topi.strided_slice(x, [3, 1], [30, 53], [2, 3]), [MATRIX], MATRIX[3:30:2, 1:53:3]),
    "pad": (lambda x: topi.nn.pad(x, [1, 2], [0, 3]), [MATRIX], np.pad(MATRIX, [(1, 0), (2, 3)])),
    "block channels": (
        lambda x: blocking.block_channels(x, 16),
        [IMAGE],
        np.pad(IMAGE, [(0, 0), (0, 12), (0, 0), (0, 0)]).reshape(1, 2, 16, 6, 7).transpose(0, 1, 3, 4, 2),
    ),
    "unblock and flatten": (
        lambda x: topi.reshape(blocking.unblock_channels(x, 40), (2, 40 * 35)),
        [A],
        A.transpose(0, 1, 4, 2, 3).reshape(2, 48, 35)[:, :40].reshape(2, -1),
    ),
    "gelu chain": (lambda x: math.elementwise(math.exp, topi.add(x, x), "exp"), [MATRIX], np.exp(2 * MATRIX)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    operator, inputs, expected = CASES[name]
    func = prim_func(operator, *(i.shape for i in inputs))
    assert injective.matches(func)
    assert not rows.matches(func)
    assert not reduction.matches(func)
    check_space(injective.InjectiveSpace, func, inputs, expected, isas.target(), n=6)


def test_what_is_too_large_to_compile_is_not_inlined():
    """Five swishes multiplied out are 2^5 sigmoids; TVM would not return from compiling their nested bindings."""

    def swishes(x):
        for _ in range(5):
            x = topi.multiply(x, math.elementwise(math.sigmoid, x, "sigmoid"))
        return x

    expected = MATRIX
    for _ in range(5):
        expected = expected / (1 + np.exp(-expected))
    func = prim_func(swishes, MATRIX.shape)
    assert injective.matches(func)
    check_space(injective.InjectiveSpace, func, [MATRIX], expected, isas.target(), n=2)


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize("name", ["ragged flat", "transpose", "gelu chain"])
def test_narrow_vectors(name, isa):
    operator, inputs, expected = CASES[name]
    func = prim_func(operator, *(i.shape for i in inputs))
    check_space(injective.InjectiveSpace, func, inputs, expected, isas.target(isa), n=4)


def test_gather():
    table, positions = _array(11, 24), np.array([3, 10, 0, 3], dtype="int64")
    func = prim_func(lambda x, i: topi.take(x, i, axis=0, mode="clip"), (11, 24), (4,), dtypes=["float32", "int64"])
    check_space(injective.InjectiveSpace, func, [table, positions], table[positions], isas.target(), n=4)


def test_small_functions_stay_on_one_thread():
    def default(size):
        space = injective.InjectiveSpace(prim_func(lambda x: topi.maximum(x, 0.0), (size,)), isas.target(), 2)
        return space.decode(space.default())["parallel"]

    assert default(1000) == 0
    assert default(1 << 20) == 1


def test_axes_that_every_access_shares_become_one_loop():
    bias = injective.InjectiveSpace(prim_func(CASES["bias and relu"][0], A.shape, B.shape), isas.target(), 2)
    assert bias.nests[0].extents == (2, 3, 35, 16)
    relu = injective.InjectiveSpace(prim_func(CASES["relu"][0], A.shape), isas.target(), 2)
    assert relu.nests[0].extents == (A.size,)
    shifted = prim_func(lambda x: topi.multiply(x, tirx.const(2.0, "float32")), (4, 1, 8))
    assert injective.InjectiveSpace(shifted, isas.target(), 2).nests[0].extents == (32,)
