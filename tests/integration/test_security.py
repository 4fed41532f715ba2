"""Files from elsewhere are data: nothing in them is run, and nothing in them leads out of their folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from calumma.core.errors import ModelError
from calumma.frontend.importer import import_model
from tests.integration.command_line import ROOT, assert_refused, calumma

# Modules that run what they read, and calls that run text.
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {("os", "system"), ("os", "popen"), ("tempfile", "mktemp"), ("torch", "load"), ("yaml", "load")}


def _violations(path: Path) -> list[str]:
    found = []
    for item in ast.walk(ast.parse(path.read_text())):
        where = f"{path}:{getattr(item, 'lineno', 0)}"
        if isinstance(item, ast.Import | ast.ImportFrom):
            names = [item.module or ""] if isinstance(item, ast.ImportFrom) else [alias.name for alias in item.names]
            found += [f"{where}: imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(item, ast.Call):
            continue
        keywords = {k.arg: k.value for k in item.keywords}
        if isinstance(item.func, ast.Name) and item.func.id in FORBIDDEN_CALLS:
            found.append(f"{where}: calls {item.func.id}")
        if isinstance(item.func, ast.Attribute) and isinstance(item.func.value, ast.Name):
            call = item.func.value.id, item.func.attr
            allowed = keywords.get("allow_pickle")
            if call in FORBIDDEN_METHODS:
                found.append(f"{where}: calls {'.'.join(call)}")
            if call == ("np", "load") and not (isinstance(allowed, ast.Constant) and allowed.value is False):
                found.append(f"{where}: np.load without allow_pickle=False")
        shell = keywords.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            found.append(f"{where}: a shell")
    return found


def test_nothing_read_is_run() -> None:
    sources = sorted((ROOT / "src").rglob("*.py"))
    assert len(sources) > 50
    assert not [violation for source in sources for violation in _violations(source)]


def test_the_check_finds_what_it_is_for(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    lines = [
        "import pickle",
        "from dill import loads",
        "import numpy as np, subprocess, os, tempfile",
        "eval(text)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "tempfile.mktemp()",
    ]
    source.write_text("\n".join(lines))
    assert len(_violations(source)) == 8


# -- external data ------------------------------------------------------------------------------------


def _model(folder: Path, location: str, **entries: str) -> Path:
    """A dense layer whose weight lies at `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(64, 8), data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 8))],
        [tensor],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model's folder; a secret lies beside it, and links and special files within."""
    inside = tmp_path / "model"
    (inside / "deeper").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(512, np.float32).tobytes())
    for name in ("weights.bin", "deeper/weights.bin"):
        (inside / name).write_bytes(np.ones(512, np.float32).tobytes())
    (inside / "link.bin").symlink_to(secret)
    (inside / "outside").symlink_to(tmp_path)
    (inside / "circle").symlink_to("circle")
    (inside / "zero").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe")
    return inside


def _refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        import_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin", "deeper/weights.bin"])
def test_external_data_in_the_models_folder(folder: Path, location: str) -> None:
    assert len(import_model(_model(folder, location)).graph.nodes()) == 3


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "deeper/../../secret.bin",
        "deeper/../weights.bin",
        "/etc/hostname",
        "link.bin",
        "outside/secret.bin",
        "zero",
        "",
    ],
)
def test_external_data_cannot_leave_the_models_folder(folder: Path, location: str) -> None:
    assert "outside the model's folder" in _refused(_model(folder, location))


def test_the_absolute_path_of_the_right_file_is_refused_too(folder: Path) -> None:
    assert "outside the model's folder" in _refused(_model(folder, str(folder / "weights.bin")))


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("pipe", "not a file"),
        ("deeper", "not a file"),
        ("circle", "cannot be read"),
        ("a\0b", "cannot be read"),
        ("absent.bin", "does not exist"),
        ("n" * 5000, "cannot be read"),
    ],
)
def test_external_data_that_is_no_file(folder: Path, location: str, words: str) -> None:
    assert words in _refused(_model(folder, location))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"length": "-1"}, "holds 0 of its 2,048 bytes"),
        ({"length": str(1 << 62)}, "of its 2,048 bytes"),
        ({"offset": "4"}, "holds 2,044 of its 2,048 bytes"),
        ({"offset": str(1 << 62)}, "holds 0 of its 2,048 bytes"),
        ({"offset": "-4"}, "of its 2,048 bytes"),
        ({"offset": "first"}, "cannot be read"),
    ],
)
def test_places_within_external_data_are_checked(folder: Path, entries: dict[str, str], words: str) -> None:
    assert words in _refused(_model(folder, "weights.bin", **entries))


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    """Model and data are links into one folder of contents: the data is beside what the model leads to."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    _model(blobs, "weights.bin").rename(blobs / "a1")
    (blobs / "b2").write_bytes(np.ones(512, np.float32).tobytes())
    (snapshot / "model.onnx").symlink_to("../../blobs/a1")
    (snapshot / "weights.bin").symlink_to("../../blobs/b2")
    assert len(import_model(snapshot / "model.onnx").graph.nodes()) == 3


def test_the_command_line_refuses_data_outside(folder: Path, tmp_path: Path) -> None:
    done = calumma("compile", _model(folder, "link.bin"), "-o", tmp_path / "out.so")
    assert_refused(done, "outside the model's folder")
    assert not (tmp_path / "out.so").exists()


def test_what_was_refused_could_have_been_read(folder: Path) -> None:
    """The tests above would prove nothing if the file outside were not there, or too small."""
    assert np.fromfile(folder / "link.bin", np.float32).shape == (512,)


# -- temporary files ----------------------------------------------------------------------------------

AUDITED = """
import os, stat, sys, tempfile
os.umask(0)
scratch = tempfile.gettempdir()  # Python tries the folder out with a file, once
assert scratch == os.environ["TMPDIR"]
private, written = set(), set()

def audit(event, arguments):
    if event == "tempfile.mkdtemp":
        private.add(arguments[0])
    elif event == "tempfile.mkstemp":
        private.add(arguments[0])
    elif event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(scratch):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.add(arguments[0])
            top = os.path.join(scratch, os.path.relpath(arguments[0], scratch).split(os.sep)[0])
            if os.path.isdir(top) and stat.S_IMODE(os.stat(top).st_mode) != 0o700:
                print("OPEN TO OTHERS", top)

sys.addaudithook(audit)
from calumma import api
from calumma.core.values import Budget
from pathlib import Path
model, folder = Path(sys.argv[1]), Path(sys.argv[2])
api.tune(model, output=folder / "out.so", database=folder / "db.sqlite", budget=Budget(trials=2), threads=1)
api.load(folder / "out.so")
for path in written:
    top = os.path.join(scratch, os.path.relpath(path, scratch).split(os.sep)[0])
    if top not in private:
        print("PREDICTABLE NAME", path)
print(len(written), "files")
"""


def test_temporary_files_are_private(tmp_path: Path) -> None:
    """Of a whole tuning run under the most generous umask."""
    from tests.integration.onnx_mutations import source

    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    (tmp_path / "model.onnx").write_bytes(source("shapes"))
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(tmp_path / "model.onnx"), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    assert int(line.split()[0]) >= 1
    assert not list(scratch.glob("calumma-*")), "nothing is left behind"
