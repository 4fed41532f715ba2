"""The command line as a user meets it: real processes, exit statuses, one-line errors, light imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.onnx_models import Model

COMMANDS = ("compile", "tune", "run", "bench", "tasks", "records", "report")


def calumma(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "calumma", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def fails(expected: str, *arguments: str) -> None:
    """Assert that a call ends with status 2, one line on stderr that holds `expected`, and nothing on stdout."""
    done = calumma(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("calumma: error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not an ONNX model")
    return str(path)


def test_help_lists_every_command() -> None:
    done = calumma("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str) -> None:
    done = calumma(command, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for option in ("--json", "--quiet", "--debug"):
        assert option in done.stdout


def test_imports_load_nothing_heavy() -> None:
    heavy = "{'tvm', 'tvm_ffi', 'torch', 'numpy', 'onnx', 'rich', 'sqlalchemy'}"
    code = f"import sys, calumma.cli; loaded = {heavy} & sys.modules.keys(); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_version_names_everything_that_decides_the_code() -> None:
    done = calumma("--version")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["calumma", "TVM", "tvm-ffi", "CPU", "threads"]
    assert "0.27.0.post1" in done.stdout


def test_wrong_usage(model: str, tmp_path: Path) -> None:
    fails("No such command 'tun'", "tun", model)
    fails("Missing argument 'MODEL'", "tune")
    fails("Did you mean one of: '--budget'", "tune", model, "--bugdet", "60s")
    fails("length of time", "tune", model, "--budget", "soon")
    fails("length of time", "tune", model, "--budget", "0s")
    fails("NAME=1,3,224,224", "compile", model, "--shape", "1,3,224,224")
    fails("--threads", "tasks", model, "--threads", "0")
    fails("see `calumma tune --help`", "tune", model, "--trials", "many")


def test_files_are_checked_before_the_work(model: str, tmp_path: Path) -> None:
    fails("does not exist", "tune", str(tmp_path / "absent.onnx"))
    fails("is a directory", "tasks", str(tmp_path))
    fails("create it first", "compile", model, "-o", str(tmp_path / "absent" / "out.so"))
    fails("create it first", "tasks", model, "--json", str(tmp_path / "absent" / "out.json"))


def test_database_that_is_none(tmp_path: Path, model: str) -> None:
    fails("model.onnx", "records", "--db", model)


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m calumma --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON stream that may still be written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_interrupted_tuning_keeps_the_best_so_far(tmp_path: Path) -> None:
    network = Model()
    x = network.op("Relu", network.conv(network.input(1, 3, 12, 12), (3, 24)))
    model, out, stream = tmp_path / "model.onnx", tmp_path / "out.so", tmp_path / "events.json"
    model.write_bytes(network.bytes(network.conv(x, (24, 40))))
    command = [sys.executable, "-m", "calumma", "tune", model, "-o", out, "--trials", "100000", "--threads", "1"]
    process = subprocess.Popen(
        [*map(str, command), "--json", str(stream), "--db", str(tmp_path / "records.sqlite")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 100
        while not any(line["event"] == "trials_done" for line in _lines(stream)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to the workers as well
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, stderr
    assert "interrupted: this is the best so far" in stdout
    assert "error" not in stderr and "Traceback" not in stderr
    *events, result = _lines(stream)
    assert [line["phase"] for line in events if line["event"] == "phase_started"][:2] == ["load", "import"]
    assert [line["interrupted"] for line in events if line["event"] == "session_finished"] == [True]
    assert (result["event"], result["interrupted"], result["artifact"]) == ("result", True, str(out))
    assert calumma("run", str(out), "--repeat", "1").returncode == 0
    assert not psutil.wait_procs(children, timeout=20)[1]
