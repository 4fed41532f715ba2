"""A small model of four kernels, scheduled by hand, and what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from calumma import tvm_compat
from calumma.artifact import LoweredModel, TensorSpec
from calumma.core import hardware as host

THREADS = min(2, host.physical_cores())
X = TensorSpec("data:0", (4, 8), "float32")
OUTPUTS = (TensorSpec("product", (2, 32), "float32"), TensorSpec("half", (4, 16), "float32"))


def lowered_model(scale: float = 1.0) -> LoweredModel:
    """x (4, 8), w (8, 16), b (16) -> dense = scale * (x w + b); reshape(dense + dense, (2, 32)), bf16(dense / 2).

    The dense kernel runs in parallel, the second kernel is called twice, the third has two outputs, one of them bf16.
    """
    tvm_compat.load()
    from tvm import relax

    def tensor(*shape: int, dtype: str = "float32"):
        return relax.TensorType(shape, dtype)

    builder = relax.BlockBuilder()
    x, w, b = relax.Var("x", tensor(4, 8)), relax.Var("w", tensor(8, 16)), relax.Var("b", tensor(16))
    zero = relax.Var("zero", tensor(4, 16))
    with builder.function("main", [x, w, b, zero]):
        with builder.dataflow():
            functions = {name: builder.add_func(func, name) for name, func in kernels(scale).items()}

            def call(name: str, *arguments, result):
                return builder.emit(relax.call_tir(functions[name], relax.Tuple(list(arguments)), result))

            total = call("dense", x, w, b, result=tensor(4, 16))
            same = call("add", total, zero, result=tensor(4, 16))
            pair = call("halve", same, result=[tensor(4, 16), tensor(4, 16, dtype="bfloat16")])
            double = call("add", builder.emit(relax.TupleGetItem(pair, 0)), total, result=tensor(4, 16))
            flat = builder.emit(relax.op.reshape(double, (2, 32)))
            half = call("widen", builder.emit(relax.TupleGetItem(pair, 1)), result=tensor(4, 16))
            result = builder.emit_output(relax.Tuple([flat, half]))
        builder.emit_func_output(result)
    rng = np.random.default_rng(0)
    weights = (
        rng.standard_normal((8, 16), np.float32),
        rng.standard_normal(16, np.float32),
        np.zeros((4, 16), np.float32),
    )
    return LoweredModel(builder.get(), weights, (X,), OUTPUTS, {"model": "test", "scale": scale})


def kernels(scale: float) -> dict[str, Any]:
    """The PrimFuncs that the model calls, by name."""
    tvm = tvm_compat.load()
    from tvm import te

    def dense():
        x, w, b = te.placeholder((4, 8)), te.placeholder((8, 16)), te.placeholder((16,))
        k = te.reduce_axis((0, 8))
        product = te.compute((4, 16), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), name="product")
        total = te.compute(
            (4, 16), lambda i, j: (product[i, j] + b[j]) * tvm.tirx.const(scale, "float32"), name="total"
        )
        schedule = tvm.s_tir.Schedule(te.create_prim_func([x, w, b, total]))
        row, column = schedule.get_loops(schedule.get_sblock("total"))
        schedule.parallel(row)
        schedule.vectorize(column)
        return schedule.mod["main"]

    def add():
        a, b = te.placeholder((4, 16)), te.placeholder((4, 16))
        return te.create_prim_func([a, b, te.compute((4, 16), lambda i, j: a[i, j] + b[i, j])])

    def halve():
        a = te.placeholder((4, 16))
        same, half = te.compute(
            (4, 16), lambda i, j: (a[i, j], (a[i, j] * tvm.tirx.const(0.5, "float32")).astype("bfloat16"))
        )
        return te.create_prim_func([a, same, half])

    def widen():
        a = te.placeholder((4, 16), dtype="bfloat16")
        return te.create_prim_func([a, te.compute((4, 16), lambda i, j: a[i, j].astype("float32"))])

    return {kernel.__name__: kernel() for kernel in (dense, add, halve, widen)}


def expected(model: LoweredModel, x: np.ndarray) -> list[np.ndarray]:
    w, b, _ = model.params
    dense = (x @ w + b) * np.float32(model.metadata["scale"])
    return [(2 * dense).reshape(2, 32), dense / 2]


def check(outputs: Any, reference: list[np.ndarray]) -> None:
    np.testing.assert_allclose(outputs[0], reference[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs[1], reference[1], rtol=2**-8)  # through bfloat16: 8 bits


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 8), np.float32)
