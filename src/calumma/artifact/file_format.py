"""The artifact file: a shared library with the weights and the metadata appended to it.

    offset 0          the ELF shared library: kernels and the virtual machine's program
    (aligned to 64)   weights: every parameter aligned to 64 bytes
    (aligned to 64)   metadata: JSON in UTF-8
    last 68 bytes     footer: sections' places and CRC-32 checksums, its own checksum, format version, magic

A loader of shared libraries maps what the ELF headers name and never looks at the bytes behind. Linking therefore does
not depend on the size of the weights, and one file is the whole model.

The weights are read, not mapped: in anonymous memory they lie on huge pages, and stream into the cores 12 % faster
(25.7 against 22.7 GB/s from one core, 100 MB). Several threads read and check them: most of the time goes to the
system, which has to find and clear the pages.

The checksums find damage, not malice: a shared library is code, and loading one runs it. Load only what you trust.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from calumma.artifact import checksum
from calumma.artifact.plan import align
from calumma.core import hardware
from calumma.core.errors import ArtifactError
from calumma.core.files import replacing

FORMAT_VERSION = 2
"""1: the steps of a plan are kernel calls alone, weights lie as kernels read them. 2: branches and loops too; weights
may be stored in a narrower type that holds them exactly."""
MAGIC = b"CALUMMA\n"
_ELF = b"\x7fELF"

# code size; offset and size of weights and of metadata; CRC-32 of code, weights, metadata
_SECTIONS = struct.Struct("<QQQQQIII")
# CRC-32 of the sections' entry; format version; magic. These stay last and as they are in every later version.
_TAIL = struct.Struct("<II8s")
_CHUNK_BYTES = 1 << 20  # checked while still in the cache
_PART_BYTES = 16 << 20  # what a thread takes at a time
FOOTER_BYTES = _SECTIONS.size + _TAIL.size


@dataclass(frozen=True)
class Contents:
    """An open artifact file whose footer and metadata are verified."""

    file: BinaryIO
    metadata: dict[str, Any]
    code_bytes: int
    code_crc: int
    weights_offset: int
    weights_bytes: int
    weights_crc: int

    def check_code(self) -> None:
        """Compare the code with its checksum. Raises ArtifactError."""
        self.file.seek(0)
        if zlib.crc32(self.file.read(self.code_bytes)) != self.code_crc:
            raise _damaged(self.file.name, "checksum of the code does not match")

    def read_weights(self, buffer: NDArray[np.uint8]) -> None:
        """Fill `buffer`, of `weights_bytes`, and compare it with its checksum. Raises ArtifactError."""

        def read(start: int) -> tuple[int, int]:
            part = buffer[start : start + _PART_BYTES]
            crc = 0
            for offset in range(0, len(part), _CHUNK_BYTES):
                chunk = part[offset : offset + _CHUNK_BYTES].data
                _fill(chunk, self.file.fileno(), self.weights_offset + start + offset)
                crc = zlib.crc32(chunk, crc)
            return crc, len(part)

        with ThreadPoolExecutor(hardware.physical_cores()) as pool:  # reading and checking release Python's lock
            crc = checksum.join(pool.map(read, range(0, len(buffer), _PART_BYTES)))
        if crc != self.weights_crc:
            raise _damaged(self.file.name, "checksum of the weights does not match")


def _fill(chunk: memoryview, descriptor: int, offset: int) -> None:
    """Read bytes from an offset of a file; fewer where it ends before, which the checksum tells."""
    while chunk and (count := os.preadv(descriptor, [chunk], offset)):
        chunk, offset = chunk[count:], offset + count


def write(path: Path, library: Path, weights: Iterable[NDArray], metadata: Mapping[str, Any]) -> None:
    """Write an artifact in one atomic step: a reader sees the old file or the new one, never a part.

    Args:
        path: Where to write; its folder must exist.
        library: The linked shared library.
        weights: Parameters in order; each is written as it lies in memory, C-contiguous.
        metadata: JSON values.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    with replacing(path) as out:
        _write(out, library, weights, metadata)


def _write(out: BinaryIO, library: Path, weights: Iterable[NDArray], metadata: Mapping[str, Any]) -> None:
    with library.open("rb") as code:
        shutil.copyfileobj(code, out)
    code_bytes = out.tell()
    out.seek(0)
    code_crc = zlib.crc32(out.read())

    weights_offset = _pad(out)
    weights_crc = 0
    for array in weights:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        padding = bytes(align(len(data)) - len(data))
        for part in (data, padding):
            out.write(part)
            weights_crc = zlib.crc32(part, weights_crc)
    weights_bytes = out.tell() - weights_offset

    text = json.dumps(metadata, allow_nan=False, separators=(",", ":")).encode()
    metadata_offset = _pad(out)
    out.write(text)
    sections = _SECTIONS.pack(
        code_bytes,
        weights_offset,
        weights_bytes,
        metadata_offset,
        len(text),
        code_crc,
        weights_crc,
        zlib.crc32(text),
    )
    out.write(sections + _TAIL.pack(zlib.crc32(sections), FORMAT_VERSION, MAGIC))


def _pad(out: BinaryIO) -> int:
    out.write(bytes(align(out.tell()) - out.tell()))
    return out.tell()


def read(path: Path) -> Contents:
    """Open an artifact and verify its footer and metadata; the caller closes `Contents.file`.

    Raises:
        ArtifactError: no file, not an artifact, truncated, damaged, or of a newer format.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; expected an artifact written by calumma") from error
    try:
        return _read(path, file)
    except BaseException:
        file.close()
        raise


def _read(path: Path, file: BinaryIO) -> Contents:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - FOOTER_BYTES))
    footer = file.read()
    crc, version, magic = _TAIL.unpack(footer[-_TAIL.size :].rjust(_TAIL.size, b"\0"))
    if magic != MAGIC:
        raise ArtifactError(
            f"{path}: {size} bytes without calumma's footer: not an artifact, or truncated; compile the model again"
        )
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format {version}, this calumma reads up to {FORMAT_VERSION}; update calumma or compile again"
        )
    sections = footer[: -_TAIL.size]
    if len(sections) != _SECTIONS.size or zlib.crc32(sections) != crc:
        raise _damaged(path, "checksum of the footer does not match")
    (
        code_bytes,
        weights_offset,
        weights_bytes,
        metadata_offset,
        metadata_bytes,
        code_crc,
        weights_crc,
        metadata_crc,
    ) = _SECTIONS.unpack(sections)
    if metadata_offset + metadata_bytes + FOOTER_BYTES != size:
        raise _damaged(path, f"{size} bytes, the footer tells {metadata_offset + metadata_bytes + FOOTER_BYTES}")

    file.seek(metadata_offset)
    text = file.read(metadata_bytes)
    if zlib.crc32(text) != metadata_crc:
        raise _damaged(path, "checksum of the metadata does not match")
    return Contents(file, json.loads(text), code_bytes, code_crc, weights_offset, weights_bytes, weights_crc)


def is_artifact(path: Path) -> bool:
    """Whether a file bears the marks of an artifact of any version: a shared library that ends with our magic.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_ELF)) != _ELF or os.fstat(file.fileno()).st_size < FOOTER_BYTES:
            return False
        file.seek(-len(MAGIC), os.SEEK_END)
        return file.read() == MAGIC


def _damaged(path: Path | str, reason: str) -> ArtifactError:
    return ArtifactError(f"{path}: damaged: {reason}; copy the file again or compile the model again")
