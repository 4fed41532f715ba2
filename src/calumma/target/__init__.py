"""Targets: what CPUs are, as plain data, one module per architecture. Imports neither TVM nor torch.

describe("x86-64", Facts(...))        the target of a CPU
register_target("riscv64", family)    an architecture, or a single CPU, described outside of this package
"""

from __future__ import annotations

from collections.abc import Callable

from calumma.core.extensions import Registry
from calumma.target import aarch64, x86
from calumma.target.costs import CostConstants
from calumma.target.target import DotProduct, Facts, Target, TypicalRates, assumed

__all__ = ["CostConstants", "DotProduct", "Facts", "Target", "TypicalRates", "describe", "kind_of", "register_target"]

Family = Callable[[Facts], Target]

_FAMILIES: Registry[Family] = Registry("target", {x86.KIND: x86.describe, aarch64.KIND: aarch64.describe})


def kind_of(machine: str) -> str:
    """The kind of target of a machine, by the name that the system gives it ("x86_64" is "x86-64")."""
    return machine.replace("_", "-")


def describe(kind: str, facts: Facts) -> Target:
    """The target of a CPU, by the family of its name, or else of its architecture; one that assumes little without."""
    family = _FAMILIES.get(facts.mcpu) or _FAMILIES.get(kind) or assumed
    return family(facts)


def register_target(name: str, family: Family) -> None:
    """Let `describe` call `family` for an architecture ("riscv64") or for one CPU by LLVM's name ("haswell").

    That is how a CPU gets cost constants of its own: its family calls that of the architecture and replaces them.
    Workers import the module that calls this, since code is built there too. A name stands for one thing: "x86-64", the
    architecture, cannot be given to LLVM's CPU of that name.

    Raises:
        InputError: that name has a family already; or the main script registers it (`core.extensions`).
    """
    _FAMILIES.add(name, family)
