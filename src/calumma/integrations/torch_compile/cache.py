"""Compiled regions on disk, each under a key of everything that decides it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calumma.artifact import Artifact, load, save
from calumma.core import content_cache, hardware
from calumma.core.content_cache import CacheWarning as CacheWarning
from calumma.core.errors import ArtifactError
from calumma.tvm_compat import surroundings

if TYPE_CHECKING:
    from calumma.api import CompileResult, TuneResult


def folder() -> Path:
    """`torch_compile` in the root of caches."""
    return content_cache.root() / "torch_compile"


def in_use() -> bool:
    """Whether regions are kept at all."""
    return content_cache.limit_bytes() > 0


def path(key: str) -> Path:
    """Where the region of a key lies, or would."""
    return folder() / f"{key}.so"


def key(lines: Iterable[str], settings: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, of a region.

    Args:
        lines: canonical text of its graph, with the digest of every folded tensor.
        settings: how it is compiled.
    """
    asked = [f"{name}={settings[name]!r}" for name in sorted(settings)]
    return surroundings.key(*lines, *asked, *surroundings.surroundings(), f"torch {torch.__version__}")


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
    if not in_use():
        return None
    try:
        content_cache.check_private(file.parent)
        content_cache.check_private(file)
        content_cache.mark_used(file)
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
    content_cache.make_private(file.parent)
    save(result.executable, result.lowered.params, result.lowered.metadata, file)
    file.chmod(0o600)  # under a umask that gives to the group, it would not be trusted by the next process
    return file


def trim() -> None:
    """Keep the cache within its limit: the regions that were used last. Raises OSError."""
    content_cache.evict(folder(), content_cache.limit_bytes())


def _digest(tensor: torch.Tensor) -> str:
    contents = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(contents.data).hexdigest()
