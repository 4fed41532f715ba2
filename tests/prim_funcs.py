"""Building, running and checking PrimFuncs in tests of operators and templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.space.base import KnobSpace
from calumma.target import Target

tvm_compat.set_threads(2)
tvm = tvm_compat.load()

from tvm import te, tirx  # noqa: E402  (after the threads are set)

from calumma.tvm_compat import codegen  # noqa: E402
from tests import isas  # noqa: E402

Arrays = list[NDArray]


def prim_func(operator: Callable[..., te.Tensor], *shapes: Sequence[int], dtypes: Sequence[str] = ()) -> tirx.PrimFunc:
    """An operator over placeholders of the given shapes (float32 unless `dtypes` says otherwise)."""
    kinds = [*dtypes, *["float32"] * (len(shapes) - len(dtypes))]
    inputs = [te.placeholder(s, d, name=f"x{i}") for i, (s, d) in enumerate(zip(shapes, kinds, strict=True))]
    return te.create_prim_func([*inputs, operator(*inputs)]).with_attr("global_symbol", "main")


def run(scheduled: tvm.IRModule, inputs: Arrays, shape: Sequence[int], target: Target) -> NDArray:
    """Build for `target`, run once, return the output: float32, NaN before the run so that a hole in it shows."""
    isas.require(target.mcpu)
    return call(codegen.build(scheduled, tvm_compat.tvm_target(target, 2)), inputs, shape)


def call(library: Any, inputs: Arrays, shape: Sequence[int]) -> NDArray:
    """Run a built function, see `run`."""
    arguments = [tvm.runtime.tensor(array, tvm.cpu()) for array in inputs]
    output = tvm.runtime.tensor(np.full(shape, np.nan, "float32"), tvm.cpu())
    library["main"](*arguments, output)
    return output.numpy()


def apply(operator: Callable[..., te.Tensor], *inputs: NDArray) -> NDArray:
    """The operator's result on arrays, unscheduled."""
    func = prim_func(operator, *(i.shape for i in inputs), dtypes=[str(i.dtype) for i in inputs])
    shape = operator(*(te.placeholder(i.shape, str(i.dtype)) for i in inputs)).shape
    return run(tvm.IRModule({"main": func}), list(inputs), [int(s) for s in shape], tvm_compat.target_for())


def check_space(
    make: Callable[[tirx.PrimFunc, Target, int], KnobSpace],
    func: tirx.PrimFunc,
    inputs: Arrays,
    expected: NDArray,
    target: Target,
    n: int,
    tolerance: float = 2e-5,
) -> None:
    """The defaults and `n` random configurations compute `expected`; encoding, features and names agree."""
    isas.require(target.mcpu)
    space = make(func, target, 2)
    rng = np.random.default_rng(0)
    defaults = np.unique([space.default(), space.default_in_model()], axis=0)
    drawn = np.concatenate([defaults, space.sample(rng, n)])
    assert space.valid(drawn).all()
    configs = [space.decode(indices) for indices in drawn]
    built_for = tvm_compat.tvm_target(target, 2)
    with ThreadPoolExecutor(2) as builders:
        libraries = list(builders.map(lambda config: codegen.build(space.schedule(config).mod, built_for), configs))
    for indices, config, library in zip(drawn, configs, libraries, strict=True):
        assert np.array_equal(space.encode(config), indices)
        repacking = space.repacking(config)
        arguments = [repacking[i].apply(array) if i in repacking else array for i, array in enumerate(inputs)]
        actual = call(library, arguments, expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=str(config))
    table = space.features(drawn)
    assert table.shape == (len(drawn), len(space.feature_names))
    assert np.isfinite(table).all()
    np.testing.assert_array_equal(table[1:2], space.features(drawn[1:2]))
