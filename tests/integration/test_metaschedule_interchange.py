"""Records to MetaSchedule and back, with TVM's own reader, writer and tuner on the other side."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import ir, relax, topi
from tvm.s_tir import meta_schedule as ms
from tvm_ffi import structural_equal

from calumma import tvm_compat
from calumma.cli import main
from calumma.core.errors import InputError
from calumma.core.values import Candidate, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import MemoryStore, SqlStore
from calumma.integrations import metaschedule
from calumma.integrations.metaschedule import RECORD_FILE, WORKLOAD_FILE, add_new, export_database, import_database
from calumma.operators import design_space
from calumma.pipeline import CompileOptions
from calumma.pipeline.preparation import PreparedModel, prepare
from calumma.space.generated import GeneratedSpace
from tests.metaschedule_tuning import THREADS, tune
from tests.prim_funcs import prim_func, tvm

TARGET = tvm_compat.target_for()


def _model(path: Path) -> Path:
    """conv + relu + global average + matrix product + softmax: a task for most templates."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape).astype("float32"), name)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
        helper.make_node("Softmax", ["y"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 20])],
        [weight("w", 32, 16, 3, 3), weight("m", 32, 20)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return _model(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def model(model_path) -> PreparedModel:
    return prepare(model_path, CompileOptions(threads=THREADS))


def _record(workload: Workload, space, config, latency_s: float | None) -> MeasureRecord:
    result = (
        MeasureResult(Status.RUN_ERROR, reason="crashed")
        if latency_s is None
        else MeasureResult(Status.OK, (latency_s,))
    )
    candidate = Candidate(workload, space.template, space.version, config)
    return MeasureRecord(candidate, result, TARGET.hardware, THREADS, "cold", tvm_compat.toolchain())


def _measured(model: PreparedModel) -> list[MeasureRecord]:
    """Three configurations per task, the last of them the fastest."""
    rng = np.random.default_rng(0)
    records = []
    for task in model.tasks:
        space = model.spaces[task.workload.hash]
        drawn = [space.default(), *space.sample(rng, 32)]
        rows = [row for row in drawn if not space.repacking(space.decode(row))][:3]
        records += [_record(task.workload, space, space.decode(row), 1e-3 / (i + 1)) for i, row in enumerate(rows)]
    return records


def _workload(func) -> Workload:
    return Workload("feed", str(ir.save_json(func)))


@pytest.fixture(scope="module")
def contraction():
    return prim_func(lambda x, y: topi.einsum("bij,blj->bil", x, y), (2, 16, 24), (2, 12, 24))


def test_our_records_come_back(model, tmp_path):
    records = _measured(model)
    exported = export_database(records, model.parts.functions, TARGET, THREADS, tmp_path / "db")
    assert (exported.count, exported.skipped) == (len(records), {})
    back = import_database(tmp_path / "db", model.parts.functions, TARGET, THREADS)
    assert (back.skipped, back.damaged) == ({}, ())
    assert [(r.candidate, r.result, r.cache_state) for r in back.records] == [
        (r.candidate, r.result, r.cache_state) for r in records
    ]
    assert {r.strategy for r in back.records} == {metaschedule.STRATEGY}


def test_what_wants_other_weights_is_left_out(model, tmp_path):
    """A Winograd convolution takes transformed weights: TVM would hand its kernel the model's own."""
    (task,) = [task for task in model.tasks if "conv2d" in task.name]
    space = model.spaces[task.workload.hash]
    rows = [row for row in space.sample(np.random.default_rng(0), 32) if space.repacking(space.decode(row))]
    record = _record(task.workload, space, space.decode(rows[0]), 1e-3)
    exported = export_database([record], model.parts.functions, TARGET, THREADS, tmp_path / "db")
    assert exported.skipped == {"of an algorithm that takes its weights in another form": 1}


def test_tvm_applies_what_we_export(model, tmp_path):
    """MetaScheduleApplyDatabase schedules every kernel of the Relax module, with the fastest record of each."""
    records = _measured(model)
    export_database(records, model.parts.functions, TARGET, THREADS, tmp_path / "db")
    database = ms.database.JSONDatabase(str(tmp_path / "db" / WORKLOAD_FILE), str(tmp_path / "db" / RECORD_FILE))
    target = tvm_compat.tvm_target(TARGET, THREADS)
    fastest = {r.candidate.workload.hash: r for r in sorted(records, key=lambda r: -r.result.latency_s)}
    for task in model.tasks:
        func = model.parts.functions[task.workload.hash]
        found = database.query_tuning_record(
            tvm.IRModule({"main": func.without_attr("calumma.weights")}), target, "main"
        )
        assert float(found.run_secs[0]) == fastest[task.workload.hash].result.latency_s
    mod = model.parts.mod.clone()
    names = {task.name for task in model.tasks}
    for variable in mod.get_global_vars():
        if variable.name_hint in names:
            mod.update_func(variable, mod[variable].without_attr("op_pattern"))
    with target, database:
        scheduled = relax.transform.MetaScheduleApplyDatabase()(mod)
    assert all(scheduled[name].attrs["tirx.is_scheduled"] for name in names)
    x = tvm.runtime.tensor(np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype("float32"))
    params = [tvm.runtime.tensor(np.ascontiguousarray(p)) for p in model.graph.params]

    def run(module):
        return relax.VirtualMachine(relax.build(module, target), tvm.cpu())["main"](x, *params)

    outputs = [
        value[0] if isinstance(value, tvm.ir.Array | list | tuple) else value for value in (run(scheduled), run(mod))
    ]
    np.testing.assert_allclose(outputs[0].numpy(), outputs[1].numpy(), rtol=1e-4)


def test_export_leaves_out_what_does_not_belong(contraction, tmp_path):
    space = GeneratedSpace(contraction, TARGET, THREADS)
    config = space.decode(space.default())
    good = _record(_workload(contraction), space, config, 1e-3)
    suspect = replace(good, candidate=replace(good.candidate, config={**config, "sketch": 1}))
    records = [
        good,
        _record(_workload(contraction), space, config, None),
        replace(good, threads=7),
        replace(good, candidate=replace(good.candidate, workload=Workload("absent", ""))),
        replace(good, candidate=replace(good.candidate, template_version=99)),
        replace(good, candidate=replace(good.candidate, config={**config, "sketch": 77})),
        suspect,
        replace(suspect, result=MeasureResult(Status.WRONG_OUTPUT, reason="off by one")),
    ]
    exported = export_database(records, {"feed": contraction}, TARGET, THREADS, tmp_path / "db")
    assert exported.count == 1
    assert sum(exported.skipped.values()) == len(records) - 1
    assert len(exported.skipped) == len(records) - 1, exported.skipped
    with pytest.raises(InputError, match="exists"):
        export_database(records, {"feed": contraction}, TARGET, THREADS, tmp_path / "db")
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == [RECORD_FILE, WORKLOAD_FILE]


def test_only_new_records_are_added(contraction, tmp_path):
    space = GeneratedSpace(contraction, TARGET, THREADS)
    record = _record(_workload(contraction), space, space.decode(space.default()), 1e-3)
    export_database([record], {"feed": contraction}, TARGET, THREADS, tmp_path / "db")
    store = MemoryStore()
    for added in (1, 0):
        back = import_database(tmp_path / "db", {"feed": contraction}, TARGET, THREADS)
        assert add_new(store, back.records) == added


@pytest.fixture(scope="module")
def tuned(contraction, tmp_path_factory):
    """A database that MetaSchedule's own tuner wrote, its kernels built and timed in this process."""
    target = tvm_compat.target_for("x86-64-v3")
    folder = tmp_path_factory.mktemp("tuned")
    tune(contraction, folder, target, "replay-trace", 6, per_round=6)
    return folder, target


def test_what_metaschedule_tuned_is_imported(tuned, contraction):
    folder, target = tuned
    back = import_database(folder, {"feed": contraction}, target, THREADS)
    lines = (folder / RECORD_FILE).read_text().splitlines()
    assert (len(back.records), back.skipped, back.damaged) == (len(lines), {}, ())
    database = ms.database.JSONDatabase(str(folder / WORKLOAD_FILE), str(folder / RECORD_FILE))
    space = GeneratedSpace(contraction, target, THREADS)
    theirs = sorted(database.get_all_tuning_records(), key=lambda r: [float(s) for s in r.run_secs])
    ours = sorted(back.records, key=lambda r: r.result.latencies_s)
    for their, our in zip(theirs, ours, strict=True):
        assert tuple(float(second) for second in their.run_secs) == our.result.latencies_s
        assert (our.candidate.template, our.cache_state) == (GeneratedSpace.template, "hot")
        module = their.as_measure_candidate().sch.mod
        assert structural_equal(space.schedule(our.candidate.config).mod["main"].body, module["main"].body)


def test_records_of_another_machine_or_model_are_left_out(tuned, contraction):
    folder, target = tuned
    count = len((folder / RECORD_FILE).read_text().splitlines())
    for arguments in (
        ({"feed": contraction}, replace(target, mcpu="skylake"), THREADS),
        ({"feed": contraction}, target, THREADS + 1),
        ({"beef": prim_func(lambda x: topi.sum(x, axis=0), (8, 8))}, target, THREADS),
    ):
        back = import_database(folder, *arguments)
        assert (back.records, sum(back.skipped.values()), back.damaged) == ((), count, ())
        assert len(back.skipped) == 1


def test_damaged_lines_are_named_and_cost_nothing_else(tuned, contraction, tmp_path):
    folder, target = tuned
    good = json.loads((folder / RECORD_FILE).read_text().splitlines()[0])
    (tmp_path / WORKLOAD_FILE).write_bytes((folder / WORKLOAD_FILE).read_bytes() + b'["1", 2]\n')

    def altered(change):
        copy = json.loads(json.dumps(good))
        change(copy)
        return json.dumps(copy).encode()

    damaged = [
        b"[0, [[[], []]",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        altered(lambda r: r.__setitem__(0, 2)),
        altered(lambda r: r.__setitem__(0, -1)),
        altered(lambda r: r.__setitem__(0, True)),
        altered(lambda r: r[1].__setitem__(1, ["fast"])),
        altered(lambda r: r[1].__setitem__(1, [float("inf")])),
        altered(lambda r: r[1][0][0].append("GetSBlock")),
        altered(lambda r: r[1][0][1].append([10**6, 1])),
        altered(lambda r: r[1][0][1].append(r[1][0][1][0])),
        altered(lambda r: r[1][0][0].append(["Annotate", ["b0", '"{}"'], ["calumma.candidate"], []])),
        altered(lambda r: r[1][0][0].append(["Annotate", ["b0", 1], ["calumma.candidate"], []])),
    ]
    skipped = [
        altered(lambda r: r[1].__setitem__(1, [1e10])),
        altered(lambda r: r[1].__setitem__(1, None)),
        altered(lambda r: r[1][0][0].insert(0, ["RunCommand", [], ["anything"], []])),
        altered(lambda r: r[1][0][1].pop(0)),
        altered(lambda r: r[1][0][1][0].__setitem__(1, [7, 7, 7, 7])),
        altered(lambda r: r[1][0][0].append(["Annotate", ["b0", 1], ["meta_schedule.layout_rewrite_preproc"], []])),
        altered(lambda r: r.__setitem__(0, 1)),
    ]
    (tmp_path / RECORD_FILE).write_bytes(b"\n".join([*damaged, json.dumps(good).encode(), *skipped]) + b"\n")
    back = import_database(tmp_path, {"feed": contraction}, target, THREADS)
    assert len(back.records) == 1
    assert sum(back.skipped.values()) == len(skipped), back.skipped
    assert back.damaged[0].startswith(f"{WORKLOAD_FILE}, line 2: ")
    named = [fault.split(":")[0] for fault in back.damaged[1:]]
    assert named == [f"{RECORD_FILE}, line {n + 1}" for n in range(len(damaged))]
    assert all("\n" not in fault for fault in back.damaged)


def test_a_module_in_the_file_is_never_decoded(tuned, contraction, tmp_path):
    folder, target = tuned
    name, _ = json.loads((folder / WORKLOAD_FILE).read_text())
    hostile = base64.b64encode(b"not a module").decode()
    (tmp_path / WORKLOAD_FILE).write_text(json.dumps([name, hostile]) + "\n")
    (tmp_path / RECORD_FILE).write_bytes((folder / RECORD_FILE).read_bytes())
    assert len(import_database(tmp_path, {"feed": contraction}, target, THREADS).records) > 0


def test_an_annotation_is_checked_like_any_claim(contraction, tmp_path):
    space = design_space(contraction, TARGET, THREADS)
    record = _record(_workload(contraction), space, space.decode(space.default()), 1e-3)
    export_database([record], {"feed": contraction}, TARGET, THREADS, tmp_path)
    path = tmp_path / RECORD_FILE
    line = path.read_text()
    knob = space.knobs[0].name
    for old, new, reason in (
        (f'\\"template\\":\\"{space.template}\\"', '\\"template\\":\\"conv2d\\"', "of template conv2d version 1"),
        (f'\\"{knob}\\":', f'\\"{knob}\\":9', "a configuration this version does not know"),
    ):
        assert old in line
        path.write_text(line.replace(old, new))
        back = import_database(tmp_path, {"feed": contraction}, TARGET, THREADS)
        assert (back.records, back.damaged) == ((), ())
        assert reason in next(iter(back.skipped))


def test_a_missing_database_is_bad_input(contraction, tmp_path):
    with pytest.raises(InputError, match=WORKLOAD_FILE):
        import_database(tmp_path, {"feed": contraction}, TARGET, THREADS)


def test_command_line(model, model_path, tmp_path, capsys):
    with SqlStore.open(tmp_path / "one.sqlite") as store:
        store.append([replace(record, cache_state=model.cache_state) for record in _measured(model)])
    folder = str(tmp_path / "db")
    common = ["--model", str(model_path), "--threads", str(THREADS)]
    count = len(_measured(model))
    assert main(["records", "--db", str(tmp_path / "one.sqlite"), "--export-metaschedule", folder, *common]) == 0
    assert f"{count} records" in capsys.readouterr().out
    for expected in (count, 0):
        assert main(["records", "--db", str(tmp_path / "two.sqlite"), "--import-metaschedule", folder, *common]) == 0
        assert f"{expected} new records" in capsys.readouterr().out
    assert main(["records", "--import-metaschedule", folder]) == 2
    assert "--model" in capsys.readouterr().err
    (tmp_path / "db" / RECORD_FILE).write_text("[\n")
    two = str(tmp_path / "two.sqlite")
    assert main(["records", "--db", two, "--import-metaschedule", folder, *common, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["imported"] == 0
    assert document["damaged"][0].startswith(f"{RECORD_FILE}, line 1: ")
