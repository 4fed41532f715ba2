"""Memory for tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes every tensor is aligned to: TVM's kernels load whole vectors from the start of each buffer."""
HUGE_PAGE_BYTES = 2 << 20
_ADVISED_BYTES = 4 << 20
"""NumPy asks the system for huge pages from this size on."""


def huge_pages(size_bytes: int) -> NDArray[np.uint8]:
    """An uninitialised buffer that starts on a huge page and, where the system allows it, lies on such pages alone.

    With pages of 4 KB, which cache sets a tensor falls into is chance, other in every process, and a kernel's time
    differs by several percent with it; every stream of a kernel also needs more entries of the TLB than there are.
    Memory that is never touched is never taken, so that a small buffer costs one huge page at most.
    """
    buffer = np.empty(max(size_bytes, _ADVISED_BYTES) + HUGE_PAGE_BYTES, dtype=np.uint8)
    start = -buffer.ctypes.data % HUGE_PAGE_BYTES
    return buffer[start : start + size_bytes]
