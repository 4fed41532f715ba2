"""The MetaSchedule baseline of the search benchmark, kernels built and timed in this process instead of in many."""

from __future__ import annotations

import json
import logging
import sys
import types
from typing import Any

import pytest
from tvm import s_tir, topi
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm_ffi import structural_equal

from benchmarks import live, metaschedule_baseline
from calumma import tvm_compat
from calumma.core.values import Candidate
from calumma.space.generated import plain
from tests.measure_spaces import workload_of
from tests.prim_funcs import prim_func, tvm

TARGET = tvm_compat.target_for("x86-64-v3")


@derived_object
class _Builder(ms.builder.PyBuilder):
    """Builds nothing, and keeps what it was asked to build."""

    def __init__(self, folder, built):
        super().__init__()
        self._folder = folder
        self._built = built

    def build(self, inputs):
        results = []
        for entry in inputs:
            self._built.append(entry.mod)
            path = self._folder / str(len(self._built)) / "library"
            path.parent.mkdir()
            results.append(ms.builder.BuilderResult(str(path), None))
        return results


@derived_object
class _Runner(ms.runner.PyRunner):
    def run(self, inputs):
        return [_Finished(index) for index in range(len(inputs))]


@derived_object
class _Finished(ms.runner.PyRunnerFuture):
    """Two made-up times; the second of a batch crashed."""

    def __init__(self, index):
        super().__init__()
        self._index = index

    def done(self):
        return True

    def result(self):
        if self._index == 1:
            return ms.runner.RunnerResult(None, "crashed")
        return ms.runner.RunnerResult([1e-3, 3e-3], None)


@pytest.mark.parametrize("space", ["own", "ours"])
def test_its_trials_are_schedules_we_can_measure(space, monkeypatch, tmp_path):
    # Importing the intrinsics of all targets takes a quarter of a minute; plain AVX2 has rules that use none.
    sys.modules.setdefault("tvm.s_tir.tensor_intrin", types.ModuleType("tvm.s_tir.tensor_intrin"))
    logging.getLogger("tvm.s_tir.meta_schedule").handlers.clear()
    func = prim_func(lambda x, y: topi.einsum("bij,blj->bil", x, y), (2, 16, 24), (2, 12, 24))
    built: list[Any] = []

    tune_tir = ms.tune_tir

    def in_process(*arguments, **options):
        assert options["num_tuning_cores"] == 2
        return tune_tir(*arguments, **{**options, "builder": _Builder(tmp_path, built), "runner": _Runner()})

    monkeypatch.setattr(ms, "tune_tir", in_process)
    monkeypatch.setattr(tvm_compat, "target_for", lambda mcpu=None: TARGET)
    monkeypatch.setattr(metaschedule_baseline, "POOL", 8)
    text = str(tvm.ir.save_json(func.with_attr("calumma.weights", [1])))
    request = {"workload": text, "space": space, "trials": 4, "batch": 4, "seed": 0, "threads": 2}
    answer = json.loads(json.dumps(metaschedule_baseline.tune(request)))
    logging.getLogger("tvm.s_tir.meta_schedule").handlers.clear()
    logging.getLogger("tvm.s_tir.meta_schedule").propagate = True
    latencies = [latency for latency, _, _ in answer["trials"]]
    assert latencies == [pytest.approx(2e-3), None, pytest.approx(2e-3), pytest.approx(2e-3)]
    assert 0 < answer["trials"][0][1] <= answer["seconds"]
    assert set(answer["phases_s"]) == {"build", "run", "search", "model"}
    assert sum(answer["phases_s"].values()) <= answer["seconds"]
    for module, (_, _, trace) in zip(built, answer["trials"], strict=True):
        schedule = live.traced_space(func, TARGET, 2).schedule({"trace": trace})
        assert isinstance(schedule, s_tir.Schedule)
        assert structural_equal(schedule.mod["main"].body, module["main"].body)


def test_its_winners_run_in_the_race():
    func = prim_func(lambda x, y: topi.einsum("ij,jk->ik", x, y), (32, 16), (16, 24)).with_attr("calumma.weights", [1])
    trace = json.dumps(plain(s_tir.Schedule(func).trace.as_json()))
    candidate = Candidate(workload_of(func), live.TRACED, live.TracedSpace.version, {"trace": trace})
    latencies = live.race([candidate], tvm_compat.target_for(), 1)
    assert latencies[candidate.key] > 0
