"""A CPU as a value: all that decides about the code compiled for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from calumma.core.contraction import Contraction
from calumma.core.values import Hardware
from calumma.target.costs import CostConstants


@dataclass(frozen=True)
class DotProduct:
    """An instruction that adds products of short vectors to every lane of an accumulator.

        c[l] += sum over q < pack of a[q] * b[pack l + q]    for all lanes l

    TVM knows no such instruction: it is a function in LLVM's language, handed over as text, called and inlined.
    """

    name: str
    """Of the instruction ("vdpbf16ps")."""
    feature: str
    """LLVM's feature that has it."""
    reads: str
    """NumPy's name of the type of a and b."""
    accumulates: str
    """That of c."""
    pack: int
    """Elements multiplied per lane."""
    lanes: int
    function: str
    """Name of the function (c, a in all lanes, b) -> c; a and b as vectors of as many 32-bit integers as lanes."""
    rounding: str
    """Name of the function (vector of c's type) -> bits of the nearest values of the type read; "" where there is
    none."""
    text: str
    """Definitions of both in LLVM's language."""


@dataclass(frozen=True)
class TypicalRates:
    """What a CPU of a family does where nothing can be measured."""

    clock_hz: float = 3.0e9
    fmas_per_cycle: int = 2
    """Vector multiply-adds per cycle of one core."""
    l2_bytes_per_cycle: int = 32
    l3_bytes_per_cycle: int = 16
    """Bytes that one core reads per cycle."""
    dram_bandwidth: float = 25e9
    """Bytes per second of all cores together."""


@dataclass(frozen=True)
class Facts:
    """What is known of a CPU before its family describes it."""

    cpu_model: str
    mcpu: str
    features: frozenset[str]
    """LLVM's features of the CPU."""
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int


@dataclass(frozen=True)
class Target:
    """The CPU that code is compiled for, with everything that decides about the code."""

    kind: str
    """Architecture ("x86-64", "aarch64"), or "generic"."""
    cpu_model: str
    """Name the CPU gives itself, for people ("AMD EPYC")."""
    mcpu: str
    """LLVM's name of the CPU ("znver5")."""
    features: tuple[str, ...]
    """LLVM's features of the CPU, sorted."""
    vector_features: tuple[str, ...]
    """Those of them that float code cannot do without, sorted: a machine that has them all can run it."""
    flags: tuple[str, ...]
    """Flags of /proc/cpuinfo that the code may rely on, sorted."""
    vector_bits: int
    """Width of the widest float vector in bits."""
    registers: int
    """Vector registers."""
    line_bytes: int
    """Cache line."""
    l1_bytes: int
    l1_way_bytes: int
    """L1 data cache, and one way of it: lines this far apart share a set."""
    l2_bytes: int
    l3_bytes: int
    """L1 and L2 per core, L3 shared."""
    cores: int
    """Physical cores of the machine."""
    dot_products: tuple[DotProduct, ...]
    """The CPU's dot products of short vectors."""
    probe_chains: int
    """Independent chains of multiply-adds, in registers, that reach the CPU's peak."""
    typical: TypicalRates
    costs: CostConstants

    @property
    def lanes(self) -> int:
        """float32 lanes of one vector: the number of channels in a block."""
        return self.vector_bits // 32

    @property
    def hardware(self) -> Hardware:
        """The identity of the CPU in records."""
        return Hardware(
            cpu_model=self.cpu_model,
            mcpu=self.mcpu,
            vector_bits=self.vector_bits,
            l1_bytes=self.l1_bytes,
            l2_bytes=self.l2_bytes,
            l3_bytes=self.l3_bytes,
            cores=self.cores,
        )

    def dot_product(self, contraction: Contraction) -> DotProduct | None:
        """The dot product that a contraction's packed elements take on whole vectors, or None."""
        wanted = (contraction.read, contraction.accumulate, contraction.pack, self.lanes)
        found = (dot for dot in self.dot_products if (dot.reads, dot.accumulates, dot.pack, dot.lanes) == wanted)
        return next(found, None)

    def to_text(self) -> str:
        """The target as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Target:
        """The target that `to_text` wrote, by this version of calumma."""
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Target:
        """The target of its fields as plain values, as `dataclasses.asdict` or JSON has them."""
        costs = values["costs"]
        groups = {name: type(group)(**costs[name]) for name, group in vars(CostConstants()).items()}
        return cls(
            **{
                **values,
                "features": tuple(values["features"]),
                "vector_features": tuple(values["vector_features"]),
                "flags": tuple(values["flags"]),
                "dot_products": tuple(DotProduct(**dot) for dot in values["dot_products"]),
                "typical": TypicalRates(**values["typical"]),
                "costs": CostConstants(**groups),
            }
        )


GENERIC = "generic"


def assumed(facts: Facts) -> Target:
    """A CPU of which no family says more: 16 registers of 128 bits, and nothing that a check of it could compare."""
    return Target(
        kind=GENERIC,
        cpu_model=facts.cpu_model,
        mcpu=facts.mcpu,
        features=tuple(sorted(facts.features)),
        vector_features=tuple(sorted(facts.features)),
        flags=(),
        vector_bits=128,
        registers=16,
        line_bytes=64,
        l1_bytes=facts.l1_bytes,
        l1_way_bytes=4096,
        l2_bytes=facts.l2_bytes,
        l3_bytes=facts.l3_bytes,
        cores=facts.cores,
        dot_products=(),
        probe_chains=12,
        typical=TypicalRates(),
        costs=CostConstants(),
    )
