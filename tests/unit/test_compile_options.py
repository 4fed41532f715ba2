"""What a model is compiled for is checked where it is said, before any work."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.pipeline import CompileOptions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, r"threads=0: this machine has \d+ logical cores; give 1 to \d+"),
        ({"threads": -2}, "threads=-2: this machine has"),
        ({"threads": 1 << 20}, "threads=1048576: this machine has"),
        ({"threads": "2"}, "threads='2': this machine has"),
        ({"threads": True}, "threads=True: this machine has"),
        ({"tolerance": -1e-6}, "tolerance=-1e-06: give a relative error of 0 or more"),
        ({"tolerance": float("nan")}, "tolerance=nan: give a relative error"),
        ({"tolerance": float("inf")}, "tolerance=inf: give a relative error"),
        ({"tolerance": "low"}, "tolerance='low': give a relative error"),
        ({"tolerance": True}, "tolerance=True: give a relative error"),
        ({"precision": "int8"}, "precision='int8': there is no such precision; one of fp32, bf16"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompileOptions(**given)


def test_options_are_one_frozen_value() -> None:
    options = CompileOptions(threads=1, tolerance=0, precision="bf16", shapes={"x": (1, 3)})
    assert options == dataclasses.replace(options)
    assert options != dataclasses.replace(options, threads=os.cpu_count() or 1, tolerance=1e-3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.threads = 2  # type: ignore[misc]
    with pytest.raises(InputError, match="tolerance"):
        dataclasses.replace(options, tolerance=-1)


def test_a_cpu_that_llvm_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="mcpu='abacus': LLVM does not know this CPU"):
        CompileOptions(mcpu="abacus").target()


def test_a_precision_that_the_cpu_lacks_is_refused() -> None:
    options = CompileOptions(mcpu="x86-64-v3", precision="bf16")
    with pytest.raises(InputError, match="precision='bf16': x86-64-v3 has no bfloat16 dot product"):
        options.target()
    assert CompileOptions(mcpu="x86-64-v3").target().mcpu == "x86-64-v3"


def test_code_that_cannot_run_here_cannot_be_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    options = CompileOptions(mcpu="x86-64-v3")
    assert CompileOptions().measurable_target() == CompileOptions().target()
    monkeypatch.setattr(tvm_compat, "host_mcpu", lambda: "x86-64-v2")
    with pytest.raises(InputError, match=r"mcpu='x86-64-v3': this machine lacks .*avx2.*; use compile"):
        options.measurable_target()
