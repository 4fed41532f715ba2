"""The roofline of the machine: what it can compute and read per second, and the least time a task can take.

A short child process measures the limits with kernels that TVM compiles, so that no thread pool is left spinning in the
caller; the numbers are kept in the user's cache directory. Notation:

    P    peak, float32 flops/s of all threads together: multiply-adds on registers alone
    f    clock in Hz of one core: a chain of dependent integer operations, one per cycle
    p    flops per cycle of one core: lanes x 2 x multiply-adds per cycle, the latter rounded to a whole number
    B    bytes/s of all threads together, reading a buffer that stays in L2, stays in L3, or fits neither (DRAM)

On an idle machine P = threads x p x f within 5 %. Other load makes probes low, never high: every number is the best of
many short runs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from calumma import tvm_compat
from calumma.core import hardware as host
from calumma.core.errors import InputError
from calumma.target import Target

PROBE_VERSION = 1
"""Grows when a probe would measure something else; older caches are then left alone."""
TOLERANCE = 0.05
"""A peak this close to threads x flops per cycle x clock, as a share of it, was not disturbed."""

_NUMBERS = ("peak_flops", "core_flops", "clock_hz", "dram_bandwidth", "l3_bandwidth", "l2_bandwidth")
_ROUNDS = 5
_BURSTS = 10
_DRAM_BURSTS = 4
_BURST_CYCLES = 800_000
_CHILD_TIMEOUT_S = 60.0
_MOST_ATTEMPTS = 3
_UNROLL = 16
_STREAMS = 8
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class MachineLimits:
    """What `threads` threads of a CPU can do at best."""

    threads: int
    peak_flops: float
    """float32 flops/s of all threads together."""
    dram_bandwidth: float
    l3_bandwidth: float
    l2_bandwidth: float
    """Bytes/s that all threads together read from each level."""
    flops_per_cycle: float
    """float32 flops per cycle of one core: 2 per lane and multiply-add, a whole number of multiply-adds per cycle."""
    clock_hz: float
    """Clock of one core while it is busy."""
    l2_bytes: int
    """L2 of all threads together."""
    l3_bytes: int
    estimated: bool = False
    """True if nothing was measured: the numbers are what a CPU of this vector width typically does."""
    note: str = ""
    """How the peak agrees with the clock, or why it is estimated; one line for people."""

    @property
    def consistency(self) -> float:
        """Peak over threads x flops per cycle x clock: 1 on an idle machine, less if other load was there."""
        return self.peak_flops / (self.threads * self.flops_per_cycle * self.clock_hz)

    @property
    def confirmed(self) -> bool:
        """Whether the measured peak is within 5 % of threads x flops per cycle x clock."""
        return not self.estimated and abs(self.consistency - 1) <= TOLERANCE


def bound_s(
    flops: float, weight_bytes: float, activation_bytes: float, limits: MachineLimits, weights_resident: bool
) -> float:
    """Return the least time in seconds that one call of a task can take.

        t = max( flops / P,  W / B_W,  (W + A) / B_all )

    W, A: bytes of weights and of activations (inputs and outputs), each counted once. B_W is the bandwidth of L3 if the
    weights of the whole model stay there between two runs, else of DRAM. B_all is the bandwidth of the nearest level
    that holds W + A: L2, L3 or DRAM.

    Args:
        flops: float32 operations of one call.
        weights_resident: whether all weights of the model fit in L3.

    Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
    architectures", CACM 52(4), 2009: attainable flops/s = min(peak, bandwidth x intensity), here with one more ceiling
    for weights and written as time.
    """
    total = weight_bytes + activation_bytes
    if total <= limits.l2_bytes:
        bandwidth = limits.l2_bandwidth
    elif total <= limits.l3_bytes:
        bandwidth = limits.l3_bandwidth
    else:
        bandwidth = limits.dram_bandwidth
    weight_bandwidth = limits.l3_bandwidth if weights_resident else limits.dram_bandwidth
    return max(flops / limits.peak_flops, weight_bytes / weight_bandwidth, total / bandwidth)


def machine_limits(
    target: Target, threads: int, *, refresh: bool = False, child: ProbeChild | None = None
) -> MachineLimits:
    """Return the limits of `threads` threads, probed once per machine and then read from the user's cache directory.

    A cached probe that other load disturbed is repeated by later calls, three times at most; of two probes the better
    number of each kind is kept. Never fails for what happens in the probe: limits are then typical ones, with
    `estimated` set and the reason in `note`.

    Args:
        target: what code is compiled for; a CPU whose vector instructions this machine lacks is estimated.
        threads: 1 or more.
        refresh: probe again, whatever is cached.
        child: what `early_probe` has started for the same target and threads.

    Raises:
        InputError: `threads` is below 1.
    """
    if threads < 1:
        raise InputError(f"the roofline of {threads} threads does not exist: give 1 or more")
    cache = _cache_file(target, threads)
    attempts, best = _read(cache)
    if best and not refresh and _settled(attempts, best, target, threads):
        return _limits(best, target, threads)
    if not _runs_here(target):
        return typical_limits(target, threads, f"{target.mcpu} code cannot run on this machine, nothing was measured")
    try:
        probed = _probe_in_child(target, threads) if child is None else child.numbers()
    except _ProbeFailed as error:
        if best:
            return _limits(best, target, threads, f"; probing again failed: {error}")
        return typical_limits(target, threads, str(error))
    best = {name: max(value, best.get(name, 0.0)) for name, value in probed.items()}
    limits = _limits(best, target, threads)
    try:
        _write(cache, attempts + 1, best)
    except OSError as error:
        return _limits(best, target, threads, f"; not cached: {error}")
    return limits


def _settled(attempts: int, best: Mapping[str, float], target: Target, threads: int) -> bool:
    """Whether cached numbers are not to be improved by another probe."""
    return attempts >= _MOST_ATTEMPTS or _limits(best, target, threads).confirmed


class _ProbeFailed(Exception):
    """The probe gave no numbers; one line that says why."""


def _limits(numbers: Mapping[str, float], target: Target, threads: int, remark: str = "") -> MachineLimits:
    """Limits from measured numbers, with what they say about each other."""
    per_fma = 2.0 * target.lanes
    fmas = max(1, round(numbers["core_flops"] / (per_fma * numbers["clock_hz"])))
    limits = MachineLimits(
        threads=threads,
        peak_flops=numbers["peak_flops"],
        dram_bandwidth=numbers["dram_bandwidth"],
        l3_bandwidth=numbers["l3_bandwidth"],
        l2_bandwidth=numbers["l2_bandwidth"],
        flops_per_cycle=fmas * per_fma,
        clock_hz=numbers["clock_hz"],
        l2_bytes=threads * target.l2_bytes,
        l3_bytes=target.l3_bytes,
    )
    note = (
        f"peak {limits.peak_flops / 1e9:.0f} GFLOP/s is {limits.consistency:.0%} of threads ({threads}) x "
        f"flops per cycle ({limits.flops_per_cycle:.0f}) x clock ({limits.clock_hz / 1e9:.2f} GHz)"
    )
    if not limits.confirmed:
        note += ": other load on the machine, or a lower clock with all threads busy"
    return replace(limits, note=note + remark)


def typical_limits(target: Target, threads: int, reason: str) -> MachineLimits:
    """What a CPU of this kind typically does, where nothing can be measured; `reason` is a line that says why."""
    typical = target.typical
    per_cycle = 2.0 * target.lanes * typical.fmas_per_cycle
    cycles = threads * typical.clock_hz
    return MachineLimits(
        threads=threads,
        peak_flops=cycles * per_cycle,
        dram_bandwidth=typical.dram_bandwidth,
        l3_bandwidth=cycles * typical.l3_bytes_per_cycle,
        l2_bandwidth=cycles * typical.l2_bytes_per_cycle,
        flops_per_cycle=per_cycle,
        clock_hz=typical.clock_hz,
        l2_bytes=threads * target.l2_bytes,
        l3_bytes=target.l3_bytes,
        estimated=True,
        note=f"estimated: {reason}",
    )


def _runs_here(target: Target) -> bool:
    """Whether this machine has every vector instruction of `target`: an older or a baseline CPU can be probed."""
    return set(target.vector_features) <= set(tvm_compat.target_for().vector_features)


# -- the cache ------------------------------------------------------------------------------------


def limits_name(target: Target, threads: int) -> str:
    """Under which name the limits of a CPU's threads are kept (`core.hardware.limits_file`)."""
    return f"{target.hardware.fingerprint}-{threads}-v{PROBE_VERSION}"


def _cache_file(target: Target, threads: int) -> Path:
    return host.limits_file(limits_name(target, threads))


def _read(cache: Path) -> tuple[int, dict[str, float]]:
    """Number of probes and their best numbers; (0, {}) for a cache that is missing, damaged or of another machine."""
    try:
        data = json.loads(cache.read_text())
    except (OSError, ValueError):
        return 0, {}
    if not isinstance(data, dict) or data.get("machine") != _machine():
        return 0, {}
    attempts, numbers = data.get("attempts"), data.get("numbers")
    if type(attempts) is not int or attempts < 1 or not _sound(numbers):
        return 0, {}
    return attempts, numbers


def _sound(numbers: Any) -> TypeGuard[dict[str, float]]:
    """Whether `numbers` has exactly the fields of a probe, each a finite float above 0."""
    return (
        isinstance(numbers, dict)
        and set(numbers) == set(_NUMBERS)
        and all(isinstance(value, float) and math.isfinite(value) and value > 0 for value in numbers.values())
    )


def _write(cache: Path, attempts: int, numbers: Mapping[str, float]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": _machine(), "attempts": attempts, "numbers": dict(numbers)}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=cache.parent, suffix=".tmp", delete=False) as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, cache)
        except OSError:
            os.unlink(file.name)
            raise


def _machine() -> str:
    """The CPU that probes run on: homes may be shared, and `Hardware` may name a baseline that many CPUs meet."""
    return host.cpu_info().get("model name", "unknown")


# -- the probe, in a process of its own -----------------------------------------------------------


class ProbeChild:
    """The process that probes: started, it loads TVM and builds its kernels; it measures when it is asked.

    Until then the caller may work; while it measures, it should not.
    """

    def __init__(self, target: Target, threads: int) -> None:
        """Start it; that it cannot be started is said by `numbers`."""
        code = "from calumma import tvm_compat; tvm_compat.load(); from calumma.tasks.roofline import main; main()"
        command = [sys.executable, "-c", code, target.to_text(), str(threads)]
        environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
        self._process: subprocess.Popen[str] | None = None
        self._failure = ""
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            self._failure = str(error)

    def numbers(self) -> dict[str, float]:
        """Measure; see `probe`. Raises _ProbeFailed."""
        if self._process is None:
            raise _ProbeFailed(f"the probe gave no answer: {self._failure}")
        try:
            stdout, stderr = self._process.communicate("measure\n", timeout=_CHILD_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _ProbeFailed(f"the probe gave no answer: {error}") from error
        if self._process.returncode:
            last = (stderr.splitlines() or ["no message"])[-1]
            raise _ProbeFailed(f"the probe ended with status {self._process.returncode}: {last}")
        try:
            numbers = json.loads((stdout.splitlines() or [""])[-1])
        except ValueError:
            numbers = None
        if not _sound(numbers):
            raise _ProbeFailed(f"the probe printed no numbers but {stdout[-80:]!r}")
        return numbers

    def close(self) -> None:
        """End it, measured or not."""
        if self._process is not None:
            with self._process:
                self._process.kill()


@contextmanager
def early_probe(target: Target, threads: int) -> Iterator[ProbeChild | None]:
    """Start the probe's process while something else is still to be done; None where limits are known already.

    It is ended when the block is left.
    """
    attempts, best = _read(_cache_file(target, threads))
    known = best and _settled(attempts, best, target, threads)
    child = None if known or not _runs_here(target) else ProbeChild(target, threads)
    try:
        yield child
    finally:
        if child is not None:
            child.close()


def _probe_in_child(target: Target, threads: int) -> dict[str, float]:
    with closing(ProbeChild(target, threads)) as child:
        return child.numbers()


def probe(target: Target, threads: int, *, when_ready: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Measure this machine in this process; returns the best of every number by name.

    `core_flops` is the peak of one thread; the other names are those of `MachineLimits`. `when_ready` is called before
    anything is measured, when the kernels are built.
    """
    tvm_compat.set_threads(threads)
    lanes = target.lanes
    chains = target.probe_chains
    fma_steps = _BURST_CYCLES // chains
    rows = {
        name: max(1, size // (threads * _STREAMS * lanes * 4)) for name, size in _read_bytes(target, threads).items()
    }
    shape = (threads, max(rows.values()), _STREAMS, lanes)
    # The smaller buffers are read again and again in one burst, to make its start cheap beside it.
    passes = {name: max(1, rows["l3"] // count) for name, count in rows.items()}
    functions = {
        "clock": _chain_kernel("clock", _BURST_CYCLES // (2 * _UNROLL)),
        "core": _fma_kernel("core", 1, chains, lanes, fma_steps),
        "peak": _fma_kernel("peak", threads, chains, lanes, fma_steps),
        "fill": _fill_kernel("fill", shape),
    } | {name: _read_kernel(name, shape, rows[name], passes[name]) for name in rows}
    library = tirx.build(tvm.IRModule(functions), target=tvm_compat.tvm_target(target, threads))

    def zeros(*shape: int, dtype: str = "float32") -> Any:
        return tvm.runtime.tensor(np.zeros(shape, dtype))

    integers = tvm.runtime.tensor(np.array([0x9E3779B1, 0x7F4A7C15], "uint32"))
    # x <- x / 2 + 1 / 2 stays near 1: neither denormal nor infinite.
    halves = tvm.runtime.tensor(np.full((2, lanes), 0.5, "float32"))
    data = tvm.runtime.empty(shape, "float32")
    library["fill"](data)
    sums = zeros(threads, _STREAMS, lanes)
    arguments = {
        "clock": (integers, zeros(1, dtype="uint32")),
        "core": (halves, zeros(1, chains, lanes)),
        "peak": (halves, zeros(threads, chains, lanes)),
    } | dict.fromkeys(rows, (data, sums))
    fastest_s = dict.fromkeys(arguments, math.inf)
    when_ready()
    for _ in range(_ROUNDS):
        for name, tensors in arguments.items():
            evaluator = library.time_evaluator(
                name, tvm.cpu(), number=1, repeat=_DRAM_BURSTS if name == "dram" else _BURSTS
            )
            fastest_s[name] = min(fastest_s[name], *evaluator(*tensors).results)

    core_flops = 2.0 * lanes * chains * fma_steps
    vector_bytes = 4.0 * lanes * _STREAMS * threads
    return {
        "peak_flops": threads * core_flops / fastest_s["peak"],
        "core_flops": core_flops / fastest_s["core"],
        "clock_hz": _BURST_CYCLES / fastest_s["clock"],
    } | {f"{name}_bandwidth": passes[name] * rows[name] * vector_bytes / fastest_s[name] for name in rows}


def _read_bytes(target: Target, threads: int) -> dict[str, int]:
    """Bytes to read in order to see each level: within it, and well beyond the one before.

    Behind many cores there is more than one L3, of which `Hardware` knows one: hence DRAM's share per thread.
    """
    l2 = threads * target.l2_bytes
    wanted = {
        "l2": l2 // 2,
        "l3": max(target.l3_bytes // 2, 2 * l2),
        "dram": max(3 * target.l3_bytes, 4 * l2, threads * (16 << 20)),
    }
    return {name: min(size, _MOST_BYTES) for name, size in wanted.items()}


# -- its kernels ----------------------------------------------------------------------------------


def _chain_kernel(name: str, steps: int) -> tirx.PrimFunc:
    """x <- (x + a) ^ b: two operations of one cycle each, which no compiler can shorten; `_UNROLL` times per step."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        operands = T.arg("operands", T.buffer((2,), "uint32"))
        out = T.arg("out", T.buffer((1,), "uint32"))
        x = T.alloc_buffer((1,), "uint32", scope="local")
        T.buffer_store(x, operands[0], [0])
        with T.serial(steps), T.unroll(_UNROLL):
            T.buffer_store(x, (x[0] + operands[0]) ^ operands[1], [0])
        T.buffer_store(out, x[0], [0])
    return builder.get()


def _fma_kernel(name: str, threads: int, chains: int, lanes: int, steps: int) -> tirx.PrimFunc:
    """Per thread `chains` vectors in registers, each x <- x * a + b, `steps` times."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        operands = T.arg("operands", T.buffer((2, lanes), "float32"))
        out = T.arg("out", T.buffer((threads, chains, lanes), "float32"))
        with T.parallel(threads) as thread:
            x = T.alloc_buffer((chains, lanes), "float32", scope="local")
            # Chains that start alike would be computed once.
            with T.unroll(chains) as chain, T.vectorized(lanes) as lane:
                T.buffer_store(x, T.cast(chain, "float32"), [chain, lane])
            with T.serial(steps), T.unroll(chains) as chain, T.vectorized(lanes) as lane:
                T.buffer_store(x, x[chain, lane] * operands[0, lane] + operands[1, lane], [chain, lane])
            with T.unroll(chains) as chain, T.vectorized(lanes) as lane:
                T.buffer_store(out, x[chain, lane], [thread, chain, lane])
    return builder.get()


def _read_kernel(name: str, shape: tuple[int, int, int, int], rows: int, passes: int) -> tirx.PrimFunc:
    """Each thread sums the first `rows` of its share of a buffer (threads, rows, streams, lanes), `passes` times."""
    threads, _, streams, lanes = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        data = T.arg("data", T.buffer(shape, "float32"))
        out = T.arg("out", T.buffer((threads, streams, lanes), "float32"))
        with T.parallel(threads) as thread:
            x = T.alloc_buffer((streams, lanes), "float32", scope="local")
            with T.unroll(streams) as stream, T.vectorized(lanes) as lane:
                T.buffer_store(x, T.float32(0), [stream, lane])
            with T.serial(passes), T.serial(rows) as row, T.unroll(streams) as stream, T.vectorized(lanes) as lane:
                T.buffer_store(x, x[stream, lane] + data[thread, row, stream, lane], [stream, lane])
            with T.unroll(streams) as stream, T.vectorized(lanes) as lane:
                T.buffer_store(out, x[stream, lane], [thread, stream, lane])
    return builder.get()


def _fill_kernel(name: str, shape: tuple[int, int, int, int]) -> tirx.PrimFunc:
    """Each thread writes its share, for pages that nobody wrote are all the same one in memory."""
    threads, rows, streams, lanes = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        data = T.arg("data", T.buffer(shape, "float32"))
        with T.parallel(threads) as thread, T.grid(rows, streams) as (row, stream), T.vectorized(lanes) as lane:
            T.buffer_store(data, T.float32(1), [thread, row, stream, lane])
    return builder.get()


def main() -> None:
    """Probe for the target given as JSON with a number of threads, once a line comes on stdin; print JSON in a line."""
    target, threads = Target.from_text(sys.argv[1]), int(sys.argv[2])

    def wait() -> None:
        if not sys.stdin.readline():  # nobody wants to know any more
            sys.exit()

    sys.stdout.write(json.dumps(probe(target, threads, when_ready=wait)) + "\n")
