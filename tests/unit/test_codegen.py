"""The build pipeline: accumulators stay on the stack, large local buffers do not."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import te

from calumma import tvm_compat
from calumma.space import blocks
from calumma.tvm_compat import codegen

TARGET = tvm_compat.target_for()


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
