"""A unit test starts no process, or says so with the mark `processes`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn")
_ASKED = ("git", "lscpu", "uname")
"""Programs that only tell where a test runs: which commit, which machine."""
_alone = False
"""Whether the test that runs may start no process."""


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if _alone and event in _EVENTS:
        program = Path(str(arguments[0])).name if arguments else ""
        if program not in _ASKED:
            raise AssertionError(f"a unit test starts a process ({event} {program}): mark it with `processes`")


sys.addaudithook(_refuse)


@pytest.fixture(autouse=True)
def no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let starting a process fail the test, unless it is marked."""
    global _alone
    _alone = request.node.get_closest_marker("processes") is None
    yield
    _alone = False
