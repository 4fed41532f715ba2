"""Kernels read nothing behind their inputs: every input ends where a page begins that may not be touched.

In a process of its own, because a kernel that does dies there.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calumma.contractions.convolution import expression as conv
from calumma.contractions.depthwise import expression as depthwise
from calumma.contractions.matmul import expression as matmul
from calumma.expressions import blocking, windows
from calumma.operators.normalisation import expression as local_response_norm
from calumma.operators.pooling import expression as pool
from calumma.operators.rows.expression import softmax
from tests import isas, reference

LANES = 16


def _conv2d(
    channels: int, out_channels: int, size: tuple[int, int], groups: int = 1, kernel: int = 1
) -> tuple[Callable, list[NDArray]]:
    window = windows.Window((kernel, kernel), (1, 1), (1, 1), (kernel // 2, 0, 0, kernel // 2))
    slots = reference.identity_slots(channels, LANES)
    band = conv.band_of(out_channels, channels, groups, len(slots) // LANES, LANES)
    weight = reference.random(out_channels, channels // groups, kernel, kernel)
    packed = conv.pack_conv_weight(weight, slots, groups, band, LANES)
    data = reference.random(1, len(slots) // LANES, *size, LANES)
    return lambda x, w: conv.conv2d(x, w, window, band), [data, packed]


def _gathered(channels: int, out_channels: int, size: tuple[int, int], groups: int) -> tuple[Callable, list[NDArray]]:
    """A gathered convolution and its inputs."""
    slots = reference.identity_slots(channels, LANES)
    out_slots = conv.grouped_slots(out_channels, channels, groups, LANES, in_order=False)
    gathering = conv.gathering_of(out_slots, slots, out_channels, channels, groups, LANES)
    weight = reference.random(out_channels, channels // groups, 1, 1)
    packed = conv.pack_gathered_weight(weight, out_slots, gathering, groups, LANES)
    data = reference.random(1, len(slots) // LANES, *size, LANES)
    window = windows.Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    return lambda x, w, t: conv.conv2d_gathered(x, w, t, window), [data, packed, gathering.table]


def _cases() -> Iterator[tuple[str, Callable, list[NDArray]]]:
    """Operators with tails, padding or tables, on inputs of whole cache lines."""
    table = np.random.default_rng(0).permutation(48).astype("int32")
    yield "block", lambda x: blocking.block_channels(x, 32), [reference.random(1, 48, 2, 4)]
    yield (
        "block shuffled channels",
        lambda x, t: blocking.block_channels(blocking.gather_channels(x, t), 32),
        [reference.random(1, 3, 2, 4, 16), table],
    )
    holes = np.where(np.arange(64) % 5, np.arange(64) % 48, -1).astype("int32")
    yield "gather", lambda x, t: blocking.gather_slots(x, t, 16), [reference.random(1, 48, 2, 4), holes]
    yield "convolution, a width without divisors", *_conv2d(16, 16, (3, 17), kernel=3)
    yield "convolution, 2 groups", *_conv2d(40, 40, (4, 4), 2)
    yield "convolution, 3 groups", *_conv2d(60, 30, (4, 4), 3)
    yield "gathered convolution", *_gathered(64, 64, (4, 4), 4)
    window = windows.Window((5, 5), (2, 2), (1, 1), (2, 2, 2, 2))
    image = [reference.random(1, 2, 5, 7, 16), reference.random(2, 5, 5, 16)]
    yield "depthwise", lambda x, w: depthwise.depthwise_conv2d(x, w, window), image
    first = [reference.random(1, 3, 8, 16), reference.random(1, 3, 5, 5, 16)]
    yield "first layer", lambda x, w: conv.conv2d_plain(x, w, window), first
    side = pool.AxisWindow(3, 2, before=1, after=1)
    for shape in ((1, 1, 5, 5, 16), (1, 16, 5, 5)):
        yield f"max pooling {shape}", lambda x: pool.max_pool2d(x, side, side), [reference.random(*shape)]
        yield f"mean pooling {shape}", lambda x: pool.avg_pool2d(x, side, side), [reference.random(*shape)]
    yield "dense", lambda x, w: matmul.dense(x, w, 20), [reference.random(17, 16), reference.random(2, 16, 16)]
    yield "product", lambda x, y: matmul.batch_matmul(x, y, 16), [reference.random(17, 16), reference.random(16, 24)]
    yield "softmax", lambda x: softmax(x, -1, 16), [reference.random(8, 22)]
    yield (
        "response norm",
        lambda x: local_response_norm.local_response_norm(x, 5, 0.1, 0.75, 1.0),
        [reference.random(1, 2, 2, 2, 16)],
    )


def _guarded(array: NDArray) -> NDArray:
    """A copy whose last byte is the last one before a page without access."""
    assert array.nbytes % 64 == 0, "kernels want their inputs aligned"
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + size), page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


def main(isa: str) -> None:
    """Run every case's default and a few other schedules."""
    from calumma import tvm_compat
    from calumma.operators import design_space
    from calumma.testing import require
    from calumma.tvm_compat import codegen
    from tests.prim_funcs import prim_func, tvm

    target = isas.target(isa)
    require(target)
    for name, operator, inputs in _cases():
        func = prim_func(operator, *(i.shape for i in inputs), dtypes=[str(i.dtype) for i in inputs])
        space = design_space(func, target, 2)
        shape = [int(d) for d in func.params[-1].ty.shape]
        for indices in [space.default(), *space.sample(np.random.default_rng(0), 2)]:
            library = codegen.build(space.schedule(space.decode(indices)).mod, tvm_compat.tvm_target(target, 2))
            repacking = space.repacking(space.decode(indices))
            packed = [repacking[i].apply(array) if i in repacking else array for i, array in enumerate(inputs)]
            arguments = [tvm.runtime.from_dlpack(_guarded(array)) for array in packed]
            sys.stdout.write(f"{name} {space.decode(indices)}\n")
            sys.stdout.flush()
            library["main"](*arguments, tvm.runtime.tensor(np.zeros(shape, "float32"), tvm.cpu()))
    sys.stdout.write("done\n")


@pytest.mark.parametrize("isa", isas.ISAS)
def test_nothing_is_read_behind_an_input(isa: str) -> None:
    code = "import sys; from tests.integration import test_memory_safety as t; t.main(sys.argv[1])"
    command = [sys.executable, "-c", code, isa]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert done.stdout.endswith("done\n"), f"{done.stdout.splitlines()[-1:]} {done.stderr[-300:]}"
