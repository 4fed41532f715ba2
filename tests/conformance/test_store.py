"""Every store of the package keeps what stores promise; records as JSON lines, and the best of them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from calumma.core.errors import InputError
from calumma.core.protocols import Store
from calumma.core.values import Candidate, Status
from calumma.database import MemoryStore, SqlStore, best, export_jsonl, import_jsonl, write_jsonl
from calumma.testing.store_suite import CONV, DENSE, HARDWARE, StoreConformance, record


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


class TestStores(StoreConformance):
    @pytest.fixture
    def open_store(self, open_store: Callable[[], Store]) -> Callable[[], Store]:
        return open_store


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
