"""CRC-32 of a whole from the CRC-32 of its parts, so that threads can check a large section together.

A CRC-32 is the remainder of a polynomial over GF(2) modulo P (ISO 3309; bits reflected: the highest bit is x^0). Bytes
that follow multiply what came before by x^8 each: crc(a + b) = crc(a) * x^(8 |b|) + crc(b), all modulo P.
"""

from __future__ import annotations

from collections.abc import Iterable

_P = 0xEDB88320
_ONE = 1 << 31
_X8 = 1 << 23


def join(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of parts one after another.

    Args:
        parts: `zlib.crc32` and number of bytes of each, in order.
    """
    whole = 0
    powers: dict[int, int] = {}  # parts are of few sizes
    for crc, size_bytes in parts:
        if size_bytes not in powers:
            powers[size_bytes] = _power(_X8, size_bytes)
        whole = _product(whole, powers[size_bytes]) ^ crc
    return whole


def _power(base: int, exponent: int) -> int:
    result = _ONE
    while exponent:
        if exponent & 1:
            result = _product(result, base)
        base = _product(base, base)
        exponent >>= 1
    return result


def _product(a: int, b: int) -> int:
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_P if b & 1 else 0)  # times x
    return result
