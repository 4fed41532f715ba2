"""What every store promises (`calumma.core.protocols.Store`).

A test supplies one fixture::

    class TestMine(StoreConformance):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(tempfile.mkdtemp(dir=tmp_path))
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from calumma.core.errors import DatabaseError, InternalError
from calumma.core.protocols import Store
from calumma.core.values import Candidate, Hardware, MeasureRecord, MeasureResult, Status, Workload

HARDWARE = Hardware("AMD EPYC", "znver5", 512, 48 << 10, 1 << 20, 32 << 20, 8)
OTHER_HARDWARE = replace(HARDWARE, mcpu="znver4")
CONV = Workload("00000000000000c0", '{"text": "conv2d é"}')
DENSE = Workload("00000000000000de", '{"text": "dense"}')


def record(
    tile: int = 8,
    *,
    workload: Workload = CONV,
    latencies_s: tuple[float, ...] = (1.5e-3, 1.25e-3, 1e-3),
    status: Status = Status.OK,
    reason: str = "",
    **changes: Any,
) -> MeasureRecord:
    """A record of a made-up convolution; `changes` replaces other fields."""
    made = MeasureRecord(
        candidate=Candidate(workload, "conv2d", 3, {"tile": tile, "order": "nchw", "unroll": True}),
        result=MeasureResult(status, latencies_s if status is Status.OK else (), reason, {"build": 0.125, "run": 0.5}),
        hardware=HARDWARE,
        threads=4,
        cache_state="cold",
        toolchain="tvm 0.27.0.post1, llvm 22",
        session="s1",
        strategy="evolutionary",
        seed=7,
    )
    return replace(made, **changes)


class StoreConformance:
    """The suite; a subclass supplies the fixture `open_store`."""

    @pytest.fixture
    def open_store(self) -> Callable[[], Store]:
        """A function that returns a new, empty store at every call; the fixture closes them."""
        raise NotImplementedError("a conformance test supplies the fixture `open_store`")

    @pytest.fixture
    def store(self, open_store: Callable[[], Store]) -> Store:
        """A new, empty store."""
        return open_store()

    def test_a_new_store_is_empty(self, store: Store) -> None:
        assert store.records() == []
        assert store.sessions() == []

    @pytest.mark.parametrize("status", list(Status))
    def test_a_record_comes_back_as_it_was(self, store: Store, status: Status) -> None:
        written = record(
            status=status, reason="" if status is Status.OK else "line 1\nsegmentation fault \N{SKULL} ' \" \0"
        )
        store.append([written])
        assert store.records() == [written]
        assert type(store.records()[0].candidate.config["unroll"]) is bool
        assert store.records()[0].candidate.key == written.candidate.key

    def test_extreme_values_come_back(self, store: Store) -> None:
        written = record(
            seed=-(1 << 63),
            time_s=1e-9,
            session="",
            candidate=Candidate(CONV, "", 0, {}),
            result=MeasureResult(Status.OK, (5e-324, 1e300), "", {}),
        )
        store.append([written])
        assert store.records() == [written]

    def test_hardware_comes_back_with_its_cores(self, store: Store) -> None:
        """The fingerprint leaves the cores out."""
        written = [record(1), record(2, hardware=replace(HARDWARE, cores=2))]
        store.append(written)
        assert store.records(hardware=HARDWARE.fingerprint) == written

    def test_a_reason_that_is_no_text_is_kept_readable(self, store: Store) -> None:
        store.append([record(status=Status.WORKER_LOST, reason="bad \udcff byte")])
        assert store.records()[0].result.reason == "bad \\udcff byte"

    def test_the_text_first_stored_under_a_hash_stays(self, store: Store) -> None:
        store.append([record(1), record(2, workload=replace(CONV, text="another"))])
        store.append([record(3, workload=replace(CONV, text="a third"))])
        assert [r.candidate.workload for r in store.records()] == [CONV] * 3

    def test_records_are_returned_oldest_first(self, store: Store) -> None:
        store.append([record(1, time_s=30.0), record(2, time_s=10.0)])
        store.append([record(3, time_s=20.0), record(4, time_s=10.0)])
        assert [r.candidate.config["tile"] for r in store.records()] == [2, 4, 3, 1]

    def test_equal_records_are_all_kept(self, store: Store) -> None:
        twice = record(time_s=1.0)
        store.append([twice])
        store.append([twice])
        assert store.records() == [twice, twice]

    def test_appending_nothing_is_fine(self, store: Store) -> None:
        store.append([])
        assert store.records() == []

    def test_later_changes_of_a_callers_dict_do_not_reach_the_store(self, store: Store) -> None:
        config = {"tile": 1}
        store.append([record(candidate=Candidate(CONV, "conv2d", 3, config))])
        config["tile"] = 2
        assert store.records()[0].candidate.config == {"tile": 1}

    @pytest.mark.parametrize(
        ("filters", "tiles"),
        [
            ({}, [1, 2, 3, 4, 5, 6]),
            ({"workloads": [DENSE.hash]}, [2]),
            ({"workloads": {DENSE.hash, CONV.hash}}, [1, 2, 3, 4, 5, 6]),
            ({"workloads": []}, []),
            ({"workloads": ["ffff"]}, []),
            ({"workloads": [DENSE.hash, *map(str, range(2000))]}, [2]),
            ({"hardware": OTHER_HARDWARE.fingerprint}, [3]),
            ({"threads": 1}, [4]),
            ({"cache_state": "hot"}, [5]),
            ({"toolchain": "tvm 0.28"}, [6]),
            ({"session": "s2"}, [6]),
            ({"session": "s1", "threads": 4, "cache_state": "cold", "workloads": [CONV.hash]}, [1, 3]),
            ({"session": "s2", "threads": 1}, []),
        ],
    )
    def test_filters(self, open_store: Callable[[], Store], filters: dict, tiles: list[int]) -> None:
        store = open_store()
        store.append(
            [
                record(1),
                record(2, workload=DENSE),
                record(3, hardware=OTHER_HARDWARE),
                record(4, threads=1),
                record(5, cache_state="hot"),
                record(6, toolchain="tvm 0.28", session="s2"),
            ]
        )
        assert [r.candidate.config["tile"] for r in store.records(**filters)] == tiles

    @pytest.mark.parametrize(
        ("bad", "what"),
        [
            (record(latencies_s=()), "status"),
            (record(latencies_s=(float("nan"),)), "latencies_s"),
            (record(latencies_s=(float("inf"),)), "latencies_s"),
            (record(latencies_s=(0.0,)), "latencies_s"),
            (record(result=MeasureResult(Status.RUN_ERROR, (1.0,))), "status"),
            (record(result=MeasureResult(Status.OK, (1.0,), "", {"run": -1.0})), "phases_s"),
            (record(candidate=Candidate(CONV, "conv2d", 1, {"tile": 1.5})), "config"),  # type: ignore[dict-item]
            (record(candidate=Candidate(Workload("", "x"), "conv2d", 1, {})), "hash"),
            (record(seed=1 << 63), "seed"),
            (record(strategy="\ud800"), "strategy"),
            (record(hardware=replace(HARDWARE, l1_bytes=None)), "l1_bytes"),  # type: ignore[arg-type]
        ],
    )
    def test_a_batch_with_a_malformed_record_is_refused_whole(
        self, store: Store, bad: MeasureRecord, what: str
    ) -> None:
        with pytest.raises(InternalError, match=what):
            store.append([record(), bad])
        assert store.records() == []

    def test_many_threads_may_append_and_read(self, store: Store) -> None:
        def work(thread: int) -> None:
            for i in range(10):
                store.append([record(100 * thread + i), record(100 * thread + i + 50)])
                assert len(store.records(workloads=[CONV.hash])) % 2 == 0

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({r.candidate.key for r in store.records()}) == len(store.records()) == 80

    def test_a_session_from_start_to_end(self, store: Store) -> None:
        first = store.start_session("resnet50", "abc", {"budget": {"seconds": 60.0, "trials": None}, "seed": 0})
        second = store.start_session("vit", "def", {})
        assert first != second
        store.finish_session(first, {"latency_s": 0.5})
        sessions = {session.id: session for session in store.sessions()}
        assert [session.started_s for session in store.sessions()] == sorted(s.started_s for s in sessions.values())
        done, running = sessions[first], sessions[second]
        assert (done.model, done.model_hash, done.summary) == ("resnet50", "abc", {"latency_s": 0.5})
        assert done.options == {"budget": {"seconds": 60.0, "trials": None}, "seed": 0}
        assert done.finished_s is not None
        assert done.finished_s >= done.started_s
        assert (running.finished_s, running.summary) == (None, None)

    def test_a_session_is_finished_once(self, store: Store) -> None:
        session = store.start_session("resnet50", "abc", {})
        store.finish_session(session, {"kept": True})
        for unfinished in (session, "unknown"):
            with pytest.raises(DatabaseError, match=unfinished):
                store.finish_session(unfinished, {})
        assert [s.summary for s in store.sessions()] == [{"kept": True}]

    @pytest.mark.parametrize("options", [{"x": float("nan")}, {"x": object()}])
    def test_session_options_must_be_json(self, store: Store, options: dict) -> None:
        with pytest.raises(InternalError, match="options"):
            store.start_session("resnet50", "abc", options)
        assert store.sessions() == []

    def test_a_closed_store_refuses_work_and_closes_again(self, store: Store) -> None:
        store.close()
        store.close()
        for use in (store.records, store.sessions, lambda: store.append([record()])):
            with pytest.raises(InternalError, match="closed"):
                use()
