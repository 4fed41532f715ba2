"""Whether a file may be written: asked before any work is done, so that nothing of the user's is replaced.

A command replaces only files of the kind that it writes itself. Whatever else lies at the place, it leaves alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from calumma.core.errors import InputError

_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


@dataclass(frozen=True)
class FileKind:
    """A kind of file that calumma writes."""

    name: str
    """With its article, for messages."""
    recognises: Callable[[Path], bool]
    """Whether a regular file is of this kind; an OSError counts as no."""


def begins_with(*prefixes: bytes, blank: bool = True) -> Callable[[Path], bool]:
    """A test for files by their first bytes, white space and case aside; an empty file passes where `blank` is true."""

    def recognises(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(256).lstrip().lower()
        return head.startswith(prefixes) or (blank and not head and path.stat().st_size == 0)

    return recognises


def check_output(
    path: Path, kind: FileKind, *, inputs: Iterable[Path] = (), force: bool = False, remedy: str = "name another file"
) -> Path:
    """Return the path if a file of `kind` may be written to it.

    Args:
        path: where to write.
        kind: what will be written; a file of this kind is replaced.
        inputs: files that are being read: never replaced, whatever path or link leads to them.
        force: replace a regular file of any other kind too.
        remedy: what to do where only `force` would help.

    Raises:
        InputError: there is no such folder; or something is there that is not to be replaced.
    """
    advice = "give the path of a file in a folder that exists"
    if not path.parent.is_dir():
        raise _refusal(path, kind, f"there is no folder {path.parent}", advice)
    special = special_file(path)
    if special:
        raise _refusal(path, kind, f"it is {special}", advice)
    if not os.path.lexists(path):
        return path
    if path.exists():
        for source in inputs:
            if source.exists() and os.path.samefile(path, source):
                raise _refusal(path, kind, f"it is the input {source}", "name another file")
    if not force and not _recognised(path, kind):
        raise _refusal(path, kind, f"it exists and is not {kind.name}", remedy)
    return path


def special_file(path: Path) -> str:
    """What a path leads to if that is neither a regular file nor missing, with its article; else an empty string."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    return next((name for test, name in _SPECIAL if test(mode)), "")


def _recognised(path: Path, kind: FileKind) -> bool:
    try:
        return kind.recognises(path)
    except OSError:
        return False


def _refusal(path: Path, kind: FileKind, reason: str, remedy: str) -> InputError:
    return InputError(f"{kind.name} cannot be written to {path}: {reason}; {remedy}")
