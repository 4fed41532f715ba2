"""What a command may write over: files of its own kind, and never what it reads."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from calumma import api
from calumma.artifact import file_format
from calumma.cli import main
from calumma.core.errors import InputError
from calumma.core.outputs import FileKind, begins_with, check_output
from calumma.pipeline.destination import check_destination

TEXT = FileKind("a text", begins_with(b"text"))


def onnx_file(path: Path, external: str | None = None, nested: bool = False) -> Path:
    """A model of one weight, which lies in a file of its own where `external` names one."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    if external is not None:
        onnx.external_data_helper.set_external_data(weight, external)
        (path.parent / external).write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
    x, y, condition = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("x", 1, [4, 4]), ("y", 1, [4, 4]), ("c", TensorProto.BOOL, []))
    )
    nodes, weights = [helper.make_node("Add", ["x", "w"], ["y"])], [weight]
    if nested:
        branch = helper.make_graph(nodes, "branch", [], [y], weights)
        nodes, weights = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], []
    graph = helper.make_graph(nodes, "g", [x, condition] if nested else [x], [y], weights)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def artifact_file(path: Path) -> Path:
    library = path.with_suffix(".elf")
    library.write_bytes(b"\x7fELF" + bytes(60))
    file_format.write(path, library, [], {})
    library.unlink()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_file(tmp_path / "model.onnx")


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.open(path.parent, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's path is short
        os.close(folder)


SPECIAL = [
    (lambda path: path.mkdir(), "it is a folder"),
    (lambda path: path.symlink_to(path.parent), "it is a folder"),
    (device, "it is a device"),
    (os.mkfifo, "it is a named pipe"),
    (bound_socket, "it is a socket"),
]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("make", "reason"), SPECIAL)
def test_only_regular_files_are_replaced(
    model: Path, tmp_path: Path, make: Callable[[Path], object], reason: str, force: bool
) -> None:
    path = tmp_path / "out.so"
    make(path)
    before = path.lstat()
    with pytest.raises(InputError, match=reason):
        check_destination(path, model, force)
    assert path.lstat() == before


def test_a_device_is_refused_by_its_own_name(model: Path) -> None:
    with pytest.raises(InputError, match="it is a device"):
        check_destination("/dev/null", model, True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["itself", "symbolic link", "hard link", "link to the folder", "by a linked model"])
def test_the_model_is_never_replaced(model: Path, tmp_path: Path, way: str, force: bool) -> None:
    out, source = tmp_path / "out.so", model
    if way == "itself":
        out = tmp_path / "." / "model.onnx"
    elif way == "symbolic link":
        out.symlink_to(model)
    elif way == "hard link":
        out.hardlink_to(model)
    elif way == "link to the folder":
        (tmp_path / "folder").symlink_to(tmp_path)
        out = tmp_path / "folder" / "model.onnx"
    else:
        source = tmp_path / "linked.onnx"
        source.symlink_to(model)
        out = model
    with pytest.raises(InputError, match=r"it is the input .*\.onnx; name another file"):
        check_destination(out, source, force)
    with pytest.raises(InputError, match="it is the input"):
        check_destination(str(out), str(source), force)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_the_models_weights_are_never_replaced(tmp_path: Path, nested: bool, linked: bool) -> None:
    model, weights = onnx_file(tmp_path / "model.onnx", "weights.bin", nested), tmp_path / "weights.bin"
    out = weights
    if linked:
        out = tmp_path / "out.so"
        out.hardlink_to(weights)
    with pytest.raises(InputError, match="exists and is not an artifact"):
        check_destination(out, model)
    with pytest.raises(InputError, match=r"it is the input .*weights\.bin"):
        check_destination(out, model, True)


def test_another_file_needs_force(model: Path, tmp_path: Path) -> None:
    other = onnx_file(tmp_path / "other.onnx")
    library, empty = tmp_path / "library.so", tmp_path / "empty.so"
    library.write_bytes(b"\x7fELF" + bytes(400))
    empty.touch()
    (tmp_path / "dangling.so").symlink_to(tmp_path / "elsewhere.so")
    (tmp_path / "ends.so").write_bytes(bytes(400) + file_format.MAGIC)
    for path in (other, library, empty, tmp_path / "dangling.so", tmp_path / "ends.so"):
        with pytest.raises(InputError, match=r"is not an artifact of calumma; .* --force \(overwrite=True in Python\)"):
            check_destination(path, model)
        assert check_destination(path, model, True) == path
        with pytest.raises(InputError, match="is not an artifact"):
            check_destination(path, b"a model in memory")


def test_artifacts_and_free_places_are_taken(model: Path, tmp_path: Path) -> None:
    ours, link = artifact_file(tmp_path / "ours.so"), tmp_path / "link.so"
    link.symlink_to(ours)
    for path in (ours, link, tmp_path / "new.so"):
        assert check_destination(path, model) == path
    assert check_destination(None, model) is None
    with pytest.raises(InputError, match="there is no folder"):
        check_destination(tmp_path / "missing" / "out.so", model)


@pytest.mark.parametrize("call", [api.compile, api.tune])
def test_the_api_asks_before_it_works(model: Path, tmp_path: Path, call: Callable[..., object]) -> None:
    content = model.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="it is the input"):
            call(model, output=model, overwrite=overwrite, database=tmp_path / "records.sqlite")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not an artifact"):
        call(model, output=tmp_path / "notes.txt", database=tmp_path / "records.sqlite")
    assert (model.read_bytes(), (tmp_path / "notes.txt").read_text()) == (content, "mine")
    assert not (tmp_path / "records.sqlite").exists()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that ends with status 2 and changes no file."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("calumma: error: ")]
    assert errors == lines[-1:]
    return errors[0]


@pytest.mark.parametrize("command", ["compile", "tune"])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_compile_and_tune_refuse(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, force: tuple[str, ...]
) -> None:
    def line(output: Path | str) -> str:
        return refused(capsys, command, model, "-o", output, *force, "--db", tmp_path / "records.sqlite")

    content = model.read_bytes()
    (tmp_path / "link.so").symlink_to(model)
    (tmp_path / "hard.so").hardlink_to(model)
    for output in (model, tmp_path / "link.so", tmp_path / "hard.so"):
        assert "it is the input" in line(output)
    os.mkfifo(tmp_path / "pipe.so")
    assert "it is a named pipe" in line(tmp_path / "pipe.so")
    assert "it is a device" in line("/dev/null")
    assert "is a directory" in line(tmp_path)
    if not force:
        (tmp_path / "notes.txt").write_text("mine")
        assert "is not an artifact of calumma; name another file, or" in line(tmp_path / "notes.txt")
        assert "--force" in line(tmp_path / "notes.txt")
    assert model.read_bytes() == content
    assert not (tmp_path / "records.sqlite").exists()


def test_the_name_after_the_model_is_checked_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.so").write_text("mine")
    assert "is not an artifact" in refused(capsys, "compile", model)
    source = onnx_file(tmp_path / "source.so")
    assert "it is the input" in refused(capsys, "compile", source, "--force")


@pytest.mark.parametrize(
    "arguments",
    [
        ("tasks", "{model}", "--json", "{out}"),
        ("compile", "{model}", "--json", "{out}"),
        ("records", "--db", "{db}", "--json", "{out}"),
        ("records", "--db", "{db}", "--export", "{out}"),
        ("report", "--db", "{db}", "-o", "{out}"),
        ("learn", "--db", "{db}", "-o", "{prior}"),
        ("learn", "--db", "{db}", "--save-data", "{out}"),
    ],
)
def test_no_command_replaces_a_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    prior = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, prior)
    archive = tmp_path / "weights.npz"
    np.savez(archive, w=np.ones(3))
    for out in (model, artifact_file(tmp_path / "ours.so"), archive):
        names = {"model": model, "out": out, "prior": prior, "db": tmp_path / "records.sqlite"}
        kept = {path: path.read_bytes() for path in (model, out, prior)}
        line = refused(capsys, *(argument.format(**names) for argument in arguments))
        assert "exists and is not" in line
        assert {path: path.read_bytes() for path in kept} == kept


def test_a_page_or_an_export_does_not_take_a_devices_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = ("--db", tmp_path / "records.sqlite")
    (tmp_path / "null").symlink_to("/dev/null")
    for arguments in (("report", "-o"), ("records", "--export"), ("learn", "--save-data")):
        assert "it is a device" in refused(capsys, *arguments, tmp_path / "null", *database)
    assert (tmp_path / "null").is_char_device()


def test_a_kind_is_known_by_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, allowed in ((b"", True), (b"\n Text", True), (b"tex", False), (b"other", False), (b"  ", False)):
        path.write_bytes(content)
        if allowed:
            assert check_output(path, TEXT) == path
        else:
            with pytest.raises(InputError, match="exists and is not a text; name another file"):
                check_output(path, TEXT)
        assert check_output(path, TEXT, force=True) == path


def test_an_input_is_kept_even_where_its_kind_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    with pytest.raises(InputError, match="it is the input"):
        check_output(path, TEXT, inputs=[tmp_path / "absent", path])
