"""Branches and loops from graph to artifact: what runs is decided while the model runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tvm import relax

from calumma.artifact import Artifact, load
from calumma.artifact.plan import Loop, Step, calls
from calumma.core import hardware as host
from calumma.graph import control_flow
from calumma.graph.build import operator, scalar
from calumma.graph.imported_model import ImportedModel
from calumma.graph.nodes import INPUT, Graph, Node, constant
from calumma.pipeline import CompileOptions
from calumma.pipeline.compiled import CompiledModel, compile_model
from calumma.pipeline.preparation import prepare

THREADS = min(2, host.physical_cores())
OP = relax.op


def given(name: str, *shape: int, dtype: str = "float32") -> Node:
    return Node(INPUT, shape=shape, dtype=dtype, name=name)


def graph(inputs: list[Node], *outputs: Node) -> Graph:
    return Graph(inputs, list(outputs), [f"y{i}" for i in range(len(outputs))])


def like(*nodes: Node) -> list[Node]:
    """Inputs of a graph inside another one for values of that."""
    return [given(f"c{i}", *node.shape, dtype=node.dtype) for i, node in enumerate(nodes)]


def compiled(model: Graph) -> CompiledModel:
    prepared = prepare(ImportedModel(model, "control flow", "0", {}), CompileOptions(threads=THREADS))
    return compile_model(prepared, {})


def reloaded(model: CompiledModel, folder: Path) -> Artifact:
    model.save(folder / "model.so")
    return load(folder / "model.so", THREADS)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def add(*nodes: Node) -> Node:
    left, right, *others = nodes
    total = operator(OP.add, left, right)
    return add(total, *others) if others else total


def counting_loop(
    trips: Node | None, condition: Node | None, carried: list[Node], captured: list[Node], body: Callable[..., Any]
) -> Any:
    """`body(iteration, carried, captured)` gives whether to go on, the next carried values, and a list to stack."""
    iteration = given("i", dtype="int64")
    inner, outer = like(*carried), like(*captured)
    goes_on, following, stacked = body(iteration, inner, outer)
    rows = int(trips.value) if trips is not None and trips.value is not None else 0
    inside = graph([iteration, *inner, *outer], goes_on, *following, *stacked)
    return control_flow.loop(trips, condition, carried, captured, inside, rows)


def test_branches_within_branches_and_loops() -> None:
    """A branch on an input, one of its sides a branch again, then a loop whose body branches on the iteration."""
    x, first, second = given("x", 2, 40), given("first", dtype="bool"), given("second", dtype="bool")
    shared = operator(OP.exp, x)

    c, a, b = like(second, shared, x)
    a1, b1 = like(a, b)
    a2, b2 = like(a, b)
    deep = control_flow.branch(c, [a, b], graph([a1, b1], a1), graph([a2, b2], operator(OP.multiply, a2, b2)))
    c2, a3, b3 = like(second, shared, x)
    (y,) = control_flow.branch(
        first, [second, shared, x], graph([c, a, b], *deep), graph([c2, a3, b3], add(b3, operator(OP.negative, a3)))
    )

    def body(i: Node, carried: list[Node], captured: list[Node]) -> Any:
        (v,), (w,) = carried, captured
        v1, w1 = like(v, w)
        v2, w2 = like(v, w)
        odd = operator(OP.equal, operator(OP.mod, i, scalar(2, "int64")), scalar(1, "int64"))
        twice = operator(OP.multiply, v2, scalar(2, "float32"))
        (result,) = control_flow.branch(odd, [v, w], graph([v1, w1], add(v1, w1)), graph([v2, w2], twice))
        return scalar(True, "bool"), [result], []

    made, (z,), _ = counting_loop(scalar(5, "int64"), None, [x], [y], body)
    artifact = compiled(graph([x, first, second], y, z, made)).artifact
    value = random(2, 40)
    for chosen in (True, False):
        for other in (True, False):
            e = np.exp(value)
            expected = (e if other else e * value) if chosen else value - e
            total = value.copy()
            for i in range(5):
                total = total + expected if i % 2 else total * 2
            found = artifact(value, np.array(chosen), np.array(other))
            np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found[1], total, rtol=1e-4, atol=1e-5)
            assert found[2] == 5


def loops() -> Graph:
    """A while loop with a limit known when it runs, around a loop of fixed length over a captured matrix.

    Carried: a vector, its predecessor, which the body swaps, and one that nothing changes.
    """
    x, limit, weight = given("x", 1, 24), given("limit", dtype="int64"), constant(0.2 * random(24, 24, seed=1))
    bound = given("bound")
    outer_value = operator(OP.tanh, x)

    def body(i: Node, carried: list[Node], captured: list[Node]) -> Any:
        (new, old, same), (matrix, base, top) = carried, captured

        def inside(j: Node, state: list[Node], outer: list[Node]) -> Any:
            step = operator(OP.tanh, operator(OP.matmul, state[0], outer[0]))
            index = operator(OP.astype, j, dtype="float32")
            return scalar(True, "bool"), [add(step, outer[1])], [operator(OP.multiply, step, index)]

        _, (value,), (rows,) = counting_loop(scalar(3, "int64"), None, [new], [matrix, base], inside)
        value = add(value, operator(OP.sum, rows, axis=0), same)
        goes_on = operator(OP.less, operator(OP.sum, operator(OP.abs, value)), top)
        return goes_on, [old, value, same], []

    made, carried, _ = counting_loop(limit, None, [x, outer_value, outer_value], [weight, outer_value, bound], body)
    late = add(outer_value, carried[0])
    return graph([x, limit, bound], made, *carried, late)


def looped(x: np.ndarray, limit: int, bound: float) -> list[np.ndarray]:
    weight, base = 0.2 * random(24, 24, seed=1), np.tanh(x)
    new, old, same, made, goes_on = x, base, base, 0, True
    while made < limit and goes_on:
        value, rows = new, []
        for j in range(3):
            step = np.tanh(value @ weight)
            rows.append(step * j)
            value = step + base
        value = value + np.sum(rows, axis=0) + same
        goes_on = bool(np.abs(value).sum() < bound)
        new, old, made = old, value, made + 1
    return [np.array(made), new, old, same, base + new]


def test_trip_counts_and_conditions_at_run_time(tmp_path: Path) -> None:
    artifact = reloaded(compiled(loops()), tmp_path)
    x = random(1, 24)
    for limit, bound in ((0, 1e9), (1, 1e9), (6, 1e9), (1000, 1e9), (6, -1.0), (9, 40.0)):
        found = artifact(x, np.array(limit), np.array(bound, np.float32))
        for got, wanted in zip(found, looped(x, limit, bound), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)

    results: dict[int, Any] = {}

    def serve(limit: int) -> None:
        for _ in range(20):
            results[limit] = artifact(x, np.array(limit), np.array(1e9, np.float32))

    threads = [threading.Thread(target=serve, args=(limit,)) for limit in (3, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for limit, found in results.items():
        np.testing.assert_allclose(found[1], looped(x, limit, 1e9)[1], rtol=2e-4, atol=2e-4)


def test_a_profile_follows_the_run() -> None:
    model = compiled(loops())
    x = random(1, 24)
    profile = model.artifact.profile({"x": x, "limit": np.array(4), "bound": np.array(1e9, np.float32)}, repeat=2)
    counts = {kernel.kernel: kernel.calls for kernel in profile.kernels}
    (product,) = (count for kernel, count in counts.items() if "dense" in kernel)
    assert product == 4 * 3
    tasks = {task["name"]: task["weight"] for task in model.artifact.metadata["tasks"]}
    assert not any(name.startswith(("carry", "count", "goes_on", "write_row", "zero")) for name in tasks)
    assert next(weight for name, weight in tasks.items() if "dense" in name) == 16 * 3  # 16 is guessed


def test_convolutions_in_a_loop_are_tasks_like_any_other() -> None:
    """A residual block three times: one convolution, weighed by its six calls, in blocks of channels."""
    x, weight = given("x", 1, 16, 9, 9), constant(0.1 * random(16, 16, 3, 3, seed=2))

    def body(i: Node, carried: list[Node], captured: list[Node]) -> Any:
        (v,), (w,) = carried, captured
        y = v
        for _ in range(2):
            y = operator(OP.nn.relu, operator(OP.nn.conv2d, y, w, padding=1))
        return scalar(True, "bool"), [add(v, y)], []

    _, (y,), _ = counting_loop(scalar(3, "int64"), None, [operator(OP.nn.relu, x)], [weight], body)
    prepared = prepare(ImportedModel(graph([x], y), "model", "0", {}), CompileOptions(threads=THREADS))
    assert sum(task.weight for task in prepared.tasks if task.anchor == "conv2d") == 6
    artifact = compile_model(prepared, {}).artifact
    value, kernel = random(1, 16, 9, 9), weight.value
    expected = np.maximum(value, 0)
    for _ in range(3):
        y = expected
        for _ in range(2):
            windows = np.lib.stride_tricks.sliding_window_view(
                np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
            )
            y = np.maximum(np.einsum("nchwyx,ocyx->nohw", windows, kernel), 0)
        expected = expected + y
    np.testing.assert_allclose(artifact(value), expected, rtol=1e-4, atol=1e-4)


def test_tensors_of_others_take_the_place_of_inputs_and_results() -> None:
    model = compiled(loops())
    artifact, x = model.artifact, random(1, 24)
    feeds = [x, np.array(3), np.array(1e9, np.float32)]
    wanted = artifact(*feeds)
    inputs, outputs = (
        [aligned(np.asarray(value)) for value in values] for values in (feeds, [np.zeros_like(w) for w in wanted])
    )
    artifact.run_into(inputs, outputs)
    for got, expected in zip(outputs, wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert all(views for views in model.executable.plan.output_views)


def aligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    place = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    place[...] = array
    return place


def test_what_a_loop_needs_is_never_overwritten() -> None:
    """Addresses of everything alive across iterations against everything the loop writes."""
    plan = compiled(loops()).executable.plan
    assert type(plan).from_json(plan.to_json()) == plan
    (loop,) = (step for step in plan.steps if isinstance(step, Loop))
    (inner,) = (step for step in loop.steps if isinstance(step, Loop))
    copies = [step for step in inner.steps if isinstance(step, Step) and step.kernel.startswith("carry")]
    assert len(copies) == 1  # of the iteration's number; the vector is replaced where it lies
    written = {slot for step in calls(loop.steps) for slot in step.slots[-1:]}

    def span(slot: int) -> tuple[int, int]:
        return plan.slots[slot].offset, plan.slots[slot].offset + plan.slots[slot].size_bytes

    before = plan.steps[: plan.steps.index(loop)]
    outside = {slot for step in calls(before) for slot in step.slots if plan.slots[slot].section == "arena"}
    outside |= set(plan.input_slots)
    read = {slot for step in calls(loop.steps) for slot in step.slots} | {loop.condition}
    for kept in outside & read:
        for slot in written:
            (a, b), (c, d) = span(kept), span(slot)
            assert b <= c or d <= a or (a, b) == (c, d), (kept, slot)
