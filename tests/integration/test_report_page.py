"""The report of a real session as a person opens it: in Chromium, with a mouse, wide and narrow, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.cli import main
from calumma.core.values import Status
from calumma.database import MemoryStore, SqlStore
from calumma.report import collect, render, write
from tests.chromium import Page, chromium
from tests.onnx_models import Model
from tests.unit.test_report import HOSTILE, RECORDS, summary

pytestmark = pytest.mark.xdist_group("browser")

PLOTS = ("peers", "model", "tasks", "time", "phases")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned model, its comparison with a peer, and its report."""
    path = tmp_path_factory.mktemp("tuned")
    m = Model()
    x = m.op("Relu", m.conv(m.input(1, 3, 20, 20), (3, 32)))
    (path / "net.onnx").write_bytes(m.bytes(m.conv(m.op("Relu", m.conv(x, (32, 32), 1)), (32, 16))))
    model, artifact, database = str(path / "net.onnx"), str(path / "net.so"), str(path / "records.sqlite")
    quiet = ["--threads", "1", "--quiet"]
    assert main(["tune", model, "-o", artifact, "--trials", "16", "--db", database, *quiet]) == 0
    bench = ["--against", "onnxruntime", "--rounds", "1", "--json", str(path / "bench.json")]
    assert main(["bench", model, "--artifact", artifact, *bench, *quiet]) == 0
    output = ["-o", str(path / "report.html"), "--quiet"]
    assert main(["report", "--db", database, "--bench", str(path / "bench.json"), *output]) == 0
    return path


def check_quiet(page: Page, file: Path) -> None:
    """Assert an empty console, and that nothing was asked for but the file itself."""
    assert page.problems == []
    assert [address for address in page.requests if not address.startswith("data:")] == [file.as_uri()]


def shown(page: Page, plot: str, expression: str) -> Any:
    """A property of a drawn plot, as Plotly has it."""
    return page.evaluate(
        f"(() => {{ const plot = document.querySelector('[data-plot={plot}] .plot'); {expression} }})()"
    )


def middle(page: Page, selector: str) -> tuple[float, float]:
    """Bring an element into view and return its middle."""
    x, y = page.evaluate(
        f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )
    return x, y


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_it_renders_without_a_complaint_or_a_request(page: Page, folder: Path, width: int, dark: bool) -> None:
    file = folder / "report.html"
    page.open(file, width, dark=dark)
    check_quiet(page, file)
    for plot in PLOTS:
        assert shown(page, plot, "return plot.querySelectorAll('.main-svg').length") >= 1, plot
        assert shown(page, plot, "return plot.data.length") >= 1, plot
        assert shown(page, plot, "return plot.getBoundingClientRect().width") <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.title") == "net: tuning report"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 22, 21)") is dark


def test_what_it_shows_is_what_was_measured(page: Page, folder: Path) -> None:
    page.open(folder / "report.html", 1280)
    with SqlStore.open(folder / "records.sqlite") as store:
        report = collect(store)
    assert report.complete and report.trials == 16 and report.threads == 1
    assert shown(page, "model", "return plot.data[0].y.at(-1)") == pytest.approx(report.curve[-1].latency_s * 1e3)
    assert shown(page, "phases", "return plot.data[0].x.reduce((a, b) => a + b)") == pytest.approx(report.seconds)
    bars = shown(page, "time", "return plot.data.flatMap(bar => bar.x).reduce((a, b) => a + b)")
    assert bars == pytest.approx(sum(task.time_s for task in report.tasks) * 1e3)
    assert page.evaluate("document.querySelectorAll('#time tbody tr').length") == len(report.tasks)
    assert "calumma tune net.onnx" in page.evaluate("document.querySelector('#reproduce pre').textContent")
    assert "onnxruntime" in page.evaluate("document.querySelector('#peers table').textContent")


def test_plots_respond_to_hover_legend_and_controls(page: Page, folder: Path) -> None:
    file = folder / "report.html"
    page.open(file, 1280)

    page.move(*middle(page, "[data-plot=time] .plot .bars .point path"))
    page.wait_for("document.querySelector('[data-plot=time] .hoverlayer .hovertext') !== null")
    assert "of the model's time" in page.evaluate("document.querySelector('[data-plot=time] .hoverlayer').textContent")

    assert shown(page, "tasks", "return plot.data[0].visible") is True
    page.click(*middle(page, "[data-plot=tasks] .legendtoggle"))
    page.wait_for("document.querySelector('[data-plot=tasks] .plot').data[0].visible === 'legendonly'")

    assert shown(page, "model", "return plot.layout.xaxis.title.text") == "seconds since the start"
    page.click(*middle(page, "[data-plot=model] label:has([value=trials])"))
    page.wait_for("document.querySelector('[data-plot=model] .plot').layout.xaxis.title.text === 'trials'")

    page.evaluate(
        """(() => {
            const select = document.querySelector("[data-plot=tasks] select");
            select.value = "1";
            select.dispatchEvent(new Event("change", { bubbles: true }));
        })()"""
    )
    page.wait_for("document.querySelector('[data-plot=tasks] .plot').data.some(trace => trace.name === 'measured')")
    page.move(*middle(page, "[data-plot=tasks] .plot .scatterlayer .points path"))
    page.wait_for("document.querySelector('[data-plot=tasks] .hoverlayer .hovertext') !== null")
    assert " ms" in page.evaluate("document.querySelector('[data-plot=tasks] .hoverlayer').textContent")
    check_quiet(page, file)


def test_a_hostile_session_runs_nothing(page: Page, tmp_path: Path) -> None:
    """Every text is an attack on HTML, on scripts, on the plots' own markup; all of it is shown as it is."""
    attack = HOSTILE.replace("\x00", "") + "<a href='javascript:alert(3)'>a</a>%{x}<b>bold</b>"
    ended = summary()
    ended["tasks"] = [{**values, "name": attack, "template": attack} for values in ended["tasks"]]
    ended["phases_s"] = {attack: 1.0}
    store = MemoryStore()
    session = store.start_session(attack, attack, {"strategy": attack, "source": attack})
    started_s = store.sessions()[0].started_s
    for record in RECORDS:
        reason = attack if record.result.status is not Status.OK else ""
        result = replace(record.result, reason=reason)
        candidate = replace(record.candidate, config={attack: attack})
        origin = record.strategy if record.strategy == "remeasure" else attack
        store.append(
            [
                replace(
                    record,
                    session=session,
                    time_s=started_s + record.time_s,
                    candidate=candidate,
                    result=result,
                    strategy=origin,
                    toolchain=attack,
                    hardware=replace(record.hardware, cpu_model=attack, mcpu=attack),
                )
            ]
        )
    store.finish_session(session, ended)
    file = tmp_path / "hostile.html"
    write(render(collect(store)), file)
    page.open(file, 390)
    check_quiet(page, file)
    assert page.evaluate("document.querySelector('h1').textContent") == attack
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert page.evaluate("document.querySelectorAll('.plot a[href^=javascript], img, .plot b, table b').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(
        """(() => {
            const select = document.querySelector("[data-plot=tasks] select");
            select.value = "2";
            select.dispatchEvent(new Event("change", { bubbles: true }));
        })()"""
    )
    page.wait_for("document.querySelector('[data-plot=tasks] .plot').data.some(trace => trace.name === 'failed')")
    page.move(*middle(page, "[data-plot=tasks] .plot .scatterlayer .trace:nth-child(3) .points path"))
    page.wait_for("document.querySelector('[data-plot=tasks] .hoverlayer .hovertext') !== null")
    assert "<img src=x" in page.evaluate("document.querySelector('[data-plot=tasks] .hoverlayer').textContent")
    assert page.evaluate("document.querySelectorAll('a, img').length") == 0
    check_quiet(page, file)


def test_an_injected_script_would_not_run(page: Page, folder: Path) -> None:
    """Should escaping ever fail, the page's policy stands behind it."""
    whole = (folder / "report.html").read_text()
    broken = whole.replace("</h1>", "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'></h1>", 1)
    file = folder / "broken.html"
    file.write_text(broken)
    page.open(file, 1280)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in problem for problem in page.problems)
