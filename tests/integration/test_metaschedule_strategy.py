"""Our strategies in MetaSchedule's own tuner, `tune_tir` unchanged; kernels are built and timed in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tvm import topi
from tvm.s_tir import meta_schedule as ms

from calumma import tvm_compat
from calumma.core.errors import InputError, InternalError
from calumma.integrations.metaschedule import import_database, search_strategy
from calumma.integrations.metaschedule.search_strategy import _Search
from calumma.space.generated import GeneratedSpace
from tests.metaschedule_tuning import THREADS, tune
from tests.prim_funcs import prim_func

TARGET = tvm_compat.target_for("x86-64-v3")


@pytest.fixture(scope="module")
def contraction():
    return prim_func(lambda x, y: topi.einsum("bij,blj->bil", x, y), (2, 16, 24), (2, 12, 24))


def _tune(contraction, folder: Path, strategy, trials: int, space="post-order-apply"):
    return tune(contraction, folder, TARGET, strategy, trials, space=space)


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
    back = import_database(tmp_path, {"feed": contraction}, TARGET, THREADS)
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
    space = GeneratedSpace(contraction, TARGET, THREADS)
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
    space = GeneratedSpace(contraction, TARGET, THREADS)
    search = _Search(space, _Scripted([space.default()]), max_trials=1, batch=1)
    search.propose()
    with pytest.raises(InternalError, match="2 results came back for 1 candidates"):
        search.learn([ms.runner.RunnerResult([1.0], None)] * 2)
