"""Data sets: what of the records comes in, what stays out, and the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calumma.contractions.matmul import expression as matmul
from calumma.core.errors import InputError
from calumma.core.values import MeasureRecord, MeasureResult, Status, Workload
from calumma.measure.timing import LEAST, given_up
from tests import prior_data
from tests.prim_funcs import prim_func, tvm

from calumma.prior import dataset, machines  # isort: skip  (after prior_data, which sets the threads)


def test_a_group_per_workload_with_medians_and_failures() -> None:
    data = prior_data.small_dataset()
    assert data.workloads == {workload.task.workload.hash for workload in prior_data.workloads()}
    group = next(g for g in data.groups if g.workload == prior_data.records()[0].candidate.workload.hash)
    expected = {r.candidate.key: r.result.latency_s for r in prior_data.records()}
    space = group.space()
    for row, latency, status in zip(group.encoded(space), group.latency_s, group.status, strict=True):
        record = next(
            r
            for r in prior_data.records()
            if r.candidate.workload.hash == group.workload and r.candidate.config == space.decode(row)
        )
        assert expected[record.candidate.key] == latency
        assert (status is Status.OK) == np.isfinite(latency)


def test_records_that_do_not_compare_stay_out() -> None:
    first = prior_data.records()[0]
    product = prim_func(lambda x, w: matmul.dense(x, w, 32), (4, 32), (2, 16, 32), dtypes=("bfloat16", "bfloat16"))
    narrow = Workload("narrow", str(tvm.ir.save_json(product)))
    strange = [
        replace(first, candidate=replace(first.candidate, workload=narrow)),
        replace(first, hardware=replace(first.hardware, vector_bits=64)),
        replace(first, cache_state="hot"),
        replace(first, toolchain="tvm 9"),
        replace(first, candidate=replace(first.candidate, template_version=99)),
        replace(first, candidate=replace(first.candidate, config={**first.candidate.config, "m_tile": 12345})),
    ]
    data = prior_data.made([*prior_data.records(), *strange])
    assert data.digest == prior_data.small_dataset().digest
    assert data.left_out == {
        "unknown CPU": 1,
        "other cache state or toolchain": 2,
        "other template or version": 1,
        "no such configuration today": 1,
        "narrow types": 1,
    }


def test_what_ever_computed_something_wrong_has_no_latency() -> None:
    fast = min(prior_data.records(), key=lambda record: record.result.latency_s)
    wrong = replace(fast, result=MeasureResult(Status.WRONG_OUTPUT, reason="off by 1"))
    data = prior_data.made([*prior_data.records(), wrong])
    group = next(g for g in data.groups if g.workload == fast.candidate.workload.hash)
    place = group.status.index(Status.WRONG_OUTPUT)
    space = group.space()
    assert space.decode(group.encoded(space)[place]) == fast.candidate.config
    assert group.latency_s[place] == np.inf


def test_held_out_workloads_never_come_in() -> None:
    held_out = {workload.task.workload.hash for workload in prior_data.workloads()[:3]}
    data = prior_data.made(list(prior_data.records()), exclude=held_out)
    assert not data.workloads & held_out
    assert len(data.groups) == prior_data.WORKLOADS - 3
    assert data.left_out["held out"] > 0
    merged = data.merged(prior_data.small_dataset().without(held_out))
    assert not merged.workloads & held_out
    assert prior_data.small_dataset().without(held_out).digest == data.digest == merged.digest


def test_the_file_holds_everything(tmp_path: Path) -> None:
    data = prior_data.small_dataset()
    path = tmp_path / "data.npz"
    dataset.save(data, path)
    again = dataset.load(path)
    assert again.digest == data.digest
    for old, new in zip(data.groups, again.groups, strict=True):
        space = new.space()
        assert np.array_equal(new.encoded(space), old.encoded(space))
        np.testing.assert_allclose(new.latency_s, old.latency_s, atol=1e-9)
        assert (new.status, new.threads, new.network) == (old.status, old.threads, old.network)


@pytest.mark.parametrize("cut", [0.2, 0.6, 0.95])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "data.npz"
    dataset.save(prior_data.small_dataset(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(InputError, match=r"data\.npz cannot be read"):
        dataset.load(path)
    spoilt = bytearray(whole)
    spoilt[int(cut * len(whole))] ^= 0xFF
    path.write_bytes(bytes(spoilt))
    with pytest.raises(InputError, match=r"data\.npz cannot be read"):
        dataset.load(path)


def test_knobs_that_were_added_since_are_neutral() -> None:
    data = prior_data.small_dataset()
    group = data.groups[0]
    space = group.space()
    names = list(group.values)
    kept = [i for i, name in enumerate(names) if name != "prefetch"]
    older = replace(group, values={names[i]: group.values[names[i]] for i in kept}, indices=group.indices[:, kept])
    encoded = older.encoded(space)
    assert (encoded[:, names.index("prefetch")] == 0).all()
    assert np.array_equal(encoded[:, kept], group.encoded(space)[:, kept])
    with pytest.raises(InputError, match="collect it again"):
        replace(group, version=group.version + 1).encoded(space)
    with pytest.raises(InputError, match="collect it again"):
        replace(group, values={**group.values, "m_tile": (12345,) * len(group.values["m_tile"])}).encoded(space)


def test_cache_states_are_groups_of_their_own() -> None:
    warm = [replace(record, cache_state="warm") for record in prior_data.records()]
    data = prior_data.made([*prior_data.records(), *warm])
    assert len(data.groups) == 2 * prior_data.WORKLOADS
    assert {group.cache_state for group in data.groups} == {"cold", "warm"}
    assert data.rows == 2 * prior_data.small_dataset().rows


def repeated(record: MeasureRecord, count: int, factor: float) -> MeasureRecord:
    """The same configuration measured `count` times at `factor` times its latency."""
    return replace(record, result=MeasureResult(Status.OK, (factor * record.result.latency_s,) * count))


def test_what_was_given_up_too_early_does_not_count_beside_what_was_finished() -> None:
    records = [r for r in prior_data.records() if r.result.status is Status.OK]
    # The quickest on any CPU: what is slow has few measurements because of the time that they take.
    workload = min(records, key=lambda r: r.result.latency_s).candidate.workload.hash
    best, second = sorted(
        (r for r in records if r.candidate.workload.hash == workload), key=lambda r: r.result.latency_s
    )[:2]
    finished = repeated(best, LEAST, 1.0)
    doubled = repeated(best, 3, 2.0)  # both threads on one core: it was taken for a lost candidate
    alone = [repeated(second, 3, 2.0), repeated(second, 3, 3.0)]
    data = prior_data.made([doubled, finished, doubled, *alone])
    (group,) = data.groups
    assert sorted(group.latency_s) == [best.result.latency_s, 2.5 * second.result.latency_s]
    assert data.left_out == {"given up too early": 2}
    assert data.merged(data).left_out == {"given up too early": 4}


def test_a_slow_kernel_was_not_given_up() -> None:
    first, second = (r for r in prior_data.records()[:2])
    slow = [repeated(r, 3, 0.05 / r.result.latency_s) for r in (first, second)]
    few = [repeated(r, 5, 0.04 / r.result.latency_s) for r in (first, second)]
    assert [given_up(r.result.latencies_s) for r in (*slow, *few, repeated(first, 3, 1.0))] == [False] * 4 + [True]


def test_cpus_are_kept_apart_in_one_data_set(tmp_path: Path) -> None:
    here = prior_data.small_dataset()
    both = prior_data.of_both_cpus()
    path = tmp_path / "both.npz"
    dataset.save(both, path)
    again = dataset.load(path)
    assert (
        again.digest == both.digest == here.merged(prior_data.made(list(prior_data.records(prior_data.OTHER)))).digest
    )
    assert len(again.groups) == 2 * prior_data.WORKLOADS and again.machines == both.machines
    other = prior_data.other_cpu().hardware
    assert again.of_cpu(other.fingerprint, inside=False).digest == here.digest
    (machine,) = again.of_cpu(other.fingerprint).machines
    assert machine.hardware == other
    limits = machines.machine_of(other, (prior_data.THREADS,)).limits[prior_data.THREADS]
    assert limits.estimated and "from another machine" in limits.note
    assert {group.space().features(group.space().default()[None]).shape[0] for group in again.groups[:3]} == {1}
