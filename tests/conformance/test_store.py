"""What every store must do. An implementation only supplies the fixture `open_store`."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.core.errors import DatabaseError, InputError, InternalError
from calumma.core.protocols import Store
from calumma.core.values import Candidate, Hardware, MeasureRecord, MeasureResult, Status, Workload
from calumma.database import MemoryStore, SqlStore, best, export_jsonl, import_jsonl, write_jsonl

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


@pytest.fixture(params=["memory", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """A function that returns a new, empty store at every call."""
    opened: list[Store] = []

    def open_() -> Store:
        name = f"store{len(opened)}.sqlite"
        opened.append(MemoryStore() if request.param == "memory" else SqlStore.open(tmp_path / name))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.records() == []
    assert store.sessions() == []


@pytest.mark.parametrize("status", list(Status))
def test_a_record_comes_back_as_it_was(store: Store, status: Status) -> None:
    written = record(
        status=status, reason="" if status is Status.OK else "line 1\nsegmentation fault \N{SKULL} ' \" \0"
    )
    store.append([written])
    assert store.records() == [written]
    assert type(store.records()[0].candidate.config["unroll"]) is bool
    assert store.records()[0].candidate.key == written.candidate.key


def test_extreme_values_come_back(store: Store) -> None:
    written = record(
        seed=-(1 << 63),
        time_s=1e-9,
        session="",
        candidate=Candidate(CONV, "", 0, {}),
        result=MeasureResult(Status.OK, (5e-324, 1e300), "", {}),
    )
    store.append([written])
    assert store.records() == [written]


def test_hardware_comes_back_with_its_cores(store: Store) -> None:
    """The fingerprint leaves the cores out."""
    written = [record(1), record(2, hardware=replace(HARDWARE, cores=2))]
    store.append(written)
    assert store.records(hardware=HARDWARE.fingerprint) == written


def test_a_reason_that_is_no_text_is_kept_readable(store: Store) -> None:
    store.append([record(status=Status.WORKER_LOST, reason="bad \udcff byte")])
    assert store.records()[0].result.reason == "bad \\udcff byte"


def test_the_text_first_stored_under_a_hash_stays(store: Store) -> None:
    store.append([record(1), record(2, workload=replace(CONV, text="another"))])
    store.append([record(3, workload=replace(CONV, text="a third"))])
    assert [r.candidate.workload for r in store.records()] == [CONV] * 3


def test_records_are_returned_oldest_first(store: Store) -> None:
    store.append([record(1, time_s=30.0), record(2, time_s=10.0)])
    store.append([record(3, time_s=20.0), record(4, time_s=10.0)])
    assert [r.candidate.config["tile"] for r in store.records()] == [2, 4, 3, 1]


def test_equal_records_are_all_kept(store: Store) -> None:
    twice = record(time_s=1.0)
    store.append([twice])
    store.append([twice])
    assert store.records() == [twice, twice]


def test_appending_nothing_is_fine(store: Store) -> None:
    store.append([])
    assert store.records() == []


def test_later_changes_of_a_callers_dict_do_not_reach_the_store(store: Store) -> None:
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
def test_filters(open_store: Callable[[], Store], filters: dict, tiles: list[int]) -> None:
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
        (record(hardware=replace(HARDWARE, l1_bytes=None)), "l1_bytes"),
    ],
)
def test_a_batch_with_a_malformed_record_is_refused_whole(store: Store, bad: MeasureRecord, what: str) -> None:
    with pytest.raises(InternalError, match=what):
        store.append([record(), bad])
    assert store.records() == []


def test_many_threads_may_append_and_read(store: Store) -> None:
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


def test_a_session_from_start_to_end(store: Store) -> None:
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


def test_a_session_is_finished_once(store: Store) -> None:
    session = store.start_session("resnet50", "abc", {})
    store.finish_session(session, {"kept": True})
    for unfinished in (session, "unknown"):
        with pytest.raises(DatabaseError, match=unfinished):
            store.finish_session(unfinished, {})
    assert [s.summary for s in store.sessions()] == [{"kept": True}]


@pytest.mark.parametrize("options", [{"x": float("nan")}, {"x": object()}])
def test_session_options_must_be_json(store: Store, options: dict) -> None:
    with pytest.raises(InternalError, match="options"):
        store.start_session("resnet50", "abc", options)
    assert store.sessions() == []


def test_a_closed_store_refuses_work_and_closes_again(store: Store) -> None:
    store.close()
    store.close()
    for use in (store.records, store.sessions, lambda: store.append([record()])):
        with pytest.raises(InternalError, match="closed"):
            use()


# ---- records as JSON lines


def test_export_and_import_carry_everything(open_store: Callable[[], Store], tmp_path: Path) -> None:
    source, target = open_store(), open_store()
    source.append([record(1), record(2, workload=DENSE, status=Status.BUILD_ERROR, reason="é\n")])
    source.append([record(3, hardware=replace(HARDWARE, cores=2))])
    assert export_jsonl(source, tmp_path / "records.jsonl") == 3
    assert import_jsonl(target, tmp_path / "records.jsonl") == 3
    assert target.records() == source.records()
    assert import_jsonl(target, tmp_path / "records.jsonl") == 0, "what is there already is not added again"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_exports_may_be_concatenated(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    with path.open("w") as stream:
        write_jsonl([record(1, time_s=1.0)], stream)
        write_jsonl([record(2, time_s=2.0), record(1, time_s=1.0)], stream)
    assert import_jsonl(store, path) == 2


def test_an_empty_store_exports_and_imports(open_store: Callable[[], Store], tmp_path: Path) -> None:
    assert export_jsonl(open_store(), tmp_path / "empty.jsonl") == 0
    assert import_jsonl(open_store(), tmp_path / "empty.jsonl") == 0


LINES = 4  # header, workload, hardware, record


@pytest.mark.parametrize(
    ("line", "edit", "what"),
    [
        (1, lambda value: {"calumma_records": 2}, "version 2"),
        (1, lambda value: {"workload": {}}, "calumma_records"),
        (2, lambda value: {"workload": {"hash": 5, "text": ""}}, "hash"),
        (3, lambda value: {"hardware": value["hardware"] | {"l1_bytes": 7}}, "fingerprint"),
        (4, lambda value: {"record": {k: v for k, v in value["record"].items() if k != "seed"}}, "seed"),
        (4, lambda value: {"record": value["record"] | {"extra": 1}}, "extra"),
        (4, lambda value: {"record": value["record"] | {"status": "fine"}}, "status"),
        (4, lambda value: {"record": value["record"] | {"status": ["ok"]}}, "status"),
        (4, lambda value: {"record": value["record"] | {"latencies_s": [True]}}, "latencies_s"),
        (4, lambda value: {"record": value["record"] | {"latencies_s": [float("nan")]}}, "latencies_s"),
        (4, lambda value: {"record": value["record"] | {"config": {"tile": [1]}}}, "tile"),
        (4, lambda value: {"record": value["record"] | {"workload": "unknown"}}, "workload"),
        (4, lambda value: {"record": value["record"] | {"hardware": {}}}, "hardware"),
        (4, lambda value: {"record": [1]}, "object"),
        (4, lambda value: {"module": {}}, "module"),
        (4, lambda value: [value], "one object"),
        (4, lambda value: b"\xff", "UTF-8"),
        (4, lambda value: b'{"record": ', "JSON"),
        (4, lambda value: b"[" * 100_000, "JSON"),
    ],
)
def test_a_bad_line_is_named_and_nothing_imported(
    store: Store, tmp_path: Path, line: int, edit: Callable, what: str
) -> None:
    path = tmp_path / "records.jsonl"
    with path.open("w") as stream:
        write_jsonl([record()], stream)
    lines = path.read_bytes().splitlines()
    assert len(lines) == LINES
    edited = edit(json.loads(lines[line - 1]))
    lines[line - 1] = edited if isinstance(edited, bytes) else json.dumps(edited).encode()
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=rf"line {line}: .*{what}"):
        import_jsonl(store, path)
    assert store.records() == []


def test_a_file_that_cannot_be_read_or_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="holds no records"):
        import_jsonl(store, tmp_path / "empty")
    with pytest.raises(InputError, match="cannot be read"):
        import_jsonl(store, tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be written"):
        export_jsonl(store, tmp_path / "absent" / "records.jsonl")


# ---- the best record


def test_best_is_the_fastest_of_each_workload_and_template_version(store: Store) -> None:
    newer = Candidate(CONV, "conv2d", 4, {"tile": 1})
    store.append(
        [
            record(1, latencies_s=(3e-3,)),
            record(2, latencies_s=(2e-3,)),
            record(3, status=Status.RUN_ERROR, reason="crashed"),
            record(4, workload=DENSE, latencies_s=(9e-3,)),
            record(candidate=newer, latencies_s=(1e-3,)),
        ]
    )
    winners = best(store.records())
    assert {key: r.candidate.config["tile"] for key, r in winners.items()} == {
        (CONV.hash, "conv2d", 3): 2,
        (DENSE.hash, "conv2d", 3): 4,
        (CONV.hash, "conv2d", 4): 1,
    }


def test_best_takes_no_luck_and_no_wrong_output(store: Store) -> None:
    store.append(
        [
            record(1, latencies_s=(1e-3,)),  # lucky: measured again below
            record(2, latencies_s=(1e-4,)),  # wrong: found out below
            record(3, latencies_s=(2e-3,)),
            record(1, latencies_s=(3e-3,)),
            record(2, status=Status.WRONG_OUTPUT, reason="differs by 1.0"),
            record(2, latencies_s=(1e-4,)),
        ]
    )
    (winner,) = best(store.records()).values()
    assert winner.candidate.config["tile"] == 3
    assert best([]) == {}
