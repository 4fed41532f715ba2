"""The tests that `make qemu` names by their ids are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _qemu_tests() -> list[str]:
    makefile = (ROOT / "Makefile").read_text()
    (spaces,) = re.findall(r"^SPACES := (\S+)$", makefile, flags=re.MULTILINE)
    (listed,) = re.findall(r"^QEMU_TESTS := ((?:.*\\\n)*.*)$", makefile, flags=re.MULTILINE)
    return [name.replace("$(SPACES)", spaces) for name in re.findall(r'"([^"]+)"', listed)]


@pytest.mark.processes
def test_the_tests_that_run_on_an_emulated_cpu_exist() -> None:
    named = _qemu_tests()
    assert len(named) >= 10
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *named]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    collected = set(process.stdout.splitlines())
    assert set(named) <= collected, sorted(set(named) - collected)
