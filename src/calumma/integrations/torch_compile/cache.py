"""Compiled regions on disk, each under a key of everything that decides it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import torch

import calumma
from calumma import tvm_compat
from calumma.artifact import Artifact, load
from calumma.core import hardware
from calumma.core.errors import ArtifactError

_ROOMS = ("artifact", "core", "frontend", "integrations/torch_compile", "space", "tasks", "tuner", "tvm_compat")
"""Where the code is that decides what a region becomes: a changed template makes other kernels of the same version."""


class CacheWarning(UserWarning):
    """A file of the cache that cannot be read or written; the region is compiled all the same."""


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
    """Load a region; None if it is not there, or, with a warning, if its file is damaged.

    Raises:
        EnvironmentFault: TVM is missing or not the pinned version.
    """
    file = path(key)
    if not file.exists():
        return None
    try:
        return load(file, threads)
    except ArtifactError as error:
        warnings.warn(f"{error} (done now: the file is replaced)", CacheWarning, stacklevel=2)
        return None


def _digest(tensor: torch.Tensor) -> str:
    contents = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(contents.data).hexdigest()


@functools.cache
def _surroundings() -> tuple[str, ...]:
    """What beside graph and settings decides a region: toolchain, CPU, and the code of calumma itself."""
    code = hashlib.sha256()
    package = Path(calumma.__file__).parent
    for room in _ROOMS:
        for source in sorted((package / room).rglob("*.py")):
            code.update(str(source.relative_to(package)).encode())
            code.update(source.read_bytes())
    cpu = hardware.cpu_info()
    return (
        f"calumma {calumma.__version__} {code.hexdigest()}",
        f"tvm {sorted(tvm_compat.PINS.items())}",
        f"torch {torch.__version__}",
        f"{platform.machine()} {cpu.get('model name')} {cpu.get('flags')} {hardware.cache_bytes()}",
    )
