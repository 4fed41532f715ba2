"""TVM with its threads set, and the kit's functions for tests of operators and templates."""

from __future__ import annotations

from calumma import tvm_compat

tvm_compat.set_threads(2)
tvm = tvm_compat.load()

from tvm import te, tirx  # noqa: E402  (after the threads are set)

from calumma.testing import apply, call, prim_func, run  # noqa: E402
from calumma.testing import check_template as check_space  # noqa: E402

__all__ = ["apply", "call", "check_space", "prim_func", "run", "te", "tirx", "tvm"]
