"""Parts of spaces, their recording with a runner that pretends, and the files they are kept in."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from tvm import topi

from benchmarks import corpora
from benchmarks.corpora import expected_best, median_draws
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.values import MeasureResult, Status, Workload
from calumma.database import MemoryStore
from calumma.measure import recorder, recording
from calumma.measure.recording import RecordedKernel
from calumma.space.generated import GeneratedSpace
from calumma.space.subspace import SubSpace, part_of
from calumma.testing import SimulatedRunner
from tests.prim_funcs import prim_func, tvm

TARGET = tvm_compat.target_for("x86-64-v3")
SOURCE = RecordedKernel("a model", "a task", "generated")


class PretendRunner(SimulatedRunner):
    """Latencies from the candidate's key: 100 to 200 us, a tenth of the candidates invalid.

    The first `disturbed` measurements are ten times as long.
    """

    def __init__(self, *, wrong=(), lost=(), disturbed=0, dies_after=math.inf):
        super().__init__()
        self.measured = []
        self.wrong, self.lost, self.dies_after = set(wrong), set(lost), dies_after
        self.disturbed = disturbed

    def outcome(self, candidate):
        if len(self.measured) >= self.dies_after:
            raise KeyboardInterrupt
        self.measured.append(candidate.key)
        luck = zlib.crc32(candidate.key.encode()) % 1000 / 1000
        phases = {"build": 0.1, "run": 0.02 + luck / 100}
        if candidate.key in self.lost and self.measured.count(candidate.key) == 1:
            return MeasureResult(Status.WORKER_LOST, (), "killed", phases)
        if luck < 0.1:
            return MeasureResult(Status.INVALID_CONFIG, (), "does not fit", phases)
        latency = 1e-4 * (1 + luck) * (10 if len(self.measured) <= self.disturbed else 1)
        return MeasureResult(Status.OK, (latency, latency * 1.01, latency * 0.99), "", phases)

    def verdict(self, candidate):
        if candidate.key in self.wrong:
            return MeasureResult(Status.WRONG_OUTPUT, (), "relative error 1")
        return MeasureResult(Status.OK)


@pytest.fixture(scope="module")
def func():
    return prim_func(lambda x, y: topi.einsum("bij,blj->bil", x, y), (2, 16, 24), (2, 12, 24))


@pytest.fixture(scope="module")
def workload(func):
    return Workload("feed", str(tvm.ir.save_json(func)))


@pytest.fixture(scope="module")
def part(func):
    return part_of(GeneratedSpace(func, TARGET, 2), np.random.default_rng(0), 80, 120)


def _record(part, workload, runner=None, store=None, **options):
    options = {"source": SOURCE, "say": lambda line: None, **options}
    return recorder.record("toy", workload, part, runner or PretendRunner(), store or MemoryStore(), TARGET, **options)


@pytest.fixture(scope="module")
def corpus(part, workload):
    return _record(part, workload)


def test_a_part_is_a_space_of_the_size_wanted(part):
    assert 80 <= len(part.members) <= 120
    assert part.valid(part.members).all()
    assert part.whole.valid(part.outside(part.members)).all()
    assert part.valid(part.default()[None])[0]
    assert part.decode(part.default()) == part.whole.decode(part.whole.default())
    assert all(np.array_equal(part.encode(part.decode(row)), row) for row in part.members)
    np.testing.assert_array_equal(part.features(part.members), part.whole.features(part.outside(part.members)))
    assert all(len(part.neighbours(row)) > 0 for row in part.members), "nobody is walled in"


def test_a_part_has_all_that_is_valid_of_its_grid(part):
    grid = part.grid()
    assert {tuple(row) for row in grid.tolist()} == {tuple(row) for row in part.members.tolist()}


def test_the_same_rule_and_seed_choose_the_same_part(func, part):
    again = part_of(GeneratedSpace(func, TARGET, 2), np.random.default_rng(0), 80, 120)
    assert again.values == part.values
    np.testing.assert_array_equal(again.members, part.members)
    assert part_of(GeneratedSpace(func, TARGET, 2), np.random.default_rng(1), 80, 120).values != part.values


def test_a_part_of_chosen_values_starts_from_a_default_of_its_own(func):
    whole = GeneratedSpace(func, TARGET, 2)
    knob = max(whole.knobs, key=lambda knob: len(knob.values))
    column = whole.knobs.index(knob)
    start = next(row for row in whole.sample(np.random.default_rng(1), 50) if row[column] != whole.default()[column])
    wanted = [knob.values[start[column]]]
    part = part_of(whole, np.random.default_rng(0), 20, 120, chosen={knob.name: wanted}, default=start)
    assert list(part.values[knob.name]) == wanted
    np.testing.assert_array_equal(part.outside(part.default()[None])[0], start)


def test_a_space_that_is_too_small_is_refused(part):
    with pytest.raises(InputError, match="a corpus needs 2000"):
        part_of(part, np.random.default_rng(0))


def test_what_a_template_no_longer_has_is_refused(part):
    with pytest.raises(InputError, match="no knob 'warp': record the workload again"):
        SubSpace(part.whole, {**part.values, "warp": (1,)})
    with pytest.raises(InputError, match="cannot be"):
        SubSpace(part.whole, {**part.values, part.knobs[0].name: (99,)})


def test_a_recording_holds_every_configuration_and_the_first_seconds(corpus, part):
    assert len(corpus.results) == len(part.members)
    statuses = {result.status for result in corpus.results}
    assert statuses == {Status.OK, Status.INVALID_CONFIG}
    assert all(result.phases_s["build"] == 0.1 for result in corpus.results)
    thrice = corpus.counts == 9
    default = (part.members == part.default()).all(axis=1)
    latencies = np.array([result.latency_s for result in corpus.results])
    assert (thrice & ~default).sum() in (recorder.TOP - 1, recorder.TOP), "the fastest are measured three times"
    assert latencies[thrice & ~default].max() <= np.sort(latencies)[recorder.TOP]
    assert thrice[default].all(), "and the default"
    assert set(corpus.counts.tolist()) == {0, 3, 9}, "the others once"


def test_a_stopped_recording_goes_on_and_measures_nothing_twice(part, workload, corpus):
    store, first = MemoryStore(), PretendRunner(dies_after=70)
    with pytest.raises(KeyboardInterrupt):
        _record(part, workload, first, store)
    kept = len(store.records())
    assert kept == recorder.BATCH
    second = PretendRunner()
    again = _record(part, workload, second, store)
    assert len(second.measured) == len(part.members) - kept + recorder.PASSES * (corpus.counts == 9).sum()
    assert again.results == corpus.results


def test_a_limit_ends_a_trial(part, workload):
    runner = PretendRunner()
    assert _record(part, workload, runner, limit=10) is None
    assert len(runner.measured) == 10


def test_a_failure_that_other_work_may_have_caused_is_tried_again(part, workload, corpus):
    unlucky = PretendRunner()
    _record(part, workload, unlucky, limit=3)
    runner = PretendRunner(lost=unlucky.measured)
    assert _record(part, workload, runner).results == corpus.results


def test_a_disturbed_start_does_not_spoil_the_default(part, workload, corpus):
    runner = PretendRunner(disturbed=20)
    again = _record(part, workload, runner)
    default = int(np.flatnonzero((part.members == part.default()).all(axis=1))[0])
    candidate = corpus.records(part)[default].candidate
    assert corpus.results[default].status is Status.OK
    assert runner.measured[0] == candidate.key, "it is among the disturbed"
    assert again.results[default] == corpus.results[default]


def test_a_fast_configuration_that_computes_something_else_fails(part, workload, corpus):
    fastest = min(range(len(corpus.results)), key=lambda i: corpus.results[i].latency_s)
    candidate = corpus.records(part)[fastest].candidate
    again = _record(part, workload, PretendRunner(wrong=[candidate.key]))
    assert again.results[fastest].status is Status.WRONG_OUTPUT
    assert again.throughputs[fastest] == 0


def test_a_file_holds_a_corpus(corpus, part, tmp_path):
    path = recording.save(corpus, tmp_path)
    assert corpora.names(tmp_path) == ["toy"]
    back = recording.load("toy", tmp_path)
    assert (back.workload, back.values, back.source) == (corpus.workload, corpus.values, corpus.source)
    np.testing.assert_array_equal(back.indices, corpus.indices)
    np.testing.assert_allclose(back.throughputs, corpus.throughputs, rtol=1e-4)
    assert [r.status for r in back.results] == [r.status for r in corpus.results]
    assert [r.reason for r in back.results] == [r.reason for r in corpus.results]
    space = back.space()
    np.testing.assert_array_equal(space.members, part.members)
    np.testing.assert_array_equal(space.default(), part.default())
    assert recording.save(back, tmp_path).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["toy.npz"], "nothing is left beside it"
    assert "toy" in corpora.describe([back])


def test_a_space_of_another_version_is_refused(corpus):
    with pytest.raises(InputError, match="record it again"):
        replace(corpus, version=99).space()


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(InputError, match="no corpus 'toy' in"):
        recording.load("toy", tmp_path)


def _altered(corpus, folder, change):
    path = recording.save(corpus, folder)
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    change(arrays)
    np.savez_compressed(path, **arrays)


def _header(key, value):
    def change(arrays):
        header = json.loads(arrays["header"].tobytes())
        header[key] = value
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("run"),
        lambda arrays: arrays.update(header=np.frombuffer(b"{", dtype=np.uint8)),
        lambda arrays: arrays.update(status=arrays["status"] + 50),
        lambda arrays: arrays.update(latency=arrays["latency"][:-1]),
        lambda arrays: arrays.update(latency=0 * arrays["latency"]),
        lambda arrays: arrays.update(latency=arrays["latency"].astype(float)),
        lambda arrays: arrays.update(indices=arrays["indices"] + 1000),
        lambda arrays: arrays.update(indices=arrays["indices"][:, 1:]),
        lambda arrays: arrays.update(run=np.array([{}] * len(arrays["run"]))),
        _header("values", [["sketch", [[1]]]]),
        _header("default", [0]),
        _header("statuses", ["excellent"]),
        _header("source", {"model": "m", "task": "t", "space": "another"}),
        _header("hardware", {}),
        _header("workload", None),
    ],
)
def test_damage_is_one_clear_line(corpus, tmp_path, change):
    _altered(corpus, tmp_path, change)
    with pytest.raises(InputError, match=r"toy\.npz cannot be read") as caught:
        recording.load("toy", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_torn_file_or_another_format_is_refused(corpus, tmp_path):
    path = recording.save(corpus, tmp_path)
    whole = path.read_bytes()
    for content in (b"", b"rubbish", whole[: len(whole) // 2], whole[:-200] + bytes(100) + whole[-100:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            recording.load("toy", tmp_path)
    _altered(corpus, tmp_path, _header("format", 2))
    with pytest.raises(InputError, match="is of format 2, expected 1"):
        recording.load("toy", tmp_path)


def test_expected_best_is_that_of_all_draws():
    values = np.array([3.0, 1.0, 0.0, 4.0, 2.0])
    rng = np.random.default_rng(0)
    for n in (1, 2, 4, 5, 9):
        drawn = [values[rng.permutation(5)[: min(n, 5)]].max() for _ in range(20_000)]
        assert expected_best(values, n) == pytest.approx(np.mean(drawn) / 4, rel=0.02)
    assert expected_best(values, 5) == 1
    assert median_draws(values, 1.0) == 3  # one of five: 1/5, 2/5, 3/5 after three draws
    assert median_draws(values, 0.1) == 1
