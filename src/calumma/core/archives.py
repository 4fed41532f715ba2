"""Arrays with a header as one file: an .npz whose array "header" is JSON text. Nothing in it can run."""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calumma.core.errors import InputError
from calumma.core.files import replacing

Arrays = Mapping[str, NDArray[Any]]
Contents = TypeVar("Contents")

_HEADER = "header"
_DAMAGE = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def save(path: Path, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a file; an older one is replaced as a whole.

    Args:
        path: of the file.
        header: JSON values; "format" is a number that `load` compares.
        arrays: by name, none of them called "header".
    """
    with replacing(path) as out:
        text = np.frombuffer(json.dumps(header).encode(), np.uint8)
        np.savez_compressed(out, allow_pickle=False, **{_HEADER: text}, **arrays)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive with a header, of whatever contents. Raises OSError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{_HEADER}.npy" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def load(path: Path, version: int, restore: Callable[[Mapping[str, Any], Arrays], Contents], remedy: str) -> Contents:
    """Read a file.

    Args:
        path: of the file.
        version: the format expected.
        restore: makes the result of the header and the arrays, both unchecked; a ValueError, KeyError or TypeError of
            its says that they are damaged.
        remedy: what to do about a file that cannot be read.

    Raises:
        InputError: there is no such file, it is damaged, or of another format.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        header = json.loads(arrays[_HEADER].tobytes().decode())
        if header["format"] != version:
            raise ValueError(f"it is of format {header['format']}, expected {version}")
        return restore(header, arrays)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {reason}): {remedy}") from error
