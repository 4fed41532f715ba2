"""Which instructions an artifact may use, and whether this CPU has them."""

from __future__ import annotations

import platform
from collections.abc import Iterable

from calumma.core import hardware as host
from calumma.core.errors import ArtifactError

# LLVM's feature -> the kernel's flag in /proc/cpuinfo, for what LLVM may choose on its own in numeric code.
_FLAGS = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "lzcnt": "abm",
    "movbe": "movbe",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "gfni": "gfni",
    "avxvnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
}


def required_flags(features: Iterable[str]) -> tuple[str, ...]:
    """LLVM's features of a CPU -> the flags of /proc/cpuinfo that code built for it may rely on, sorted."""
    return tuple(sorted(_FLAGS[feature] for feature in features if feature in _FLAGS))


def check(path: object, machine: str, mcpu: str, flags: Iterable[str]) -> None:
    """Raise ArtifactError if code for `machine` ("x86_64") with `flags` would die here by an illegal instruction."""
    if machine != platform.machine():
        raise ArtifactError(f"{path}: built for {machine}, this machine is {platform.machine()}; compile it here")
    missing = sorted(set(flags) - set(host.cpu_info().get("flags", "").split()))
    if missing:
        raise ArtifactError(
            f"{path}: built for {mcpu}, this CPU ({host.cpu_info().get('model name', 'unknown')}) lacks "
            f"{', '.join(missing)}; compile it here, or for both machines with mcpu x86-64-v3"
        )
