"""The generated space computes the right thing in every sketch, and keeps its encoding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import topi

from calumma.core.errors import InputError
from calumma.operators import design_space
from calumma.space import generated
from calumma.space.generated import GeneratedSpace
from calumma.testing import check_space as check_contract
from tests import isas
from tests.prim_funcs import apply, check_space, prim_func


def _array(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


CASES: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "conv3d": (lambda x, w: topi.nn.conv3d_ncdhw(x, w, 1, 1, 1, 1), [_array(1, 3, 4, 6, 6), _array(8, 3, 3, 3, 3)]),
    "conv1d and relu": (
        lambda x, w: topi.nn.relu(topi.nn.conv1d_ncw(x, w, 1, 1, 1)),
        [_array(1, 8, 30), _array(12, 8, 3)],
    ),
    "transposed conv2d": (
        lambda x, w: topi.nn.conv2d_transpose_nchw(x, w, (2, 2), (1, 1, 1, 1), "float32", (0, 0)),
        [_array(1, 4, 5, 5), _array(4, 6, 4, 4)],
    ),
    "contraction": (lambda x, y: topi.einsum("bijk,bljk->bil", x, y), [_array(2, 10, 3, 8), _array(2, 12, 3, 8)]),
    "sum of all": (lambda x: topi.sum(x, axis=(0, 1)), [_array(48, 32, 5)]),
    "prefix sum": (lambda x: topi.cumsum(x, 1), [_array(6, 20)]),
}


def _space(name, isa=isas.NATIVE):
    operator, inputs = CASES[name]
    return GeneratedSpace(prim_func(operator, *(i.shape for i in inputs)), isas.target(isa), 2)


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    operator, inputs = CASES[name]
    func = prim_func(operator, *(i.shape for i in inputs))
    check_space(GeneratedSpace, func, inputs, apply(operator, *inputs), isas.target(), n=6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("isa", [isas.NATIVE, *isas.LEVELS])
def test_contract(name, isa):
    check_contract(_space(name, isa))


@pytest.mark.parametrize("isa", isas.NARROWER)
@pytest.mark.parametrize("name", ["conv1d and relu", "contraction"])
def test_narrow_vectors(name, isa):
    operator, inputs = CASES[name]
    func = prim_func(operator, *(i.shape for i in inputs))
    check_space(GeneratedSpace, func, inputs, apply(operator, *inputs), isas.target(isa), n=4)


def test_two_spaces_of_one_function_agree():
    """Workers make the space again: names, values and traces must not depend on what generation drew."""
    one, other = _space("conv1d and relu"), _space("conv1d and relu")
    assert one.knobs == other.knobs
    config = one.decode(one.sample(np.random.default_rng(3), 5)[4])
    assert str(one.schedule(config).trace) == str(other.schedule(config).trace)


def test_sketches_share_the_knobs_of_equal_decisions():
    space = _space("contraction")
    assert len(space.sketches) == 3
    assert len(space.knobs) - 1 == max(len(sketch.decisions) for sketch in space.sketches)


def test_a_knob_the_sketch_does_not_have_stays_at_zero():
    space = _space("sum of all")
    without = min(range(len(space.sketches)), key=lambda s: len(space.sketches[s].decisions))
    row = np.zeros(len(space.knobs), dtype=np.int32)
    row[0] = without
    assert space.valid(row[None, :])[0]
    d = next(d for d, knob in enumerate(space.knobs) if knob.name.startswith("tile_"))
    row[d] = 1
    assert not space.valid(row[None, :])[0]


def test_tiles_are_all_factorisations():
    tiles = _space("contraction").knobs[3].values
    assert tiles[0] == "12,1,1,1"
    assert len(tiles) == 40  # 12 = 2 * 2 * 3: C(5, 3) * C(4, 3)
    assert all(np.prod([int(f) for f in tile.split(",")]) == 12 for tile in tiles)


def test_a_foreign_tile_is_refused():
    space = _space("contraction")
    with pytest.raises(InputError, match="cannot be '5,1,1,2'"):
        space.schedule({**space.decode(space.default()), space.knobs[3].name: "5,1,1,2"})


def test_dense_reductions_without_a_template_get_it():
    target = isas.target()

    def template(operator, *shapes):
        return design_space(prim_func(operator, *shapes), target, 2).template

    assert template(CASES["conv3d"][0], (1, 16, 8, 14, 14), (16, 16, 3, 3, 3)) == GeneratedSpace.template
    assert template(lambda x, y: topi.nn.batch_matmul(x, y), (4, 64, 64), (4, 64, 64)) == GeneratedSpace.template
    assert not generated.matches(prim_func(lambda x: topi.sum(x, axis=1), (64, 300)))
    assert not generated.matches(prim_func(CASES["prefix sum"][0], (6, 20)))
