"""Parameter types and the layout of output."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import numpy as np
import pytest

from calumma.cli.options import Duration, OutputPath, Shape
from calumma.cli.output import Output, plain, table_lines
from calumma.core.errors import InputError
from calumma.core.values import Budget, Status


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("60s", 60), ("2m", 120), ("1.5m", 90), ("1h", 3600), ("0.5s", 0.5)]
)
def test_duration(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "0", "0s", "-5s", "1d", "60 parsecs", "inf", "nan", "1e3"])
def test_duration_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="length of time"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in=1,3,224,224", ("in", (1, 3, 224, 224))),
        ("a=b=7", ("a=b", (7,))),
        ("input:0=2,2", ("input:0", (2, 2))),
    ],
)
def test_shape(text: str, expected: object) -> None:
    assert Shape().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "in", "=1,2", "in=", "in=1,", "in=1,x", "in=1x3", "in=1,0", "in=-1"])
def test_shape_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="NAME="):
        Shape().convert(text, None, None)


def test_output_path_wants_an_existing_folder(tmp_path: Path) -> None:
    convert = OutputPath().convert
    assert convert(str(tmp_path / "a.so"), None, None) == tmp_path / "a.so"
    with pytest.raises(click.BadParameter, match="is a directory"):
        convert(str(tmp_path), None, None)
    with pytest.raises(click.BadParameter, match="does not exist"):
        convert(str(tmp_path / "missing" / "a.so"), None, None)


def test_table_aligns_numbers_right_and_shows_what_is_missing() -> None:
    lines = table_lines(["name", "ms"], [("conv", 1.23456), ("dense", math.inf), ("lrn", 12345.6)])
    assert lines == ["name       ms", "─────  ──────", "conv    1.235", "dense     n/a", "lrn    12,346"]


def test_plain_holds_only_json() -> None:
    document = {
        "a": np.float32(1.5),
        "b": np.arange(2),
        "c": math.inf,
        "d": Budget(seconds=1.0),
        "e": Path("x"),
        Status.OK: (1,),
    }
    assert json.loads(json.dumps(plain(document), allow_nan=False)) == {
        "a": 1.5,
        "b": [0, 1],
        "c": None,
        "d": {"seconds": 1.0, "trials": None},
        "e": "x",
        "ok": [1],
    }
    with pytest.raises(TypeError, match="no form in JSON"):
        plain(object())


def test_json_on_stdout_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json="-")
    output.line("text for people")
    output.table(["a"], [(1,)])
    output.document({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"event": "result", "a": 1}


def test_quiet_still_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True, json=str(tmp_path / "out.json"))
    output.line("text")
    output.status("status")
    output.document({"a": 1})
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert json.loads((tmp_path / "out.json").read_text()) == {"event": "result", "a": 1}


def test_json_is_one_object_per_line_and_replaces_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("of an earlier run\n" * 100)
    output = Output(json=str(path))
    output.event({"event": "phase_started", "phase": "import"})
    assert path.read_text().count("\n") == 1
    output.event({"event": "phase_started", "phase": "build"})
    output.document({"a": {"b": "two\nlines"}})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["phase_started", "phase_started", "result"]
    assert lines[0]["time_s"] <= lines[1]["time_s"]
    assert lines[2] == {"event": "result", "a": {"b": "two\nlines"}}


def test_json_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--json .*/full: cannot be written \(No space left on device\)"):
        (tmp_path / "full").symlink_to("/dev/full")
        Output(json=str(tmp_path / "full")).document({"a": 1})


def test_first_column_gives_way_on_a_narrow_terminal() -> None:
    rows = [("fused_conv2d17_add9_relu9", 1.25), ("pool2d", 10.0)]
    assert table_lines(["task", "latency ms"], rows, 60) == table_lines(["task", "latency ms"], rows)
    lines = table_lines(["task", "latency ms"], rows, 30)
    assert max(map(len, lines)) == 30
    assert lines[2].startswith("fused_conv2d17_ad…  ")
    assert table_lines(["task", "latency ms"], rows, 5)[3].startswith("pool2d        ")
