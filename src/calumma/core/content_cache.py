"""A cache on disk: contents under keys of everything that decides them, checked when read and bounded in size.

An entry is one file, written in one step:

    contents | JSON about them | SHA-256 of the contents | SHA-256 of key, JSON and that | bytes of the JSON | magic

It is used only if both digests and the key match and nobody but its owner can write it: what lies here gets executed.
Whatever else is found or happens costs a `CacheWarning` and the work that the entry would have saved. The entries used
last are kept. Any number of processes may use one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import platformdirs

from calumma.core.errors import InputError
from calumma.core.files import replacing

ROOT_VARIABLE = "CALUMMA_CACHE"
LIMIT_VARIABLE = "CALUMMA_CACHE_MB"
_DEFAULT_MB = 2000
"""Ten models of 100 MB with the artifacts of a few versions each."""
_FOOTER = struct.Struct("<32s32sQ8s")
_MAGIC = b"CALCACH\n"
_Result = TypeVar("_Result")
_CHUNK_BYTES = 1 << 20  # hashed while still in the processor's cache
_ABANDONED_S = 3600.0
"""Age of a half-written file whose writer must have been killed."""


class CacheWarning(UserWarning):
    """Something of a cache that cannot be read, trusted or written; the work is done all the same."""


class _DamagedEntry(Exception):
    """A file of the cache that is not what its key stands for; the message says why."""


def root() -> Path:
    """$CALUMMA_CACHE, or else calumma's folder in the user's cache directory."""
    return Path(os.environ.get(ROOT_VARIABLE) or platformdirs.user_cache_path("calumma", appauthor=False))


def limit_bytes() -> int:
    """Bytes that one cache may take: $CALUMMA_CACHE_MB in millions; 0 keeps and uses nothing.

    Raises:
        InputError: the variable is no number of 0 or more.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(_DEFAULT_MB))
    if not text.isdecimal():
        raise InputError(f"{LIMIT_VARIABLE}={text!r}: give a number of megabytes, or 0 for no cache")
    return int(text) * 1_000_000


def check_private(path: Path) -> None:
    """Raise PermissionError where others can write, for what lies there gets executed; OSError if it is not there."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to user {status.st_uid}, expected {os.geteuid()}, who runs this; "
            f"set {ROOT_VARIABLE} to a folder of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}), and loading it runs it; "
            "remove it, or, if you trust its contents, chmod go-w"
        )


def make_private(folder: Path) -> None:
    """Make a folder that its owner alone can use, or check that this one is such. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def mark_used(path: Path) -> None:
    """Note that a file of a cache was used now: `evict` keeps it longest. Raises OSError."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def evict(folder: Path, most_bytes: int) -> None:
    """Remove the files that were used longest ago until those of a folder take `most_bytes`, and abandoned ones."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat(), path))
    kept = 0
    for status, path in sorted(found, key=lambda entry: entry[0].st_atime, reverse=True):
        half_written = path.name.startswith(".")
        kept += status.st_size
        old = time.time() - status.st_mtime > _ABANDONED_S
        if old if half_written else kept > most_bytes:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Entry:
    """An open file whose key and JSON are sound; the contents are checked where they are read."""

    file: BinaryIO
    about: dict[str, Any]
    size_bytes: int
    digest: bytes

    def chunks(self) -> Iterator[bytes]:
        """The contents. Raises _DamagedEntry at their end if they are others than were written."""
        self.file.seek(0)
        digest, left = hashlib.sha256(), self.size_bytes
        while left and (chunk := self.file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        if digest.digest() != self.digest:
            raise _DamagedEntry("its contents are not those that were written")


class ContentCache:
    """One folder of entries."""

    def __init__(self, name: str, what: str) -> None:
        """
        Args:
            name: of the folder below `root`.
            what: an entry is, in warnings ("artifact").

        Raises:
            InputError: the limit in the environment is no number.
        """
        self.folder = root() / name
        self._what = what
        self._most_bytes = limit_bytes()

    def get(self, key: str) -> bytes | None:
        """The contents of a key, a SHA-256 in hexadecimal; None where there are none to be used."""
        return self._use(key, lambda entry: b"".join(entry.chunks()))

    def copy(self, key: str, path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        """Write the contents of a key to a file in one step, and return what is said about them.

        Args:
            key: a SHA-256 in hexadecimal.
            path: file to write; left as it is where None is returned.
            wanted: whether what is said about the entry makes it the one that is looked for.
        """

        def copied(entry: _Entry) -> dict[str, Any] | None:
            if not wanted(entry.about):
                return None
            with replacing(path) as out:
                out.writelines(entry.chunks())
            return entry.about

        return self._use(key, copied)

    def put(self, key: str, contents: bytes | Path, about: Mapping[str, Any] | None = None) -> None:
        """Keep contents, or those of a file, under a key, with a JSON object about them; replaces an older entry.

        `trim` has to follow.
        """
        if not self.in_use:
            return
        try:
            make_private(self.folder)
            text = json.dumps(about or {}, allow_nan=False).encode()
            digest = hashlib.sha256()
            with replacing(self.folder / key, private=True) as out:
                for chunk in _chunks(contents):
                    digest.update(chunk)
                    out.write(chunk)
                out.write(text)
                out.write(_FOOTER.pack(digest.digest(), _seal(key, text, digest.digest()), len(text), _MAGIC))
        except OSError as error:
            self._warn(f"is not kept: {error.strerror or error}")

    @property
    def in_use(self) -> bool:
        """Whether anything is kept at all."""
        return self._most_bytes > 0

    def trim(self) -> None:
        """Keep the folder within its limit; to be called when all entries of a piece of work are there."""
        if not self.in_use:
            return
        try:
            evict(self.folder, self._most_bytes)
        except OSError as error:
            self._warn(f"is not removed: {error}")

    @contextmanager
    def _opened(self, key: str) -> Iterator[_Entry]:
        """The entry of a key. Raises OSError, FileNotFoundError where there is none; _DamagedEntry."""
        if not self.in_use:
            raise FileNotFoundError
        path = self.folder / key
        with path.open("rb") as file:
            check_private(self.folder)
            check_private(path)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _FOOTER.size))
            footer = file.read()
            if len(footer) != _FOOTER.size:
                raise _DamagedEntry("it is cut off")
            digest, seal, about_bytes, magic = _FOOTER.unpack(footer)
            start = size - _FOOTER.size - about_bytes
            if magic != _MAGIC or start < 0:
                raise _DamagedEntry("it is cut off, or no entry of a cache")
            file.seek(start)
            text = file.read(about_bytes)
            if _seal(key, text, digest) != seal:
                raise _DamagedEntry("its key or what is said about it is not what was written")
            yield _Entry(file, json.loads(text), start, digest)
        with contextlib.suppress(OSError):
            mark_used(path)

    def _use(self, key: str, use: Callable[[_Entry], _Result]) -> _Result | None:
        """What `use` makes of the entry of a key; None where there is none, or where that fails, after a warning."""
        try:
            with self._opened(key) as entry:
                return use(entry)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _DamagedEntry as error:
            self._warn(f"{self.folder / key} is damaged ({error}) and is made anew")
        except OSError as error:
            self._warn(f"is not used: {error}")
        return None

    def _warn(self, text: str) -> None:
        warnings.warn(f"cached {self._what} {text}", CacheWarning, stacklevel=4)


def _seal(key: str, about: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(b"\n".join((key.encode(), digest, about))).digest()


def _chunks(contents: bytes | Path) -> Iterator[bytes]:
    if isinstance(contents, bytes):
        yield contents
        return
    with contents.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
