"""What a session shows while it runs."""

from __future__ import annotations

import io
import sys

import pytest

from calumma import tuner
from calumma.cli import progress
from calumma.tuner import SessionProgress, TaskProgress


def table(**changes: float | None) -> SessionProgress:
    tasks = [
        TaskProgress(f"hash{i}", f"fused_conv{i}", 2, "tuning", 1e-3 * (i + 1), 4e-3, 0.5e-3, 10, i % 2)
        for i in range(30)
    ]
    tasks.append(TaskProgress("hash", "fused_waiting", 1, "waiting", None, None, None, 0, 0))
    values = {"elapsed_s": 15.0, "seconds_left": 45.0, "eta_s": 44.0, "candidates_per_s": 7.5, **changes}
    return SessionProgress(tuple(tasks), trials=300, trials_left=None, **values)  # type: ignore[arg-type]


def started() -> tuner.SessionStarted:
    return tuner.SessionStarted("20260131-120000", recalled=12, unreadable=0, progress=table())


def done(number: int) -> tuner.TrialsDone:
    return tuner.TrialsDone(number, (), table())


def test_quiet_listens_to_nothing() -> None:
    with progress.tuning_progress(quiet=True) as listener:
        assert listener is None


def test_lines_come_at_intervals_and_at_every_phase(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.tuning_progress(quiet=False) as listener:
        assert listener is not None
        listener(started())
        for number in range(12):
            now += 1.0
            listener(done(number))
            listener(tuner.NewBest("hash0", "fused_conv0", 1e-3, None, {}))
        listener(tuner.FinalCheckStarted(3, table()))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("session 20260131-120000: 31 tasks, 12 configurations known from before")
    assert lines[1] == (" 15.0 s, 300 trials, 7.5/s, 15 failed, tasks 930.00 ms (defaults 240.00), 45 s left")
    assert lines[3].endswith("checking the winners of 3 tasks against their defaults")


def test_a_terminal_gets_the_heaviest_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setenv("TERM", "xterm")
    with progress.tuning_progress(quiet=False) as listener:
        assert listener is not None
        listener(started())
        listener(done(1))
    text = terminal.getvalue()
    assert "fused_conv29" in text
    assert "fused_conv2 " not in text
    assert "fused_waiting" not in text
    assert "and 20 lighter tasks" in text
    assert "session 20260131-120000" in text
