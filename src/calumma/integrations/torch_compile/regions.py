"""The backend that Dynamo calls, and the compiled region that it puts in the place of a graph.

A region is compiled at its first call, when Dynamo is done and the arguments are known: one version for the tensors it
folds and, where Dynamo leaves sizes open, for the sizes of the call. Another call may need another version. Modules
of one class share a region, each with versions of its own.
"""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from calumma.artifact import Artifact, load
from calumma.core import hardware
from calumma.core.errors import ArtifactError, EnvironmentFault, InputError, InternalError, ModelError
from calumma.core.pages import ALIGNMENT
from calumma.integrations.torch_compile import cache
from calumma.integrations.torch_compile.backend_options import Options
from calumma.integrations.torch_compile.graph import RegionGraph, RegionOutput, lines

MOST_SIZES = 8
"""Combinations of sizes that a region is compiled for with the same weights: as many as Dynamo itself tries."""


class FallbackWarning(UserWarning):
    """A region that runs as torch would run it; the message says why."""


def backend(
    module: torch.fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a graph of Dynamo's: `torch.compile(model, backend="calumma", options={...})`.

    Args:
        module: the graph.
        example_inputs: its arguments; what matters of them is in the graph.
        options: see `Options`.

    Returns:
        What to call in place of the graph: a `Region`, or the graph itself: after a warning, or where it computes
        nothing, because it returns arguments and views of them.

    Raises:
        InputError: an option is unknown or has no sense.
    """
    settings = Options.parse(options)
    try:
        if torch.is_autocast_enabled("cpu"):
            raise ModelError("autocast is on, and calumma computes in float32; leave torch.autocast")
        graph = RegionGraph(module)
        return Region(module, graph, settings) if graph.outputs else module.forward
    except ModelError as error:
        _warn(error)
        return module.forward


class Region:
    """A graph with the versions of it that have been compiled."""

    def __init__(self, module: torch.fx.GraphModule, graph: RegionGraph, options: Options) -> None:
        self._module = module
        self._graph = graph
        self._options = options
        self._versions: list[_Version] = []
        self._refused: list[_Call] = []
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """Run on the arguments of the graph; the same results, and results that are the caller's."""
        version = self._find(arguments)
        if version is None and not self._is_refused(arguments):
            version = self._add(arguments)
        if version is not None:
            try:
                return version(arguments)
            except EnvironmentFault as error:  # of this Python thread: another one may have threads enough
                _warn(error)
        return self._module.forward(*arguments)

    def _find(self, arguments: Sequence[Any]) -> _Version | None:
        return next((version for version in self._versions if version.fits(arguments)), None)

    def _is_refused(self, arguments: Sequence[Any]) -> bool:
        return any(call.fits(arguments) for call in self._refused)

    def _add(self, arguments: Sequence[Any]) -> _Version | None:
        """Compile for these arguments; None, after a warning, where that is not possible."""
        with self._lock:
            found = self._find(arguments)  # another thread may have been faster
            if found is not None or self._is_refused(arguments):
                return found
            self._versions = [version for version in self._versions if version.is_alive]
            self._refused = [call for call in self._refused if call.is_alive]
            call = _Call(self._graph, arguments)
            known = [*(version.call for version in self._versions), *self._refused]
            try:
                if sum(other.has_tensors_of(arguments) for other in known) >= MOST_SIZES:
                    call = call.of_any_size()
                    raise ModelError(
                        f"a region was called with more than {MOST_SIZES} combinations of sizes for the same weights; "
                        "to have all of them compiled, pad the inputs to fewer"
                    )
                version = _compile(self._graph, arguments, self._options, call)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the model can run without us
                _warn(error)
                self._refused.append(call)  # to try again would cost seconds at every call
                return None
            self._versions.append(version)
            return version


class _Call:
    """What tells calls of a region apart: the tensors it folds, whatever their contents, and sizes that are open."""

    def __init__(self, graph: RegionGraph, arguments: Sequence[Any]) -> None:
        self._tensors = [(i, weakref.ref(arguments[i])) for i in graph.folded]
        self._sizes = [(i, _size(arguments[i])) for i in (*graph.sizes, *graph.inputs)] if graph.is_open else []

    def of_any_size(self) -> _Call:
        """The calls with the same tensors."""
        call = copy.copy(self)
        call._sizes = []
        return call

    @property
    def is_alive(self) -> bool:
        """Whether there may be another call that it fits."""
        return all(tensor() is not None for _, tensor in self._tensors)

    def has_tensors_of(self, arguments: Sequence[Any]) -> bool:
        return all(tensor() is arguments[i] for i, tensor in self._tensors)

    def fits(self, arguments: Sequence[Any]) -> bool:
        return self.has_tensors_of(arguments) and all(_size(arguments[i]) == size for i, size in self._sizes)


@dataclass(frozen=True)
class _Folded:
    """A tensor that is compiled in, and how to tell that it still has the contents it had then."""

    reference: weakref.ref[torch.Tensor]
    version: int
    address: int
    storage: StorageWeakRef
    """An address can be given to another tensor once it is free; while this refers to a storage, no other is taken for
    it."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Folded:
        if tensor.is_inference():
            raise ModelError(
                "a parameter or buffer was made under torch.inference_mode(), which does not count changes; "
                "make the model outside of it"
            )
        storage = StorageWeakRef(tensor.untyped_storage())
        return cls(weakref.ref(tensor), tensor._version, tensor.data_ptr(), storage)

    @property
    def holds(self) -> bool:
        tensor = self.reference()
        return (
            tensor is not None
            and tensor._version == self.version
            and tensor.data_ptr() == self.address
            and tensor.untyped_storage()._cdata == self.storage.cdata
        )


class _Version:
    """A region compiled for calls of one kind, and for the contents that the folded tensors had then."""

    def __init__(self, graph: RegionGraph, call: _Call, folded: Sequence[_Folded], artifact: Artifact) -> None:
        self.call = call
        self._graph = graph
        self._folded = folded
        self._artifact = artifact
        # Inputs that turned out to decide nothing are not the artifact's.
        self._inputs = [graph.inputs[int(spec.name.removeprefix("input_"))] for spec in artifact.inputs]
        self._outputs = list(zip(graph.outputs, [spec.shape for spec in artifact.outputs], strict=True))

    @property
    def is_alive(self) -> bool:
        """Whether there may be another call that it fits."""
        return all(folded.holds for folded in self._folded)

    def fits(self, arguments: Sequence[Any]) -> bool:
        return self.call.fits(arguments) and self.is_alive

    def __call__(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        # New memory for every call: what a caller got stays as it is.
        results = [torch.empty(shape, dtype=output.computed_dtype) for output, shape in self._outputs]
        shapes = self._artifact.run_into([_usable(arguments[i]) for i in self._inputs], results)
        results = [
            result if result.shape == shape else result[tuple(map(slice, shape))].clone()
            for result, shape in zip(results, shapes, strict=True)
        ]
        laid_out = [_laid_out(result, output) for result, (output, _) in zip(results, self._outputs, strict=True)]
        return self._graph.returned(laid_out, arguments)


def _size(argument: Any) -> Any:
    return argument.shape if isinstance(argument, torch.Tensor) else argument


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where kernels cannot read it as it lies."""
    tensor = tensor.detach().resolve_neg().contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _laid_out(result: torch.Tensor, output: RegionOutput) -> torch.Tensor:
    if output.dtype.is_complex:
        result = torch.view_as_complex(result)
    if output.stride is None or output.stride == result.stride():
        return result
    return torch.empty_strided(result.shape, output.stride, dtype=output.dtype).copy_(result)


def _compile(graph: RegionGraph, arguments: Sequence[Any], options: Options, call: _Call) -> _Version:
    """Take a version from the cache, or compile it and put it there. Raises CalummaError."""
    folded = [_Folded.of(arguments[i]) for i in graph.folded]
    threads = options.threads or min(torch.get_num_threads(), hardware.physical_cores())
    # Tensors of inference mode cannot be exported.
    with torch.inference_mode(False), torch.no_grad():
        bound = graph.bind(arguments)
        inputs = [torch.zeros(arguments[i].shape, dtype=arguments[i].dtype) for i in graph.inputs]
        digests = cache.digests({**dict(bound.named_parameters()), **dict(bound.named_buffers())})
        settings = {**asdict(options), "threads": threads, "default dtype": torch.get_default_dtype()}
        key = cache.key(lines(bound, inputs, digests), settings)
        artifact = cache.read(key, threads)
        if artifact is None:
            artifact = _build(bound, inputs, options, threads, key)
    expected = [str(output.computed_dtype).removeprefix("torch.") for output in graph.outputs]
    if [spec.dtype for spec in artifact.outputs] != expected:
        raise InternalError(f"compiled outputs are {list(artifact.outputs)}, torch's have types {expected}")
    return _Version(graph, call, folded, artifact)


def _build(
    bound: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], options: Options, threads: int, key: str
) -> Artifact:
    """Compile or tune, keep the result in the cache, and make it ready to run."""
    from calumma import api
    from calumma.core.values import Budget

    result: api.CompileResult | api.TuneResult
    if options.measures:
        result = api.tune(
            bound,
            example_inputs=inputs,
            budget=Budget(options.budget or None, options.trials),
            strategy=options.strategy or api.DEFAULT_STRATEGY,
            seed=options.seed,
            threads=threads,
            database=options.database,
            prior=options.prior,
            tolerance=options.tolerance,
            precision=options.precision,
        )
    else:
        result = api.compile(
            bound,
            example_inputs=inputs,
            threads=threads,
            database=options.database,
            prior=options.prior,
            tolerance=options.tolerance,
            precision=options.precision,
        )
    if not cache.in_use():
        return result.artifact
    try:
        artifact = load(cache.write(key, result), threads)
        cache.trim()
        return artifact
    except (ArtifactError, EnvironmentFault, OSError) as error:
        message = f"a compiled region is not kept: {error}; the next process compiles it again"
        warnings.warn(message, cache.CacheWarning, stacklevel=2)
        return result.artifact


_warned: set[str] = set()


def _warn(error: Exception) -> None:
    """Say why a region is left to torch, once in a process for each reason."""
    reason = str(error) if isinstance(error, InputError) else f"a fault of calumma's: {type(error).__name__}: {error}"
    message = f"calumma leaves a part of the model to torch: {reason}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, FallbackWarning, stacklevel=2)
