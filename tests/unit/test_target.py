"""Targets: what is known of a CPU becomes a value, which travels as text and keeps the identity of old records."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import calumma
from calumma import target, tvm_compat
from calumma.core.contraction import BFLOAT16
from calumma.core.errors import InputError
from calumma.core.extensions import temporary_registrations
from calumma.core.values import Hardware
from calumma.target import Facts, Target, describe, kind_of, register_target

CACHES = {"l1_bytes": 48 << 10, "l2_bytes": 1 << 20, "l3_bytes": 32 << 20, "cores": 2}
V2 = frozenset({"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "slow-3ops-lea"})
V3 = V2 | {"avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
ZNVER5 = V4 | {"avx512bf16", "avx512vnni", "avxvnni"}
NEOVERSE = frozenset({"neon", "dotprod", "fullfp16", "bf16", "i8mm", "sve"})


def described(kind: str, mcpu: str, features: frozenset[str]) -> Target:
    return describe(kind, Facts("A CPU", mcpu, features, **CACHES))


@pytest.mark.parametrize(
    ("mcpu", "features", "bits", "registers", "pairs"),
    [
        ("x86-64-v2", V2, 128, 16, False),
        ("x86-64-v3", V3, 256, 16, False),
        ("x86-64-v4", V4, 512, 32, False),
        ("znver5", ZNVER5, 512, 32, True),
    ],
)
def test_widths_registers_and_dot_products_follow_from_features(
    mcpu: str, features: frozenset[str], bits: int, registers: int, pairs: bool
) -> None:
    found = described("x86-64", mcpu, features)
    assert (found.kind, found.vector_bits, found.registers, found.lanes) == ("x86-64", bits, registers, bits // 32)
    assert (found.line_bytes, found.l1_way_bytes, found.probe_chains) == (64, 4096, 24 if registers == 32 else 12)
    dot = found.dot_product(BFLOAT16)
    assert (dot is not None) == pairs
    if dot is not None:
        assert (dot.pack, dot.lanes, dot.accumulates) == (2, found.lanes, "float32")
        assert dot.function in dot.text and dot.rounding in dot.text


def test_flags_are_those_of_the_kernel_and_hints_are_no_instructions() -> None:
    found = described("x86-64", "znver5", frozenset({"avx2", "avx512f", "avx512bf16", "slow-3ops-lea"}))
    assert found.flags == ("avx2", "avx512_bf16", "avx512f")
    assert found.vector_features == ("avx2", "avx512bf16", "avx512f")


def test_an_arm_cpu_has_32_registers_of_128_bits() -> None:
    found = described("aarch64", "neoverse-v2", NEOVERSE)
    assert (found.kind, found.vector_bits, found.registers, found.dot_products) == ("aarch64", 128, 32, ())
    assert {"asimd", "asimddp", "sve"} <= set(found.flags)


def test_an_unknown_architecture_is_generic() -> None:
    found = described("sparc", "niagara", frozenset({"vis"}))
    assert (found.kind, found.vector_bits, found.registers, found.dot_products) == ("generic", 128, 16, ())
    assert found.flags == ()


def test_an_architecture_is_registered_once() -> None:
    def family(facts: Facts) -> Target:
        return replace(described("none", facts.mcpu, facts.features), kind="mine", registers=8)

    with temporary_registrations():
        register_target("mine", family)
        assert described("mine", "m1", frozenset()).registers == 8
        with pytest.raises(InputError, match=r"mine.*already"):
            register_target("mine", family)
    assert described("mine", "m1", frozenset()).kind == "generic"


def test_one_cpu_has_a_family_of_its_own() -> None:
    def family(facts: Facts) -> Target:
        return replace(described("x86-64", "another", facts.features), registers=8)

    with temporary_registrations():
        register_target("znver5", family)
        assert described("x86-64", "znver5", ZNVER5).registers == 8
        assert described("x86-64", "znver4", ZNVER5).registers == 32


@pytest.mark.parametrize(
    ("kind", "mcpu", "features"),
    [("x86-64", "znver5", ZNVER5), ("aarch64", "neoverse-n1", NEOVERSE), ("sparc", "niagara", frozenset())],
)
def test_a_target_comes_back_from_its_text(kind: str, mcpu: str, features: frozenset[str]) -> None:
    found = described(kind, mcpu, features)
    costs = replace(found.costs, matmul=replace(found.costs.matmul, prefetch_factor=0.5))
    other = replace(found, costs=costs)
    for each in (found, other):
        again = Target.from_text(each.to_text())
        assert again == each and hash(again) == hash(each)


def test_records_keep_their_identity() -> None:
    found = replace(described("x86-64", "znver5", ZNVER5), cpu_model="AMD EPYC")
    assert found.hardware == Hardware("AMD EPYC", "znver5", 512, 48 << 10, 1 << 20, 32 << 20, 2)
    assert found.hardware.fingerprint == "9d786a7ad238"
    assert replace(found, costs=target.CostConstants(), registers=8).hardware == found.hardware


def test_llvm_describes_the_host_and_named_cpus() -> None:
    assert kind_of("x86_64") == "x86-64"
    host = tvm_compat.target_for()
    assert host.mcpu == tvm_compat.host_mcpu()
    assert tvm_compat.target_of(host.hardware) == host
    with pytest.raises(InputError, match="LLVM does not know"):
        tvm_compat.target_for("no-such-cpu")
    with pytest.raises(InputError, match="64 bits"):
        tvm_compat.target_of(replace(host.hardware, vector_bits=64))


INSTRUCTION_SETS = re.compile(
    r"avx|\bsse|ssse|neon|\bsve|x86|amx|vnni|znver|\bzen ?\d|skylake|aarch64|neoverse|vdpbf16|vcvtne", re.IGNORECASE
)
ALLOWED = {
    # What a user is told of a setting: for which CPUs it is.
    "api.py": ["with AVX512_BF16 (docs/precision.md)"],
    "cli/options.py": ["bf16 needs a CPU with AVX512_BF16"],
    # An example of LLVM's names in the description of a field.
    "core/values.py": ['LLVM\'s name of the CPU ("znver5")'],
    # Of records that a store has to keep: any CPU would do.
    "testing/store_suite.py": ["HARDWARE ="],
}


def test_nothing_above_targets_names_an_instruction_set() -> None:
    root = Path(calumma.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("target/", "peers/")):  # other runtimes have settings that name instruction sets
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if INSTRUCTION_SETS.search(line) and not any(text in line for text in ALLOWED.get(name, ())):
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found
