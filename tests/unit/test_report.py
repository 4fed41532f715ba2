"""What a report says, from records written by hand and from a simulated session."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calumma.cli import main
from calumma.core.errors import EnvironmentFault, InputError
from calumma.core.values import (
    Budget,
    Candidate,
    Hardware,
    KnobValue,
    MeasureRecord,
    MeasureResult,
    Status,
    Workload,
)
from calumma.database import MemoryStore, SqlStore
from calumma.report import collect, read_comparison, render, write
from calumma.report.knobs import MIN_CONFIGS, knob_effects
from tests.toy_tuning import Landscape, World, task

HARDWARE = Hardware("Some CPU", "znver5", 512, 32 << 10, 1 << 20, 32 << 20, 2)
START_S = 1e9


def record(
    workload: str,
    latency_s: float | None,
    at_s: float,
    origin: str = "evolutionary",
    *,
    verified: bool = False,
    reason: str = "",
    session: str = "",
    **config: KnobValue,
) -> MeasureRecord:
    phases_s = {"build": 0.1, "run": 0.1} | ({"verify": 0.1} if verified else {})
    result = (
        MeasureResult(Status.BUILD_ERROR, reason=reason, phases_s=phases_s)
        if latency_s is None
        else MeasureResult(Status.OK, (latency_s,), phases_s=phases_s)
    )
    candidate = Candidate(Workload(workload, "{}"), "conv2d", 1, config)
    return MeasureRecord(candidate, result, HARDWARE, 2, "cold", "tvm 0.27", session, origin, 7, at_s)


def summary(**more: Any) -> dict[str, Any]:
    def of_task(name: str, weight: int, latency_s: float | None, default_s: float | None) -> dict[str, Any]:
        return {
            "workload": name,
            "name": f"fused_{name}",
            "weight": weight,
            "template": "conv2d",
            "arguments": [[[1, 8], "float32"], [[], "float32"], [[1, 4], "float32"]],
            "flops": 2e6,
            "size_bytes": 4e6,
            "config": {"tile": 8, "unroll": True},
            "default_config": {"tile": 4, "unroll": True},
            "tuned": True,
            "checked": True,
            "latency_s": latency_s,
            "default_latency_s": default_s,
            "bound_s": 5e-4,
            "trials": 3,
            "finished": "near bound",
        }

    tasks = [of_task("aaaa", 1, 1e-3, 2e-3), of_task("bbbb", 4, 1e-3, 1e-3), of_task("cccc", 1, None, None)]
    return {
        "trials": 6,
        "seconds": 9.0,
        "phases_s": {"build": 6.0, "run": 3.0},
        "interrupted": False,
        "environment": {"calumma": "0.1.0"},
        "tasks": tasks,
        **more,
    }


def stored(
    records: Iterable[MeasureRecord], ended: dict[str, Any] | None, options: dict[str, Any] | None = None
) -> tuple[MemoryStore, str]:
    """A store with one session."""
    store = MemoryStore()
    session = store.start_session("net", "cafe", options or {})
    started_s = store.sessions()[0].started_s
    store.append([replace(r, session=session, time_s=started_s + r.time_s) for r in records])
    if ended is not None:
        store.finish_session(session, ended)
    return store, session


RECORDS = [
    record("aaaa", 3e-3, 0.5, "remeasure", tile=2),
    record("aaaa", 2e-3, 1.0, "default", tile=4),
    record("bbbb", 1e-3, 1.5, "default", tile=4),
    record("aaaa", 0.5e-3, 2.0, tile=1),  # fast, but its outputs were never compared
    record("aaaa", 1e-3, 3.0, verified=True, tile=8),
    record("bbbb", None, 4.0, reason="no registers left", tile=64),
    record("aaaa", None, 5.0, reason="no registers left", tile=64),
    record("aaaa", None, 6.0, reason="too slow", tile=32),
    record("aaaa", 0.9e-3, 8.0, "remeasure", verified=True, tile=8),  # the final check
]


def test_tasks_are_ordered_by_their_time_and_sums_compare_what_was_measured_twice() -> None:
    store, _ = stored(RECORDS, summary())
    found = collect(store)
    assert [(t.number, t.workload, t.time_s) for t in found.tasks] == [
        (1, "bbbb", 4e-3),
        (2, "aaaa", 1e-3),
        (3, "cccc", 0.0),
    ]
    assert (found.default_latency_s, found.latency_s) == (pytest.approx(6e-3), pytest.approx(5e-3))
    assert found.speedup == pytest.approx(1.2) and len(found.compared) == 2
    assert [found.share(t) for t in found.tasks] == [pytest.approx(0.8), pytest.approx(0.2), None]
    first = found.tasks[0]
    assert first.flops_per_s == pytest.approx(2e9) and first.bytes_per_s == pytest.approx(4e9)
    assert first.roofline_share == pytest.approx(0.5)
    assert first.arguments == "1×8, scalar → 1×4"
    assert first.changes == (("tile", 4, 8),)
    assert (found.seconds, found.trials, found.seed, found.threads) == (9.0, 6, 7, 2)


def test_convergence_counts_what_may_be_best_and_ends_before_the_final_check() -> None:
    store, _ = stored(RECORDS, summary())
    found = collect(store)
    curves = {
        t.workload: [(round(p.elapsed_s, 3), p.trial, p.latency_s) for p in t.curve] for t in found.tasks if t.curve
    }
    assert curves == {
        "aaaa": [(0.5, 0, 3e-3), (1.0, 1, 2e-3), (3.0, 3, 1e-3)],
        "bbbb": [(1.5, 1, 1e-3)],
    }
    # bbbb weighs 4 and counts from the start with its first latency.
    assert [(round(p.elapsed_s, 3), p.trial, round(p.latency_s, 6)) for p in found.curve] == [
        (0.5, 0, 7e-3),
        (1.0, 1, 6e-3),
        (3.0, 4, 5e-3),
    ]


def test_a_clock_set_back_does_not_put_measurements_before_the_start() -> None:
    store, _ = stored([record("aaaa", 1e-3, -50.0, "default")], summary())
    assert collect(store).curve[0].elapsed_s == 0.0


def test_failures_are_grouped_by_reason() -> None:
    store, _ = stored(RECORDS, summary())
    groups = [(g.status, g.reason, g.count, g.tasks) for g in collect(store).failures]
    assert groups == [
        (Status.BUILD_ERROR, "no registers left", 2, ("#1 conv2d", "#2 conv2d")),
        (Status.BUILD_ERROR, "too slow", 1, ("#2 conv2d",)),
    ]


def test_origins_count_trials_and_new_bests() -> None:
    store, _ = stored(RECORDS, summary())
    assert {(o.origin, o.trials, o.worked, o.bests) for o in collect(store).origins} == {
        ("evolutionary", 5, 2, 1),
        ("default", 2, 2, 1),
    }


def test_a_session_without_an_end_is_reported_from_its_records() -> None:
    store, _ = stored(RECORDS, None)
    found = collect(store)
    assert not found.complete and found.phases_s == {} and found.trials == 7
    assert {t.workload: (t.latency_s, t.default_latency_s, t.weight) for t in found.tasks} == {
        "aaaa": (1e-3, 2e-3, 1),
        "bbbb": (1e-3, 1e-3, 1),
    }
    assert "has no end" in render(found)


def test_a_session_without_records() -> None:
    for ended in (None, {}, summary(tasks=[])):
        store, _ = stored([], ended)
        found = collect(store)
        assert found.tasks == () and found.hardware is None and found.speedup is None
        assert "Too few configurations" in render(found)


def test_a_session_of_the_tuner_has_all_a_report_wants() -> None:
    world = World([task("a", 3), task("b", 1, 14)], [Landscape(1e-3), Landscape(5e-4)])
    options = {"source": "my net.onnx", "shapes": {"x": [1, 3]}, "budget_s": 40.0, "threads": 2, "mcpu": "znver5"}
    options |= {"tolerance": 1e-6, "precision": "bf16"}
    result = world.run(Budget(seconds=40), model="net", options=options)
    found = collect(world.store)
    assert found.trials == result.trials == sum(t.trials for t in found.tasks)
    assert found.latency_s == pytest.approx(result.latency_s)
    assert found.default_latency_s == pytest.approx(result.default_latency_s)
    assert sum(found.phases_s.values()) == pytest.approx(found.seconds)
    assert all(t.flops == 1e9 and t.curve and t.arguments for t in found.tasks)
    assert found.curve[-1].latency_s < found.curve[0].latency_s
    assert set(found.versions) == {"calumma", "python", "system"}
    assert found.command == (
        "calumma tune 'my net.onnx' --shape x=1,3 --budget 40s --strategy evolutionary --seed 0 --threads 2 "
        "--mcpu znver5 --tolerance 1e-06 --precision bf16"
    )
    render(found)


def test_the_command_of_a_model_without_a_file_is_a_python_call() -> None:
    options = {"source": None, "trials": 9, "strategy": "random", "seed": 1, "threads": 2, "precision": "fp32"}
    for more, said in (({}, ""), ({"tolerance": 0, "precision": "bf16"}, ", tolerance=0.0, precision='bf16'")):
        store, _ = stored([], None, options | more)
        assert collect(store).command == (
            f"calumma.tune(model, budget=calumma.Budget(trials=9), strategy='random', seed=1, threads=2{said})"
        )


def test_the_last_session_is_the_default() -> None:
    store, first = stored(RECORDS, summary())
    second = store.start_session("other", "", {})
    assert collect(store).session.id == second
    assert collect(store, first).session.id == first


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ({"seconds": "9"}, "seconds is '9', expected a number"),
        ({"seconds": -1}, "seconds is -1"),
        ({"seconds": 10**400}, "expected a number"),
        ({"trials": 10**400}, "expected a whole number"),
        ({"trials": 1.5}, "trials is 1.5, expected a whole number"),
        ({"tasks": "none"}, "tasks is 'none', expected a list"),
        ({"tasks": [3]}, r"tasks\[0\] is 3, expected a JSON object"),
        ({"tasks": [{}]}, "workload is missing"),
        ({"tasks": [{"workload": "aaaa", "config": {"tile": [1]}}]}, "integers, texts and booleans"),
        ({"tasks": [{"workload": "aaaa", "tuned": 1}]}, "tuned is 1, expected true or false"),
        ({"phases_s": {"build": None}}, "build is missing"),
    ],
)
def test_damaged_summaries_are_refused(ended: dict[str, Any], expected: str) -> None:
    store, session = stored([], ended)
    with pytest.raises(InputError, match=expected) as caught:
        collect(store)
    assert session in str(caught.value)


# Knobs


def measured(effect: float, n: int, tasks: int = 2, seed: int = 0) -> list[MeasureRecord]:
    """Configurations whose latency depends on `tile` by `effect`, and not on `order`; tasks differ by 100 x."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        tile, order, of_task = int(rng.integers(3)), str(rng.choice(["ab", "ba"])), number % tasks
        latency_s = 1e-5 * 100**of_task * np.exp(effect * tile + 0.05 * rng.standard_normal())
        found.append(record(f"task {of_task}", float(latency_s), number, tile=tile, order=order, number=number))
    return found


def test_a_knob_that_separates_is_found_and_others_are_not() -> None:
    effects, examined = knob_effects(measured(0.5, 60))
    assert [(e.knob, e.template, e.configs, e.tasks) for e in effects] == [("tile", "conv2d", 60, 2)]
    assert examined == 2  # every value of "number" is measured once: it cannot be examined
    assert effects[0].effect > 0.9
    assert [v.value for v in effects[0].values] == [0, 1, 2]
    assert [v.slowdown for v in effects[0].values] == pytest.approx([1.0, np.exp(0.5), np.exp(1.0)], rel=0.1)


def test_chance_is_not_an_effect() -> None:
    found = [len(knob_effects(measured(0.0, 40, seed=seed))[0]) for seed in range(20)]
    assert sum(found) <= 2  # of 40 knobs examined


def test_few_configurations_tell_nothing() -> None:
    assert knob_effects(measured(0.5, MIN_CONFIGS - 1)) == ((), 0)
    assert knob_effects([]) == ((), 0)


def test_wrong_outputs_and_failures_do_not_count() -> None:
    right = measured(0.5, 60)
    wrong = [replace(r, result=MeasureResult(Status.WRONG_OUTPUT)) for r in right]
    assert knob_effects([*right, *wrong]) == ((), 0)
    assert knob_effects([*right, record("task 0", None, 99, tile=1)]) == knob_effects(right)


def test_tasks_with_one_value_of_a_knob_say_nothing_about_it() -> None:
    # A hundred times slower with the other value, but each task has only one.
    records = [record(f"task {i % 2}", 1e-5 * 100 ** (i % 2) * (1 + i / 100), i, tile=i % 2) for i in range(40)]
    assert knob_effects(records) == ((), 0)


# The page

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'{{7*7}}&amp;$x^2$\x00"""


def test_hostile_text_is_text() -> None:
    ended = summary()
    for values in ended["tasks"]:
        values.update(name=HOSTILE, template=HOSTILE, finished=HOSTILE, config={HOSTILE: HOSTILE})
        values["default_config"] = {HOSTILE: 1}
    ended["environment"] = {"calumma": HOSTILE}
    ended["phases_s"] = {HOSTILE: 1.0}
    records = [
        *(replace(r, strategy=HOSTILE, toolchain=HOSTILE) for r in RECORDS),
        record("aaaa", None, 6.0, reason=HOSTILE, **dict[str, Any]({HOSTILE: HOSTILE})),
    ]
    store = MemoryStore()
    session = store.start_session(HOSTILE, HOSTILE, {"strategy": HOSTILE, "source": HOSTILE})
    store.append([replace(r, session=session) for r in records])
    store.finish_session(session, ended)
    page = render(collect(store))
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img" not in page.replace(plotly_js(), "")
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page, re.DOTALL)[0]


def plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_the_page_holds_plotly_once_and_names_no_other_script() -> None:
    store, _ = stored(RECORDS, summary())
    page = render(collect(store))
    assert page.count(plotly_js()[:2000]) == 1
    own = page.replace(plotly_js(), "")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "unsafe-inline" not in re.findall(r"script-src[^;]*", own)[0]
    assert len(re.findall(r"'sha256-[\w+/]{43}='", own)) == 2


def test_numbers_that_people_read() -> None:
    from calumma.report import page

    assert [page._significant(x) for x in (0.0, 0.012345, 1.5, 19.0, 123.4, 999.7, 12345.6, None)] == [
        "0.00", "0.0123", "1.50", "19.0", "123", "1000", "12346", "–",
    ]  # fmt: skip
    assert [page._percent(x) for x in (0.001, 0.09, 0.0999, 0.55, None)] == ["0.1%", "9.0%", "10%", "55%", "–"]
    assert [page._bytes(x) for x in (100, 48 << 10, 3 << 19)] == ["100 B", "48 KiB", "1.5 MiB"]
    assert [page._value(x) for x in (True, 8, "inline")] == ["true", "8", "inline"]


def test_writing_replaces_the_whole_file_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    write("new \ud800", target)
    assert target.read_text() == "new ?"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(InputError, match="cannot be written"):
        write("x", tmp_path / "absent" / "report.html")


# The command


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "records.sqlite"
    with SqlStore.open(path) as store:
        session = store.start_session("net", "cafe", {})
        store.append([replace(r, session=session, time_s=START_S + r.time_s) for r in RECORDS])
        store.finish_session(session, summary())
    return str(path)


def fails(capsys: pytest.CaptureFixture[str], expected: str, *arguments: str) -> None:
    assert main(["report", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("calumma: error: ") and printed.err.count("\n") == 1
    assert expected in printed.err


def test_the_command_writes_the_page(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.html"
    assert main(["report", "--db", database, "-o", str(target), "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["report"] == str(target) and document["session"] in target.read_text()


def test_bad_input_is_one_line(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "out.html")
    fails(capsys, "there is no session 'nope'", "nope", "--db", database, "-o", target)
    fails(capsys, "holds no tuning session", "--db", str(tmp_path / "new.sqlite"), "-o", target)
    fails(capsys, "create it first", "--db", database, "-o", str(tmp_path / "absent" / "out.html"))
    (tmp_path / "damaged.sqlite").write_bytes(Path(database).read_bytes()[:5000])
    fails(capsys, "damaged.sqlite", "--db", str(tmp_path / "damaged.sqlite"), "-o", target)
    (tmp_path / "text.json").write_text("not JSON")
    fails(capsys, "calumma bench --json FILE", "--db", database, "-o", target, "--bench", str(tmp_path / "text.json"))
    assert not Path(target).exists()


def test_plotly_not_installed_is_one_line(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "calumma.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "plotly", None)
    fails(capsys, "pip install 'calumma[report]'", "--db", database, "-o", str(tmp_path / "out.html"))
    store, _ = stored([], None)
    with pytest.raises(EnvironmentFault, match="plotly"):
        render(collect(store))


# Peers


def test_a_comparison_is_read(tmp_path: Path) -> None:
    rows = [
        {"label": "calumma", "version": "0.1.0", "latency_s": {"median": 1e-3, "lower": 9e-4, "upper": 2e-3},
         "difference": 1e-6, "ratio": {"median": 1.0}, "reason": ""},
        {"label": "torch-eager", "version": "", "latency_s": None, "difference": None, "ratio": None,
         "reason": "cannot run"},
    ]  # fmt: skip
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"model": "/some/where/net.onnx", "threads": 4, "rows": rows}))
    found = read_comparison(file)
    assert (found.model, found.name, found.threads) == ("net.onnx", "net", 4)
    assert [(p.label, p.latency_s, p.quartiles_s, p.ratio) for p in found.peers] == [
        ("calumma", 1e-3, (9e-4, 2e-3), 1.0),
        ("torch-eager", None, None, None),
    ]
    store, _ = stored(RECORDS, summary())
    page = render(collect(store), found)
    assert "cannot run" in page and "The session tuned for 2 threads" in page and "another model" not in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "expected a JSON object"),
        ("{}", "holds no rows"),
        ('{"rows": [{}]}', "label is missing"),
        ('{"rows": [{"label": "a", "latency_s": {"median": "fast"}}]}', "median is 'fast'"),
        ('{"rows": [{"label": "a", "latency_s": {"median": NaN}}]}', "median is nan"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_comparison_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    with pytest.raises(InputError, match=expected):
        read_comparison(file)
