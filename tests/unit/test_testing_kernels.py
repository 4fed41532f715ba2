"""The kit's functions that build and run code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tvm import topi

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.operators import design_space
from calumma.testing import check_template, missing_flags, require, run
from tests.prim_funcs import prim_func, tvm


def test_code_for_this_cpu_may_run() -> None:
    require(tvm_compat.target_for())
    assert missing_flags(tvm_compat.target_for()) == ()


def test_code_that_this_cpu_has_no_instructions_for_is_not_run() -> None:
    target = tvm_compat.target_for()
    foreign = replace(target, flags=(*target.flags, "no_such_flag"))
    func = prim_func(topi.nn.relu, (4, 16))
    inputs = [np.ones((4, 16), "float32")]
    with pytest.raises(InputError, match=f"{target.mcpu}.*no_such_flag"):
        run(tvm.IRModule({"main": func}), inputs, (4, 16), foreign)
    with pytest.raises(InputError, match="no_such_flag"):
        check_template(design_space, func, inputs, target=foreign)
    check_template(design_space, func, inputs, n=1)
