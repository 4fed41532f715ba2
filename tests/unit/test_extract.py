"""Tasks: one per distinct kernel, however often it is called, with what is known before measuring."""

from __future__ import annotations

import tvm

from calumma import tvm_compat
from calumma.lowering.lowering import LoweredGraph
from calumma.pipeline.extraction import extract_tasks
from calumma.tasks import extract
from tests.onnx_models import Model


def _lowered(model: Model, *outputs: str) -> LoweredGraph:
    return extract_tasks(model.bytes(*outputs), tvm_compat.target_for("x86-64-v4")).graph


def _stack(layers: int, seed: int = 0) -> LoweredGraph:
    m = Model(seed=seed)
    x = m.op("Relu", m.conv(m.input(1, 3, 8, 8), (3, 32)))
    for _ in range(layers):
        x = m.op("Relu", m.conv(x, (32, 32)))
    return _lowered(m, m.op("GlobalAveragePool", x))


def test_equal_layers_are_one_task_with_their_number_as_weight():
    graph = _stack(4)
    parts = extract(graph.mod, 1)
    repeated = max(parts.tasks, key=lambda task: task.weight)
    assert repeated.weight == 4
    assert len({task.workload.hash for task in parts.tasks}) == len(parts.tasks) == len(parts.functions)
    assert sum(task.weight for task in parts.tasks) == 7


def test_flops_and_bytes_are_those_of_the_layer():
    parts = extract(_stack(4).mod, 1)
    task = max(parts.tasks, key=lambda task: task.weight)
    macs = 8 * 8 * 32 * 32 * 9
    outputs = 8 * 8 * 32
    assert 2 * macs <= task.flops <= 2 * macs + 4 * outputs
    weights = 4 * (32 * 32 * 9 + 32)
    assert task.size_bytes == weights + 2 * 4 * outputs
    assert parts.weight_bytes[task.workload.hash] == weights
    assert task.intensity == task.flops / task.size_bytes


def test_a_workload_is_the_same_in_another_model():
    one, other = (extract(_stack(layers, seed).mod, 1) for layers, seed in ((2, 0), (5, 1)))
    assert {t.workload.hash for t in one.tasks} == {t.workload.hash for t in other.tasks}
    for task in one.tasks:
        key = task.workload.hash
        tvm.ir.assert_structural_equal(one.functions[key], other.functions[key])


def test_the_text_of_a_workload_is_its_function():
    parts = extract(_stack(1).mod, 1)
    for task in parts.tasks:
        loaded = tvm.ir.load_json(task.workload.text)
        tvm.ir.assert_structural_equal(loaded, parts.functions[task.workload.hash])
        shapes = [(tuple(int(d) for d in p.ty.shape), str(p.ty.dtype)) for p in loaded.params]
        assert list(task.arguments) == shapes


def test_main_calls_exactly_the_tasks():
    parts = extract(_stack(3).mod, 1)
    functions = {str(v.name_hint) for v, f in parts.mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    assert functions == {task.name for task in parts.tasks}
    called = [
        str(binding.value.args[0].name_hint)
        for block in parts.mod["main"].body.blocks
        for binding in block.bindings
        if getattr(getattr(binding.value, "op", None), "name", "") == "relax.call_tir"
    ]
    assert {name: called.count(name) for name in functions} == {task.name: task.weight for task in parts.tasks}


def test_activations_are_no_weights():
    m = Model()
    x, y = m.input(2, 8, 16), m.input(2, 16, 32)
    graph = _lowered(m, m.op("MatMul", x, y))
    parts = extract(graph.mod, 2)
    assert len(parts.tasks) == 1
    assert list(parts.weight_bytes.values()) == [0]
    assert parts.tasks[0].flops == 2 * (2 * 8 * 16 * 32)
