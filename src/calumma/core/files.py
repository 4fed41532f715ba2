"""Writing files so that nobody ever sees a part of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` when the block ends, durably and in one step.

    A reader sees the old file or the new one. If the block fails, the old one stays and nothing is left behind.

    Args:
        path: the file.
        private: for its owner alone, and not waited for until it is on the disk: a file of a cache, which checks it.

    Raises:
        OSError: the file cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w+b") as out:
            yield out
            if not private:
                out.flush()
                os.fsync(out.fileno())
                os.fchmod(out.fileno(), 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if private:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    # The mask can only be read by setting it; the status file tells it without that race.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
