"""What `tune` and `compile` show while they run."""

from __future__ import annotations

import io
import re
import sys
import time
from dataclasses import replace

import pytest

from calumma import tuner
from calumma.cli import progress
from calumma.cli.output import Output
from calumma.tuner import SessionProgress, TaskProgress


def table(**changes: float | None) -> SessionProgress:
    tasks = [
        TaskProgress(
            f"hash{i}", f"fused_conv2d_add_relu_of_some_length{i}", 2, "tuning", 1e-3, 1e-3 * (i + 1), 0.5e-3, 10, i % 2
        )
        for i in range(130)
    ]
    tasks.append(TaskProgress("hash", "fused_waiting", 1, "waiting", None, None, None, 0, 0))
    values = {"elapsed_s": 15.0, "seconds_left": 45.0, "trials_left": None, "eta_s": 44.0, "candidates_per_s": 7.5}
    return SessionProgress(tuple(tasks), trials=300, **(values | changes))  # type: ignore[arg-type]


def started() -> tuner.SessionStarted:
    return tuner.SessionStarted("20260131-120000", recalled=12, unreadable=0, progress=table())


def done(number: int) -> tuner.TrialsDone:
    return tuner.TrialsDone(number, (), table())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80, lines: int = 24) -> Terminal:
    """A terminal on stderr. (Not a fixture: pytest puts its own stderr between a fixture and its test.)"""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in (("TERM", "xterm"), ("COLUMNS", columns), ("LINES", lines)):
        monkeypatch.setenv(name, str(value))
    return stream


def frames(text: str) -> list[list[str]]:
    """What was drawn, frame by frame: a frame begins where the last one's lines are erased."""
    parts = re.split(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*|(?:\x1b\[1A\x1b\[2K)+", text)
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part).replace("\r", "").splitlines() for part in parts]


def test_quiet_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_progress(Output(quiet=True)) as listener:
        listener(started())
        listener(done(1))
    assert capsys.readouterr() == ("", "")


def test_lines_come_at_intervals_and_at_every_phase(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.show_progress(Output()) as listener:
        listener(tuner.PhaseStarted("import"))
        listener(tuner.PhaseStarted("tasks"))
        listener(started())
        for number in range(12):
            now += 1.0
            listener(done(number))
            listener(tuner.NewBest("hash0", "fused_conv0", 1e-3, None, {}))
        listener(tuner.FinalCheckStarted(3, table()))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "importing the model"
    assert lines[1].endswith("; session 20260131-120000: 131 tasks, 12 configurations known from before")
    assert lines[2] == "15.0 s, 300 trials, 7.5/s, 45 s left, tasks 260.00 ms (defaults 17030.00), 65 failed"
    assert lines[3] == lines[2]
    assert lines[4].endswith("checking the winners of 3 tasks against the default")
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "45 s left"),
        ({"seconds_left": 600.0}, "10 min left"),
        ({"seconds_left": 7200.0}, "2.0 h left"),
        ({"seconds_left": None, "trials_left": 20}, "20 trials left (about 44 s)"),
        ({"seconds_left": None, "trials_left": 20, "eta_s": None}, "20 trials left"),
        ({"trials_left": 20}, "45 s left, 20 trials left (about 44 s)"),
    ],
)
def test_budget_left(changes: dict[str, float | None], expected: str) -> None:
    assert f"7.5/s, {expected}, tasks" in ", ".join(progress.summary(table(**changes)))


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = open_terminal(monkeypatch, width, lines=20)
    monkeypatch.setattr(time, "monotonic", iter(range(0, 100, 10)).__next__)
    with progress.show_progress(Output()) as listener:
        listener(tuner.PhaseStarted("import"))
        listener(started())
        listener(done(1))
        listener(done(2))
    drawn = [frame for frame in frames(terminal.getvalue()) if len(frame) > 2]
    assert len(drawn) >= 3
    for frame in drawn:
        # One line of the screen is the cursor's.
        assert len(frame) <= 19
        assert max(map(len, frame)) <= width
        assert len(frame) == len(drawn[0])
    header, *rows = drawn[-1]
    assert header.split()[0] == "task"
    assert "best ms" in header and "roofline" in header
    assert ("trials" in header, "status" in header) == (width >= 60, width >= 60)
    assert ("calls" in header, "default" in header) == (width >= 80, width >= 120)
    # The heaviest by their defaults, and one line for all others.
    assert rows[0].startswith("fused_conv2d"[: min(12, width - 32)])
    [rest] = [row for row in rows if row.startswith("and ")]
    assert rest.startswith("and 118 lighter tasks: ")


def test_rows_keep_their_places_while_latencies_fall() -> None:
    heavy, light = table().tasks[100], table().tasks[50]
    fallen = replace(heavy, latency_s=1e-6)
    assert progress._initial_s(fallen) > progress._initial_s(light)


def test_the_live_table_leaves_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress.show_progress(Output()) as listener:
        listener(started())
    last = frames(terminal.getvalue())[-1]
    assert last == ["15.0 s, 300 trials, 7.5/s, 45 s left, tasks 260.00 ms (defaults 17030.00), 65 failed"]


def test_json_on_a_terminal_is_not_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", terminal)
    with progress.show_progress(Output(json="-")) as listener:
        listener(tuner.PhaseStarted("build"))
    assert terminal.getvalue() == "generating code\n"


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress.show_progress(Output()) as listener:
        listener(tuner.PhaseStarted("build"))
    assert terminal.getvalue() == "generating code\n"


def test_results_stay_on_stdout_while_the_table_is_live(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = open_terminal(monkeypatch)
    out = Output(json="-")
    with progress.show_progress(out) as listener:
        listener(started())
        out.event({"event": "phase_started"})
    assert '"phase_started"' in capsys.readouterr().out
    assert "phase_started" not in terminal.getvalue()
