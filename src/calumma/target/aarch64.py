"""64-bit ARM CPUs: NEON, whose 32 registers have 128 bits. SVE's vectors of unknown length are not used.

Nothing here was measured: the cost constants are those fitted elsewhere (`costs`).
"""

from __future__ import annotations

from dataclasses import replace

from calumma.target.target import Facts, Target, assumed

KIND = "aarch64"
_VECTOR_SETS = ("neon", "sve", "fullfp16", "bf16", "dotprod", "i8mm")
_L1_WAY = 16384
"""64 KiB in four ways: Neoverse N1, V1 and their successors."""

# LLVM's feature -> the kernel's flag among "Features" in /proc/cpuinfo, for what LLVM may choose on its own.
_FLAGS = {
    "neon": "asimd",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "rcpc": "lrcpc",
    "complxnum": "fcma",
    "fp16fml": "asimdfhm",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
}


def describe(facts: Facts) -> Target:
    """A 64-bit ARM CPU by LLVM's features of it."""
    return replace(
        assumed(facts),
        kind=KIND,
        vector_features=tuple(sorted(feature for feature in facts.features if feature.startswith(_VECTOR_SETS))),
        flags=tuple(sorted(flag for feature, flag in _FLAGS.items() if feature in facts.features)),
        registers=32,
        l1_way_bytes=_L1_WAY,
        probe_chains=24,  # enough to hide 4 cycles of latency on four units, with registers to spare
    )
