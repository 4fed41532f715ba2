"""The command line in processes of its own: under a small disk, in a folder that may not be written, and so on."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_IN_MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && "$@"; status=$?; ls -A "$0"; exit $status'
"""Run a command in a private mount; what it leaves in the folder is listed on stdout."""


def calumma(*arguments: object, prefix: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `calumma ARGUMENTS`, behind a `prefix` command."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return subprocess.run(
        [*prefix, sys.executable, "-m", "calumma", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": path, **environment},
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Status 2, and one line of error that holds `words`; what is said on the way (progress, warnings) may be more."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr[-2000:]
    assert [line for line in lines if line.startswith("calumma: error: ")] == lines[-1:], done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[-1]


@functools.cache
def _unshare() -> tuple[str, ...]:
    """A command that gives its argument a mount table of its own; () where this user may not have one."""
    for command in (("unshare", "--mount"), ("unshare", "--mount", "--map-root-user")):
        probe = [*command, "sh", "-c", 'mount -t tmpfs tmpfs "$0"', "/mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0:
            return command
    return ()


def small_disk(folder: Path, kilobytes: int) -> list[str]:
    """A prefix under which `folder` is a disk of this size; where none can be mounted, no file may exceed it."""
    if not _unshare():
        return ["prlimit", f"--fsize={kilobytes << 10}", "--"]
    return [*_unshare(), "sh", "-c", _IN_MOUNT, str(folder), f"size={kilobytes}k", str(folder)]


def read_only(folder: Path) -> list[str]:
    """A prefix under which nothing can be written to `folder`, whoever asks."""
    if not _unshare():
        folder.chmod(0o500)  # binds everybody but root, and root may mount
        return []
    return [*_unshare(), "sh", "-c", _IN_MOUNT, str(folder), "ro", str(folder)]
