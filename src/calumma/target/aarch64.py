"""64-bit ARM CPUs: NEON, whose 32 registers have 128 bits. SVE's vectors of unknown length are not used.

Nothing here was measured: the cost constants are those fitted elsewhere (`costs`).
"""

from __future__ import annotations

from calumma.target.costs import CostConstants
from calumma.target.target import Facts, Target, TypicalRates

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
    return Target(
        kind=KIND,
        cpu_model=facts.cpu_model,
        mcpu=facts.mcpu,
        features=tuple(sorted(facts.features)),
        vector_features=tuple(sorted(feature for feature in facts.features if feature.startswith(_VECTOR_SETS))),
        flags=tuple(sorted(flag for feature, flag in _FLAGS.items() if feature in facts.features)),
        vector_bits=128,
        registers=32,
        line_bytes=64,
        l1_bytes=facts.l1_bytes,
        l1_way_bytes=_L1_WAY,
        l2_bytes=facts.l2_bytes,
        l3_bytes=facts.l3_bytes,
        cores=facts.cores,
        dot_products=(),
        probe_chains=24,  # enough to hide 4 cycles of latency on four units, with registers to spare
        typical=TypicalRates(),
        costs=CostConstants(),
    )
