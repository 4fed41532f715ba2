"""x86-64 CPUs: SSE, AVX and AVX-512."""

from __future__ import annotations

from dataclasses import replace

from calumma.target.target import DotProduct, Facts, Target, assumed

KIND = "x86-64"
_WIDTHS = (("avx512f", 512), ("avx", 256))
"""Vector bits by LLVM's feature, widest first; 128 without either."""
_VECTOR_SETS = ("sse", "avx", "fma", "amx")
"""How the features begin that are instruction sets of vectors; others are mostly hints ("slow-3ops-lea")."""
_L1_WAY = 4096
"""64 sets of 64 bytes on every x86 CPU of the last years."""

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

_BFLOAT16_DOT, _BFLOAT16_ROUND = "calumma.bfloat16_dot", "calumma.bfloat16_round"
BFLOAT16 = DotProduct(
    name="vdpbf16ps",
    feature="avx512bf16",
    reads="bfloat16",
    accumulates="float32",
    pack=2,
    lanes=16,
    function=_BFLOAT16_DOT,
    rounding=_BFLOAT16_ROUND,
    text=f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define linkonce_odr <16 x float> @{_BFLOAT16_DOT}(<16 x float> %sums, <16 x i32> %pairs, <16 x i32> %others) alwaysinline {{
  %a = bitcast <16 x i32> %pairs to <32 x bfloat>
  %b = bitcast <16 x i32> %others to <32 x bfloat>
  %c = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %c
}}
define linkonce_odr <16 x i16> @{_BFLOAT16_ROUND}(<16 x float> %x) alwaysinline {{
  %y = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %bits = bitcast <16 x bfloat> %y to <16 x i16>
  ret <16 x i16> %bits
}}
""",  # noqa: E501
)
"""`vdpbf16ps`: products of pairs of bfloat16 that float32 adds up, twice as many per cycle as multiply-adds; and
`vcvtneps2bf16`, which rounds 16 float32 values."""


def describe(facts: Facts) -> Target:
    """An x86-64 CPU by LLVM's features of it."""
    bits = next((width for feature, width in _WIDTHS if feature in facts.features), 128)
    wide = bits == 512
    return replace(
        assumed(facts),
        kind=KIND,
        vector_features=tuple(sorted(feature for feature in facts.features if feature.startswith(_VECTOR_SETS))),
        flags=tuple(sorted(flag for feature, flag in _FLAGS.items() if feature in facts.features)),
        vector_bits=bits,
        registers=32 if wide else 16,
        l1_way_bytes=_L1_WAY,
        dot_products=(BFLOAT16,) if wide and BFLOAT16.feature in facts.features else (),
        probe_chains=24 if wide else 12,  # enough to hide 4 cycles of latency on two units
    )
