"""What the tests run on this machine: never an instruction that the CPU lacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from calumma import tvm_compat
from calumma.core import hardware as host
from calumma.core.errors import InputError
from calumma.testing import require
from calumma.tvm_compat import codegen
from tests import isas, prim_funcs


@pytest.fixture
def haswell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LLVM takes the CPU for a Haswell; /proc/cpuinfo shows all flags of another machine, as under an emulator."""
    flags = " ".join(tvm_compat.target_for("sapphirerapids").flags)
    monkeypatch.setattr(tvm_compat, "host_mcpu", lambda: "haswell")
    monkeypatch.setattr(host, "cpu_info", lambda: {"flags": flags})
    isas.missing.cache_clear()
    yield
    isas.missing.cache_clear()


@pytest.mark.usefixtures("haswell")
def test_code_for_another_cpu_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen, "build", lambda *arguments: pytest.fail("code was built"))
    require(isas.target("x86-64-v3"))
    with pytest.raises(InputError, match=r"code for x86-64-v4 cannot run here: this CPU lacks avx512bw, .*avx512vl"):
        prim_funcs.run(None, [], (1,), isas.target("x86-64-v4"))


def test_this_cpu_and_what_is_narrower_runs() -> None:
    require(isas.target())
    assert [isas.lanes(isa) for isa in isas.NARROWER] == [n for n in isas.LEVELS.values() if n < isas.lanes()]
    assert set(isas.NARROWER) <= set(isas.RUNNABLE)
