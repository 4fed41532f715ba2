"""torch's own operator database, through `torch.compile`, against eager torch.

Every operator of `torch.testing._internal.common_methods_invocations.op_db` that computes in float32 on the CPU, with
some of its own sample inputs, forward only. Each operator runs in a process of its own, forked from one that has loaded
torch and the compiler, with a limit on its time.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

VERDICTS = ("right", "fallback", "no region", "wrong", "error", "crash", "hang", "not comparable")
"""Compiled and equal to eager; left to torch, with a reason; nothing for a compiler to see; different; and so on. Not
comparable is what eager torch does not repeat, or gives no tensors for."""

_TIMEOUT_S = 120.0
_LARGEST_ELEMENTS = 10_000
_RTOL, _ATOL = 1e-3, 1e-4


@dataclass(frozen=True)
class Outcome:
    """What became of one sample of an operator."""

    operator: str
    sample: int
    verdict: str
    note: str


def operators() -> list[Any]:
    """The database's operators that compute in float32, in order of their names."""
    import torch
    from torch.testing._internal.common_methods_invocations import op_db

    return sorted((op for op in op_db if torch.float32 in op.supported_dtypes("cpu")), key=_name)


def outcomes(chosen: Sequence[Any], samples: int, jobs: int) -> Iterator[list[Outcome]]:
    """Run operators, `jobs` at a time; what became of each's samples, in order."""
    import torch._dynamo
    import torch._inductor.utils

    from calumma import tvm_compat
    from calumma.frontend.torch import import_torch  # noqa: F401
    from calumma.integrations import torch_compile  # noqa: F401

    tvm_compat.load()
    torch.set_num_threads(1)  # threads of a pool do not survive a fork
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        os.environ["CALUMMA_CACHE"] = folder  # everything is compiled
        yield from pool.map(lambda op: _isolated(op, samples), chosen)


@dataclass(frozen=True)
class CoreOperator:
    """An operator of core ATen, and how it is computed."""

    name: str
    how: str
    """"rule", "decomposed" by torch into others, or "missing"."""
    reason: str


_NOT_COMPUTED = {
    "a number for Python, known at run time only": ("_local_scalar_dense",),
    "the shape of its result depends on values": ("nonzero",),
    "sizes and places in memory are fixed when a module is exported": ("sym_storage_offset", "sym_is_contiguous"),
    "it changes the statistics that it is given": ("_native_batch_norm_legit",),
}


def core_operators() -> list[CoreOperator]:
    """All that torch tags as core ATen, by name."""
    import torch

    from calumma.frontend.torch import rules  # noqa: F401 - registers them
    from calumma.frontend.torch.aten_registry import known_operators

    packets = (getattr(torch.ops.aten, name) for name in dir(torch.ops.aten))
    overloads = [getattr(p, o) for p in packets if hasattr(p, "overloads") for o in p.overloads()]
    core = sorted({op for op in overloads if torch.Tag.core in op.tags}, key=str)
    known = known_operators()
    table = {**torch._decomp.decomposition_table, **torch.export.default_decompositions()}
    return [CoreOperator(op.__name__, *_how(op, known, table)) for op in core]


def _how(op: Any, known: frozenset[str], table: Any) -> tuple[str, str]:
    import torch

    if op.__name__ in known:
        return "rule", ""
    if torch.Tag.nondeterministic_seeded in op.tags:
        return "missing", "it draws random numbers, and a compiled model computes the same at every call"
    reasons = [why for why, names in _NOT_COMPUTED.items() if op.__name__.removesuffix(".default") in names]
    if op in table and not reasons:
        return "decomposed", ""
    return "missing", reasons[0] if reasons else "it has no rule"


def _name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def _isolated(op: Any, samples: int) -> list[Outcome]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(op, samples, sender))
    found: list[Outcome] = []
    process.start()
    sender.close()
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            found.append(receiver.recv())
        process.kill()
        found.append(Outcome(_name(op), len(found), "hang", f"no end in {_TIMEOUT_S:g} s"))
        process.join()
    except EOFError:
        process.join()
        if process.exitcode:
            found.append(Outcome(_name(op), len(found), "crash", f"exit status {process.exitcode}"))
    return found


def _child(op: Any, samples: int, sender: Connection) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import torch

    with torch.no_grad():
        for number, sample in enumerate(small_samples(op, samples)):
            sender.send(Outcome(_name(op), number, *tried(op, sample)))
    sender.close()
    os._exit(0)


def small_samples(op: Any, count: int, dtype: Any = None) -> Iterator[Any]:
    """Some of an operator's samples, from the first on at equal distances: databases begin with the plain ones.

    Args:
        dtype: of the samples; float32 without.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    def is_small(sample: Any) -> bool:
        tensors = [x for x in tree_leaves((sample.input, sample.args, sample.kwargs)) if isinstance(x, torch.Tensor)]
        return bool(tensors) and sum(tensor.numel() for tensor in tensors) <= _LARGEST_ELEMENTS

    given = op.sample_inputs("cpu", dtype or torch.float32, requires_grad=False)
    found = [sample for sample in given if is_small(sample)]
    step = max(1, len(found) // count)
    yield from found[::step][:count]


def tried(op: Any, sample: Any) -> tuple[str, str]:
    """The verdict on a sample of an operator, and what there is to say about it."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten

    from calumma.integrations.torch_compile import regions

    leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def function(*given: torch.Tensor) -> Any:
        remaining = iter(given)
        filled = [next(remaining) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        first, args, kwargs = tree_unflatten(filled, spec)
        return op.op(first, *args, **kwargs)

    try:
        expected, again = (_outputs(function(*(t.clone() for t in tensors))) for _ in range(2))
    except Exception as error:  # noqa: BLE001 - eager torch refuses some of its own samples
        return "not comparable", f"eager: {type(error).__name__}"
    if not expected or _difference(again, expected):
        return "not comparable", "no tensors, or other values every time"
    compiled: list[int] = []
    build = regions._build

    def counted(*args: Any) -> Any:
        compiled.append(1)
        return build(*args)

    torch._dynamo.reset()
    regions._warned.clear()
    regions._build = counted  # type: ignore[assignment]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = _outputs(torch.compile(function, backend="calumma")(*(t.clone() for t in tensors)))
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            return "error", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        finally:
            regions._build = build
    reasons = [str(w.message) for w in caught if issubclass(w.category, regions.FallbackWarning)]
    flaw = _difference(found, expected)
    if flaw:
        return "wrong", flaw
    if reasons:
        return "fallback", reasons[0]
    return ("right", "") if compiled else ("no region", "")


def _outputs(result: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided]


def _difference(found: Sequence[Any], expected: Sequence[Any]) -> str:
    import torch

    if len(found) != len(expected):
        return f"{len(found)} results, expected {len(expected)}"
    for index, (left, right) in enumerate(zip(found, expected, strict=True)):
        try:
            torch.testing.assert_close(left, right, rtol=_RTOL, atol=_ATOL, equal_nan=True)
        except AssertionError as error:
            return f"result {index}: {' '.join(str(error).split())[:200]}"
    return ""
