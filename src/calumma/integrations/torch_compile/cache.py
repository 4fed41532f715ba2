"""Compiled regions on disk, each under a key of everything that decides it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch

import calumma
from calumma import tvm_compat
from calumma.artifact import Artifact, load, save
from calumma.core import extensions, hardware
from calumma.core.errors import ArtifactError

if TYPE_CHECKING:
    from calumma.api import CompileResult, TuneResult


class CacheWarning(UserWarning):
    """A file of the cache that cannot be read, trusted or written; the region is compiled all the same."""


def folder() -> Path:
    """`torch_compile` in $CALUMMA_CACHE, or else in the user's cache directory."""
    root = os.environ.get("CALUMMA_CACHE") or platformdirs.user_cache_path("calumma", appauthor=False)
    return Path(root) / "torch_compile"


def path(key: str) -> Path:
    """Where the region of a key lies, or would."""
    return folder() / f"{key}.so"


def key(lines: Iterable[str], settings: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, of a region.

    Args:
        lines: canonical text of its graph, with the digest of every folded tensor.
        settings: how it is compiled.
    """
    digest = hashlib.sha256()
    for line in (*lines, *(f"{name}={settings[name]!r}" for name in sorted(settings)), *_surroundings()):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of the contents of each tensor."""
    with ThreadPoolExecutor(hardware.physical_cores()) as pool:  # hashing releases Python's lock
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def read(key: str, threads: int) -> Artifact | None:
    """Load a region; None if it is not there, or, with a warning, if its file is damaged or not to be trusted.

    Raises:
        EnvironmentFault: TVM is missing or not the pinned version.
    """
    file = path(key)
    try:
        _check_private(file.parent)
        _check_private(file)
        return load(file, threads)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ArtifactError, OSError) as error:
        warnings.warn(f"a cached region is not used: {error} (compiled anew now)", CacheWarning, stacklevel=2)
        return None


def write(key: str, result: CompileResult | TuneResult) -> Path:
    """Keep a region where its owner alone can write, and return its file.

    Raises:
        ArtifactError: there is no room for it.
        EnvironmentFault: there is no C compiler to link with, or it fails.
        OSError: the folder cannot be made or written, or is not to be trusted.
    """
    file = path(key)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(file.parent)
    save(result.executable, result.lowered.params, result.lowered.metadata, file)
    file.chmod(0o600)  # under a umask that gives to the group, it would not be trusted by the next process
    return file


def _check_private(path: Path) -> None:
    """Raise PermissionError where others can write, for loading a region runs it; OSError where nothing is known."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to user {status.st_uid}, expected {os.geteuid()}, who runs this; "
            "set CALUMMA_CACHE to a folder of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}), and loading it runs it; "
            "remove it, or, if you trust its contents, chmod go-w"
        )


def _digest(tensor: torch.Tensor) -> str:
    contents = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(contents.data).hexdigest()


def _surroundings() -> tuple[str, ...]:
    """What beside graph and settings decides a region: toolchain, CPU, the code of calumma and of its extensions."""
    return (*_own_surroundings(), *extensions.sources())


@functools.cache
def _own_surroundings() -> tuple[str, ...]:
    # All of it: a changed template makes other kernels of the same version, a changed strategy finds others.
    code = hashlib.sha256()
    package = Path(calumma.__file__).parent
    for source in sorted(package.rglob("*.py")):
        code.update(str(source.relative_to(package)).encode())
        code.update(source.read_bytes())
    cpu = hardware.cpu_info()
    return (
        f"calumma {calumma.__version__} {code.hexdigest()}",
        f"tvm {sorted(tvm_compat.PINS.items())}",
        f"torch {torch.__version__}",
        f"{platform.machine()} {cpu.get('model name')} {cpu.get('flags')} {hardware.cache_bytes()}",
    )
