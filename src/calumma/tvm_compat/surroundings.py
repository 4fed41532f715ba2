"""What decides compiled code beside a model and its settings: the part of a cache's keys that every cache shares.

Nothing here loads TVM.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import calumma
from calumma.core import extensions, hardware
from calumma.tvm_compat import PINS, check_versions

_PACKAGES = ("ml_dtypes", "numpy", "onnx")
"""Whose results become constants, weights and shapes of a model."""


def key(*parts: object) -> str:
    """SHA-256, in hexadecimal, of values with a canonical `repr`, each apart."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def surroundings() -> tuple[str, ...]:
    """Toolchain, CPU, C library, and the code of calumma and of its extensions, as lines of text.

    Raises:
        EnvironmentFault: TVM is missing or not the pinned version.
        InputError: an installed extension cannot be imported.
    """
    check_versions()
    return (*_own(), *extensions.sources())


@functools.cache
def _own() -> tuple[str, ...]:
    # All of it: a changed template makes other kernels of the same version, a changed strategy finds others.
    code = hashlib.sha256()
    package = Path(calumma.__file__).parent
    for source in sorted(package.rglob("*.py")):
        code.update(str(source.relative_to(package)).encode())
        code.update(source.read_bytes())
    cpu = hardware.cpu_info()
    return (
        f"calumma {calumma.__version__} {code.hexdigest()}",
        f"tvm {sorted(PINS.items())}",
        *(f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES),
        f"{platform.machine()} {cpu.get('model name')} {cpu.get('flags')}",
        f"{hardware.cache_bytes()} {hardware.physical_cores()}",
        str(os.confstr("CS_GNU_LIBC_VERSION")),
    )
