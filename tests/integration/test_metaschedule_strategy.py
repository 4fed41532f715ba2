"""Our strategies in MetaSchedule's own tuner, `tune_tir` unchanged; kernels are built and timed in this process."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tvm import topi
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from calumma import tvm_compat
from calumma.core.errors import InputError, InternalError
from calumma.integrations.metaschedule import import_database, search_strategy
from calumma.integrations.metaschedule.strategy import _Search
from calumma.space.generated import GeneratedSpace
from tests.prim_funcs import prim_func, tvm

THREADS = 2
HARDWARE = tvm_compat.hardware_for("x86-64-v3")


@pytest.fixture(scope="module")
def contraction():
    return prim_func(lambda x, y: topi.einsum("bij,blj->bil", x, y), (2, 16, 24), (2, 12, 24))


def _forget_logging() -> None:
    """`tune_tir` configures its logging by the names of the handlers it finds, and pytest adds some without any."""
    logger = logging.getLogger("tvm.s_tir.meta_schedule")
    logger.handlers.clear()
    logger.propagate = True


def _tune(contraction, folder: Path, strategy, trials: int, space="post-order-apply"):
    """`tune_tir` with rounds of 4; returns its database and the sizes of the batches it measured."""
    # Importing the intrinsics of all targets takes a quarter of a minute; plain AVX2 has rules that use none.
    sys.modules.setdefault("tvm.s_tir.tensor_intrin", types.ModuleType("tvm.s_tir.tensor_intrin"))
    built = {}
    batches = []

    @derived_object
    class Builder(ms.builder.PyBuilder):
        def build(self, inputs):
            results = []
            for entry in inputs:
                path = str(folder / "built" / str(len(built)) / "library")
                Path(path).parent.mkdir(parents=True)
                built[path] = tvm.compile(entry.mod, entry.target).jit()
                results.append(ms.builder.BuilderResult(path, None))
            return results

    @derived_object
    class Runner(ms.runner.PyRunner):
        def run(self, inputs):
            batches.append(len(inputs))
            return [_Finished(built[entry.artifact_path]) for entry in inputs]

    @derived_object
    class _Finished(ms.runner.PyRunnerFuture):
        def __init__(self, library):
            super().__init__()
            self._library = library

        def done(self):
            return True

        def result(self):
            shapes = [[int(d) for d in p.ty.shape] for p in contraction.params]
            arguments = [tvm.runtime.tensor(np.ones(shape, "float32")) for shape in shapes]
            seconds = self._library.time_evaluator("main", tvm.cpu(), number=1, repeat=2)(*arguments).results
            np.testing.assert_allclose(arguments[-1].numpy(), 24.0)  # a wrong schedule would sum something else
            return ms.runner.RunnerResult(list(seconds), None)

    _forget_logging()
    database = ms.tune_tir(
        contraction,
        tvm_compat.target(HARDWARE, THREADS),
        str(folder),
        max_trials_global=trials,
        num_trials_per_iter=4,
        builder=Builder(),
        runner=Runner(),
        cost_model="random",
        strategy=strategy,
        space=space,
        num_tuning_cores=1,
        seed=1,
    )
    _forget_logging()
    return database, batches


@pytest.mark.parametrize("name", ["random", "evolutionary"])
def test_tune_tir_takes_our_strategy(name, contraction, tmp_path):
    database, batches = _tune(contraction, tmp_path, search_strategy(name), 10)
    records = database.get_all_tuning_records()
    assert batches == [4, 4, 2]
    assert len({str(record.trace) for record in records}) == 10
    assert all(0 < float(seconds) < 1 for record in records for seconds in record.run_secs)


def test_a_run_is_repeated_by_its_seed(contraction, tmp_path):
    traces = []
    for folder in ("a", "b"):
        database, _ = _tune(contraction, tmp_path / folder, search_strategy("random", seed=3), 4)
        traces.append({str(record.trace) for record in database.get_all_tuning_records()})
    assert traces[0] == traces[1]


def test_its_records_are_those_of_metaschedule(contraction, tmp_path):
    """The space without RewriteLayout, whose timing leaves out the repacking: these records can be imported."""
    rules, postprocs = ms.ScheduleRule.create("llvm"), [ms.postproc.RewriteParallelVectorizeUnroll()]
    space = ms.space_generator.PostOrderApply(sch_rules=rules, postprocs=postprocs, mutator_probs={})
    _tune(contraction, tmp_path, search_strategy("random"), 4, space)
    back = import_database(tmp_path, {"feed": contraction}, HARDWARE, THREADS)
    assert (len(back.records), back.damaged) == (4, ())


def test_an_unknown_name_is_refused_at_once():
    with pytest.raises(InputError, match="'fastest': choose one of random"):
        search_strategy("fastest")


class _Scripted:
    """A strategy that asks for given rows, one batch per call, and remembers what it is told."""

    name = "scripted"

    def __init__(self, rows):
        self.rows = list(rows)
        self.told = []

    def ask(self, n):
        asked, self.rows = self.rows[:n], self.rows[n:]
        return np.array(asked, dtype=np.int32).reshape(len(asked), -1)

    def tell(self, indices, scores):
        self.told += [(tuple(row), score) for row, score in zip(indices.tolist(), scores, strict=True)]


def test_what_cannot_be_scheduled_is_told_as_failed_and_costs_no_trial(contraction, monkeypatch):
    space = GeneratedSpace(contraction, HARDWARE, THREADS)
    rows = space.sample(np.random.default_rng(0), 6)
    refused = [tuple(rows[0].tolist()), tuple(rows[2].tolist())]
    schedule = space.schedule

    def refuse(config):
        if tuple(space.encode(config).tolist()) in refused:
            raise InputError("a postprocessor refuses it")
        return schedule(config)

    monkeypatch.setattr(space, "schedule", refuse)
    strategy = _Scripted(rows)
    search = _Search(space, strategy, max_trials=4, batch=3)
    assert len(search.propose()) == 3
    assert strategy.told == [(row, 0.0) for row in refused]
    timed = [[0.5, 1.5], None, [0.25]]
    search.learn([ms.runner.RunnerResult(seconds, None if seconds else "crashed") for seconds in timed])
    assert [score for _, score in strategy.told[2:]] == [1.0, 0.0, 4.0]
    assert len(search.propose()) == 1, "four trials in all"
    search.learn([ms.runner.RunnerResult([1.0], None)])
    assert search.propose() == []


def test_results_of_other_candidates_are_refused(contraction):
    space = GeneratedSpace(contraction, HARDWARE, THREADS)
    search = _Search(space, _Scripted([space.default()]), max_trials=1, batch=1)
    search.propose()
    with pytest.raises(InternalError, match="2 results came back for 1 candidates"):
        search.learn([ms.runner.RunnerResult([1.0], None)] * 2)
