"""Extensions: how they are found, what of them workers are told, and what is said of one that is broken."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from calumma.core import extensions
from calumma.core.contraction import Contraction, contraction_named, contraction_names, register_contraction
from calumma.core.errors import InputError
from calumma.core.extensions import temporary_registrations


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_one_that_the_environment_names_is_imported_when_something_is_looked_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from calumma.core.contraction import Contraction, register_contraction\n"
    (folder / "halves.py").write_text(source + 'register_contraction(Contraction("half", "float16"))\n')
    monkeypatch.setenv(extensions.VARIABLE, " halves ,")
    with temporary_registrations():
        assert contraction_named("half").read_bytes == 2
        assert extensions.extensions() == ("halves",)
        assert any(line.startswith("halves ") for line in extensions.sources())
    assert "half" not in contraction_names()


def test_a_broken_one_is_the_same_line_every_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from calumma.core.contraction import Contraction, register_contraction\n"
    (folder / "broken.py").write_text(
        source + 'register_contraction(Contraction("half", "float16"))\nraise RuntimeError("spare part missing")\n'
    )
    monkeypatch.setenv(extensions.VARIABLE, "broken")
    with temporary_registrations():
        for _ in range(2):
            with pytest.raises(InputError, match=r"extension broken cannot be imported \(RuntimeError: spare part"):
                extensions.load_installed()


@pytest.mark.parametrize(
    "contraction, complaint",
    [
        (Contraction("bf16", "float16"), "'bf16' is registered already"),
        (Contraction("brain", "bfloat16"), "'bf16' reads bfloat16 already"),
        (Contraction("int8", "int8"), "reads int8, 1 packed, and adds up float32: kernels read floats of 16 bits"),
        (Contraction("double", "float16", accumulate="float64"), "adds up float64"),
        (Contraction("none", "float16", pack=0), "0 packed"),
        (Contraction("word", "no such type"), "reads no such type"),
    ],
)
def test_a_contraction_that_kernels_cannot_compute_is_refused(contraction: Contraction, complaint: str) -> None:
    with temporary_registrations(), pytest.raises(InputError, match=complaint):
        register_contraction(contraction)


def test_the_main_script_registers_nothing_that_workers_need(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(
        "from calumma.core.contraction import Contraction, register_contraction\n"
        'register_contraction(Contraction("half", "float16"))\n'
    )
    with temporary_registrations(), pytest.raises(InputError, match="registered by the main script"):
        runpy.run_path(str(script), run_name="__main__")
