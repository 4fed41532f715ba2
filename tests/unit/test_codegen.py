"""The build pipeline: accumulators stay on the stack, large local buffers do not; maxima stay vectors."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tvm import te, tirx

from calumma import tvm_compat
from calumma.space import blocks
from calumma.tvm_compat import codegen

TARGET = tvm_compat.target_for()
LANES = TARGET.lanes


def staged_sum(elements: int) -> tuple[str, np.ndarray]:
    """LLVM text of y = 2 (x + 1) with x + 1 in a local buffer of `elements`, and y of x = 1."""
    x = te.placeholder((4, elements), name="x")
    stage = te.compute(x.shape, lambda i, j: x[i, j] + 1.0, name="stage")
    y = te.compute(x.shape, lambda i, j: stage[i, j] * 2.0, name="y")
    sch = blocks.schedule_of(te.create_prim_func([x, y]))
    inner = sch.get_sblock("stage")
    sch.compute_at(inner, sch.get_loops(sch.get_sblock("y"))[0])
    sch.set_scope(inner, 0, "local")
    library = codegen.build(sch.mod, tvm_compat.tvm_target(TARGET, 1))
    tvm = tvm_compat.load()
    out = tvm.runtime.tensor(np.zeros((4, elements), np.float32))
    library["main"](tvm.runtime.tensor(np.ones((4, elements), np.float32)), out)
    return str(library.inspect_source("ll")), out.numpy()


@pytest.mark.parametrize(("elements", "on_stack"), [(28 * 16, True), (1 << 16, False)])
def test_small_local_buffers_stay_on_the_stack(elements: int, on_stack: bool) -> None:
    text, result = staged_sum(elements)
    assert ("TVMBackendAllocWorkspace" not in text) is on_stack
    np.testing.assert_array_equal(result, 4.0)


@pytest.mark.parametrize(
    ("dtype", "operands", "tested"), [("float32", 2, True), ("float32", 1, False), ("int32", 2, False)]
)
def test_only_maxima_of_two_floats_test_for_nan_and_in_vectors(dtype: str, operands: int, tested: bool) -> None:
    x, *others = (te.placeholder((4, LANES), dtype, f"x{i}") for i in range(operands))
    bound = (lambda *i: others[0][i]) if others else (lambda *i: tirx.const(0, dtype))
    y = te.compute(x.shape, lambda *i: tirx.max(x[i], bound(*i)), name="y")
    sch = blocks.schedule_of(te.create_prim_func([x, *others, y]))
    sch.vectorize(sch.get_loops(sch.get_sblock("y"))[1])
    text = str(codegen.build(sch.mod, tvm_compat.tvm_target(TARGET, 1)).inspect_source("ll"))
    comparisons = set(re.findall(r"fcmp (\w+) <(\d+) x float>", text))
    assert ("ord" in dict(comparisons)) is tested
    assert {width for _, width in comparisons} == ({str(LANES)} if dtype == "float32" else set())
