"""Building, running and checking single functions: what tests of operators and templates need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import te, tirx

from calumma import tvm_compat
from calumma.core import hardware as host
from calumma.core.errors import InputError
from calumma.core.protocols import Template
from calumma.target import Target
from calumma.tvm_compat import codegen

THREADS = 2
"""Of a thread pool, for which functions are built and spaces made."""

Arrays = list[NDArray]


def prim_func(operator: Callable[..., te.Tensor], *shapes: Sequence[int], dtypes: Sequence[str] = ()) -> tirx.PrimFunc:
    """An operator over placeholders of the given shapes (float32 unless `dtypes` says otherwise)."""
    kinds = [*dtypes, *["float32"] * (len(shapes) - len(dtypes))]
    inputs = [te.placeholder(s, d, name=f"x{i}") for i, (s, d) in enumerate(zip(shapes, kinds, strict=True))]
    return te.create_prim_func([*inputs, operator(*inputs)]).with_attr("global_symbol", "main")


def missing_flags(target: Target) -> tuple[str, ...]:
    """Flags of /proc/cpuinfo that code for `target` may rely on and this CPU lacks, sorted.

    An emulator may show the flags of the machine that it runs on; what LLVM takes the CPU for is asked too.
    """
    present = host.cpu_flags() & set(tvm_compat.target_for().flags)
    return tuple(sorted(set(target.flags) - present))


def require(target: Target) -> None:
    """Refuse to run code for `target` where the CPU lacks its instructions: it would end the process.

    Raises:
        InputError: names the missing flags.
    """
    if missing := missing_flags(target):
        raise InputError(f"code for {target.mcpu} cannot run here: this CPU lacks {', '.join(missing)}")


def run(scheduled: tvm.IRModule, inputs: Arrays, shape: Sequence[int], target: Target) -> NDArray:
    """Build for `target`, run once, return the output: float32, NaN before the run so that a hole in it shows.

    Raises:
        InputError: this CPU lacks instructions of `target`.
    """
    require(target)
    return call(codegen.build(scheduled, tvm_compat.tvm_target(target, THREADS)), inputs, shape)


def call(library: Any, inputs: Arrays, shape: Sequence[int]) -> NDArray:
    """Run a built function, see `run`."""
    return call_all(library, inputs, [shape])[0]


def call_all(library: Any, inputs: Arrays, shapes: Sequence[Sequence[int]]) -> Arrays:
    """Run a built function with several outputs, see `run`."""
    arguments = [tvm.runtime.tensor(array, tvm.cpu()) for array in inputs]
    outputs = [tvm.runtime.tensor(np.full(shape, np.nan, "float32"), tvm.cpu()) for shape in shapes]
    library["main"](*arguments, *outputs)
    return [output.numpy() for output in outputs]


def apply(operator: Callable[..., te.Tensor], *inputs: NDArray) -> NDArray:
    """The operator's result on arrays, unscheduled."""
    func = prim_func(operator, *(i.shape for i in inputs), dtypes=[str(i.dtype) for i in inputs])
    shape = operator(*(te.placeholder(i.shape, str(i.dtype)) for i in inputs)).shape
    return run(tvm.IRModule({"main": func}), list(inputs), [int(s) for s in shape], tvm_compat.target_for())


def check_template(
    make: Callable[[tirx.PrimFunc, Target, int], Template],
    func: tirx.PrimFunc,
    inputs: Arrays,
    expected: NDArray | Arrays | None = None,
    target: Target | None = None,
    n: int = 8,
    tolerance: float = 2e-5,
) -> None:
    """Assert that a template's defaults and random configurations compute the right result.

    What it promises as a space to search in is a check of its own, `check_space`.

    Args:
        make: (function, target, threads) -> its space, as workers make it.
        func: the unscheduled function.
        inputs: its arguments without the outputs, weights as the workload takes them.
        expected: the output, or a list of several; what the unscheduled function computes if not given.
        target: what is compiled for; this machine if not given.
        n: random configurations that are built and run beside the defaults.
        tolerance: relative and absolute error of an element.

    Raises:
        AssertionError: some promise is not kept, or a configuration computes something else; says which.
        InputError: this CPU lacks instructions of `target`.
    """
    target = target or tvm_compat.target_for()
    require(target)
    built_for = tvm_compat.tvm_target(target, THREADS)
    if expected is None:
        shapes = [[int(extent) for extent in output.shape] for output in func.params[len(inputs) :]]
        expected = call_all(codegen.build(func, built_for), inputs, shapes)
    wanted = expected if isinstance(expected, list) else [expected]
    space = make(func, target, THREADS)
    assert space.template and space.version >= 1
    defaults = np.unique([space.default(), space.default_in_model()], axis=0)
    drawn = np.concatenate([defaults, space.sample(np.random.default_rng(0), n)])
    assert space.valid(drawn).all()
    estimates = space.estimate(drawn)
    assert estimates.shape == (len(drawn),) and (estimates > 0).all()
    configs = [space.decode(indices) for indices in drawn]
    np.testing.assert_array_equal([space.encode(config) for config in configs], drawn)
    table = space.features(drawn)
    assert table.shape == (len(drawn), len(space.feature_names)) and np.isfinite(table).all()
    np.testing.assert_array_equal(space.features(drawn[1:2]), table[1:2])
    with ThreadPoolExecutor(THREADS) as builders:
        libraries = list(builders.map(lambda config: codegen.build(space.schedule(config).mod, built_for), configs))
    for config, library in zip(configs, libraries, strict=True):
        repacking = space.repacking(config)
        arguments = [repacking[i].apply(array) if i in repacking else array for i, array in enumerate(inputs)]
        for actual, right in zip(call_all(library, arguments, [w.shape for w in wanted]), wanted, strict=True):
            np.testing.assert_allclose(actual, right, rtol=tolerance, atol=tolerance, err_msg=str(config))
    np.testing.assert_array_equal(space.features(drawn), table, err_msg="scheduling changed the features")
