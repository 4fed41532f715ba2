"""Artifacts of earlier calls of `compile`, for models that are compiled again as they were: without TVM, in a second.

An artifact is decided by two things. What was asked is known before anything is imported: the bytes of the model and
of its external data, the options, priors, toolchain, CPU, calumma's own code; that is the key. What the records and the
machine's measured limits say is known once the model's workloads are: an entry keeps what was looked up (a `Question`)
and a digest of the answer, and is used only if the answer is still the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.core import hardware
from calumma.core.content_cache import ContentCache
from calumma.pipeline.compile_options import CompileOptions
from calumma.pipeline.destination import external_data
from calumma.tvm_compat import surroundings

_CHUNK_BYTES = 1 << 20
_LOCATION = b"location"
"""The key, in the file, of where weights outside of it lie: without it, a model is one file."""

Question = Mapping[str, Any]
"""What is looked up for a model, as JSON values."""


@dataclass(frozen=True)
class ArtifactRequest:
    """One call of `compile` as a key of the cache."""

    key: str
    cache: ContentCache
    files: tuple[tuple[Path, tuple[int, ...]], ...]
    """The files that were read for the key, with what tells that they have changed since."""

    @classmethod
    def of(cls, model: Any, options: CompileOptions, priors: str) -> ArtifactRequest | None:
        """Describe a call; None for a model that cannot be known by its bytes.

        Args:
            model: path or bytes of an ONNX model; anything else is not known.
            options: what it is compiled for.
            priors: digest of the priors that may be asked.

        Raises:
            InputError: the cache's limit is no number, or an extension cannot be imported.
            EnvironmentFault: TVM is missing or not the pinned version.
        """
        if isinstance(model, (str, os.PathLike)):
            try:
                named, files = _of_files(Path(model))
            except OSError:  # a pipe, which can be read once, or something that its import will speak of
                return None
        elif isinstance(model, (bytes, bytearray, memoryview)):
            named, files = ["model", hashlib.sha256(model).hexdigest()], ()
        else:
            return None
        key = surroundings.key(
            *named,
            sorted((options.shapes or {}).items()),
            options.threads or hardware.physical_cores(),
            options.mcpu,
            options.tolerance,
            options.precision,
            priors,
            *surroundings.surroundings(),
        )
        return cls(key, ContentCache("artifacts", "artifact"), files)

    def copy(self, path: Path, answer: Callable[[Question], str]) -> dict[str, Any] | None:
        """Write the artifact of an earlier call to a file; returns what `keep` was told, None where there is none.

        Args:
            path: file to write.
            answer: gives the digest of what a question finds now.
        """
        found = self.cache.copy(self.key, path, lambda about: answer(about["question"]) == about["answer"])
        return None if found is None else dict(found["result"])

    def keep(self, path: Path, question: Question, answer: str, result: Mapping[str, Any]) -> None:
        """Keep the artifact in a file for later calls.

        Args:
            path: file of the artifact.
            question: what was looked up.
            answer: digest of what was found.
            result: JSON values for the later call.
        """
        try:
            unchanged = all(_state(file) == state for file, state in self.files)
        except OSError:
            return
        if unchanged:  # otherwise it may be another model than the one that was compiled
            self.cache.put(self.key, path, {"question": dict(question), "answer": answer, "result": dict(result)})
            self.cache.trim()


def _of_files(path: Path) -> tuple[list[str], tuple[tuple[Path, tuple[int, ...]], ...]]:
    """Name of a model, digests of its files; and the files. Raises OSError."""
    state = _state(path)
    digest, has_location = _digest(path)
    more = external_data(path) if has_location else []
    files = ((path, state), *((file, _state(file)) for file in more))
    return [path.stem, digest, *(_digest(file)[0] for file in more)], files


def _state(path: Path) -> tuple[int, ...]:
    """What changes with the contents of a regular file. Raises OSError, also for a file of another kind."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _digest(path: Path) -> tuple[str, bool]:
    """SHA-256 of a file, and whether `_LOCATION` occurs in it."""
    digest, found, before = hashlib.sha256(), False, b""
    for chunk in _chunks(path):
        digest.update(chunk)
        found = found or _LOCATION in chunk or _LOCATION in before + chunk[: len(_LOCATION)]
        before = chunk[-len(_LOCATION) :]
    return digest.hexdigest(), found


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
