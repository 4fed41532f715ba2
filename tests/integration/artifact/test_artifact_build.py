"""Building a model: its plan, its machine code, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from calumma import tvm_compat
from calumma.artifact import Artifact, Executable, LoweredModel, build, load, save
from calumma.core.errors import InternalError
from tests.artifact_model import THREADS, X, check, expected, inputs


def test_plan_reuses_memory_and_keeps_kernels_apart(executable: Executable) -> None:
    plan = executable.plan
    assert [getattr(step, "kernel", None) for step in plan.steps] == ["dense", "add", "halve", "add", "widen"]
    arena = {slot.offset: slot.size_bytes for slot in plan.slots if slot.section == "arena"}
    assert plan.arena_bytes < sum(slot.size_bytes for slot in plan.slots if slot.section == "arena")
    assert max(offset + size for offset, size in arena.items()) <= plan.arena_bytes
    assert plan.weights_bytes == 512 + 64 + 256


def test_built_for_a_smaller_cpu(model: LoweredModel, tmp_path: Path) -> None:
    executable = build(model, tvm_compat.target_for("x86-64-v3"), THREADS)
    assert "avx2" in executable.flags
    assert not any(flag.startswith("avx512") for flag in executable.flags)
    save(executable, model.params, model.metadata, tmp_path / "model.so")
    check(load(tmp_path / "model.so", THREADS)(inputs()), expected(model, inputs()))


def test_weights_that_do_not_fit(model: LoweredModel, executable: Executable) -> None:
    with pytest.raises(InternalError, match="2 parameters given, 3 expected"):
        Artifact.from_executable(executable, model.params[:2], {})
    with pytest.raises(InternalError, match=r"parameter 0 is \(\(16, 8\), 'float32'\), expected"):
        Artifact.from_executable(executable, (model.params[0].T, *model.params[1:]), {})


def model_of(body: Callable) -> LoweredModel:
    """A model of one input whose `main` returns body(BlockBuilder, x)."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(builder, x))
        builder.emit_func_output(result)
    return LoweredModel(builder.get(), (), (X,), (X,))


def test_foreign_operators_are_refused() -> None:
    tvm = tvm_compat.load()
    target = tvm_compat.target_for()
    with pytest.raises(InternalError, match=r"main contains relax\.nn\.relu, expected call_tir"):
        build(model_of(lambda builder, x: tvm.relax.op.nn.relu(x)), target, THREADS)


def test_kernel_that_cannot_be_built_is_named() -> None:
    tvm = tvm_compat.load()
    from tvm import relax, te

    def kernel(block: str, on_gpu: bool):
        a = te.placeholder((4, 8))
        schedule = tvm.s_tir.Schedule(
            te.create_prim_func([a, te.compute((4, 8), lambda i, j: a[i, j] + 1, name=block)])
        )
        if on_gpu:
            schedule.bind(schedule.get_loops(schedule.get_sblock(block))[0], "threadIdx.x")
        return schedule.mod["main"]

    def body(builder, x):
        for name in ("good", "bad"):
            function = builder.add_func(kernel(name, name == "bad"), name)
            x = builder.emit(relax.call_tir(function, relax.Tuple([x]), relax.TensorType((4, 8), "float32")))
        return x

    with pytest.raises(InternalError, match=r"kernel bad cannot be built: .+"):
        build(model_of(body), tvm_compat.target_for(), THREADS)
