"""ONNX's own node cases with one attribute changed, dropped or added, and what is to be computed of them."""

from __future__ import annotations

import collections
import contextlib
import io
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import AttributeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks import onnx_cases
from benchmarks.onnx_cases import Case
from calumma.artifact import Artifact
from calumma.core.errors import ModelError
from calumma.frontend.importer import import_model
from calumma.graph.imported_model import ImportedModel
from calumma.graph.nodes import Graph
from tests.compiled_model import compiled

_BOGUS = "bogus"
_NOT_BY_REFERENCE = frozenset({"Attention.left_window_size", "GRU.clip", "LSTM.clip", "RNN.clip"})
"""Attributes that ONNX's reference implementation does not read, or gets wrong in company of others."""
_MOST_SETTINGS = 8
"""Elements up to which an integer input in one dimension is a setting: a constant of the model."""


@dataclass(frozen=True)
class Mutant:
    """A model of one node, and its inputs."""

    key: str
    """Operator and attribute."""
    name: str
    """Case and change."""
    model: bytes
    feeds: dict[str, NDArray[Any]]


def all_mutants() -> dict[str, list[Mutant]]:
    """All mutants by operator and attribute, in a fixed order."""
    found: dict[str, list[Mutant]] = collections.defaultdict(list)
    cases = [case for case in onnx_cases.all_cases(["node"]) if _is_single(case)]
    words = _words(cases)
    for case in cases:
        for mutant in _mutants(case, words):
            found[mutant.key].append(mutant)
    return dict(sorted(found.items()))


def sample(mutants: dict[str, list[Mutant]], each: int) -> list[Mutant]:
    """A fixed choice of mutants of every attribute."""
    ordered = (sorted(group, key=lambda mutant: zlib.crc32(mutant.name.encode())) for group in mutants.values())
    return [mutant for group in ordered for mutant in group[:each]]


def verdicts(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str, str]]:
    """What becomes of mutants that are compiled together: right, refused, unchecked, wrong or fault, and a note."""
    imported = []
    for mutant in mutants:
        try:
            imported.append((mutant, import_model(mutant.model)))
        except ModelError as error:
            yield mutant, *_refusal(error)
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            yield mutant, "fault", f"{type(error).__name__}: {error}"
    yield from _compiled_together(imported)


def _compiled_together(models: Sequence[tuple[Mutant, ImportedModel]]) -> Iterator[tuple[Mutant, str, str]]:
    if not models:
        return
    try:
        artifact = compiled(_joined([model for _, model in models]))
    except Exception as error:  # noqa: BLE001 - likewise
        if len(models) > 1:
            half = len(models) // 2
            yield from _compiled_together(models[:half])
            yield from _compiled_together(models[half:])
        elif isinstance(error, ModelError):
            yield models[0][0], *_refusal(error)
        else:
            yield models[0][0], "fault", f"{type(error).__name__}: {error}"
        return
    results = iter(_run(artifact, [mutant for mutant, _ in models]))
    for mutant, model in models:
        found = [next(results) for _ in model.graph.outputs]
        yield mutant, *_compared(mutant, found)


def _joined(models: Sequence[ImportedModel]) -> ImportedModel:
    """Models side by side in one graph."""
    inputs, outputs, names = [], [], []
    for index, model in enumerate(models):
        for node in model.graph.inputs:
            node.name = f"m{index}!{node.name.rpartition('!')[2]}"
        inputs += model.graph.inputs
        outputs += model.graph.outputs
        names += [f"m{index}!{name}" for name in model.graph.output_names]
    return ImportedModel(Graph(inputs, outputs, names), "mutants", "", {})


def _run(artifact: Artifact, mutants: Sequence[Mutant]) -> list[NDArray[Any]]:
    feeds = {f"m{index}!{name}": x for index, mutant in enumerate(mutants) for name, x in mutant.feeds.items()}
    return artifact.run({spec.name: feeds[spec.name] for spec in artifact.inputs})


def _refusal(error: ModelError) -> tuple[str, str]:
    text = str(error)
    return ("fault", f"not one line: {text}") if "\n" in text else ("refused", text)


def _compared(mutant: Mutant, found: Sequence[NDArray[Any]]) -> tuple[str, str]:
    """Right where ONNX Runtime or ONNX's reference implementation computes the same.

    One of them that gives another shape than ONNX infers is no judge; nor are both where they do not agree.
    """
    inferred = _inferred_shapes(mutant)
    judgements: list[list[NDArray[Any]]] = []
    for judge in [_by_onnxruntime] if mutant.key in _NOT_BY_REFERENCE else [_by_onnxruntime, _by_reference]:
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                wanted = judge(mutant)
        except Exception:  # noqa: BLE001 - they raise whatever they like
            continue
        if all(shape is None or np.shape(x) == shape for x, shape in zip(wanted, inferred, strict=True)):
            judgements.append(wanted)
    differences = [onnx_cases.difference(found, wanted, 1e-3, 1e-4) for wanted in judgements]
    if None in differences:
        return "right", ""
    if not judgements or onnx_cases.difference(judgements[0], judgements[-1], 1e-3, 1e-4) is not None:
        return "unchecked", ""
    return "wrong", str(differences[0])


def _inferred_shapes(mutant: Mutant) -> list[tuple[int, ...] | None]:
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(mutant.model), data_prop=True)
    tensors = [output.type.tensor_type for output in proto.graph.output]
    known = [t.HasField("shape") and all(dim.HasField("dim_value") for dim in t.shape.dim) for t in tensors]
    return [tuple(d.dim_value for d in t.shape.dim) if fixed else None for t, fixed in zip(tensors, known, strict=True)]


def _by_onnxruntime(mutant: Mutant) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(mutant.model, options, providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(None, mutant.feeds)
    return results


def _by_reference(mutant: Mutant) -> list[NDArray[Any]]:
    results: list[NDArray[Any]] = ReferenceEvaluator(onnx.load_from_string(mutant.model)).run(None, mutant.feeds)
    return results


# -- changes ------------------------------------------------------------------------------------------


def _is_single(case: Case) -> bool:
    """Whether a case is one node of a known operator, without sub-graphs."""
    model = onnx.load_from_string(case.model)
    node = model.graph.node[0]
    known = onnx.defs.has(node.op_type, _opset(model, node.domain), node.domain)
    graphs = any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute)
    return len(model.graph.node) == 1 and known and not graphs and not model.functions


def _opset(model: onnx.ModelProto, domain: str) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain == domain), 1)


def _words(cases: Sequence[Case]) -> dict[str, set[str]]:
    """The words that cases give to attributes of text, by operator and attribute."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for case in cases:
        node = onnx.load_from_string(case.model).graph.node[0]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.STRING:
                found[f"{node.op_type}.{attribute.name}"].add(attribute.s.decode())
    return found


def _mutants(case: Case, words: dict[str, set[str]]) -> Iterator[Mutant]:
    model = onnx.load_from_string(case.model)
    node = model.graph.node[0]
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for name, attribute in onnx.defs.get_schema(
        node.op_type, _opset(model, node.domain), node.domain
    ).attributes.items():
        key = f"{node.op_type}.{name}"
        if name in given:
            yield _mutant(case, key, "dropped", name, None)
        default = helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
        for value in _changes(int(attribute.type), given.get(name, default), words[key]):
            yield _mutant(case, key, f"{value}", name, value)


def _changes(kind: int, value: Any, words: set[str]) -> list[Any]:
    """Other values of an attribute of some type, which has a value or None."""
    if kind == AttributeProto.STRING:
        return [word for word in (*sorted(words), _BOGUS) if word.encode() != value]
    if kind == AttributeProto.INT:
        return [0, 1] if value is None else [value + 1, value - 1]
    if kind == AttributeProto.FLOAT:
        return [0.75] if value is None else [value * 0.5 + 0.25]
    if kind == AttributeProto.INTS and value:
        first, last = list(value), list(value)
        first[0], last[-1] = first[0] + 1, last[-1] - 1
        return [first, last, list(value)[:-1]]
    if kind == AttributeProto.FLOATS and value:
        return [[number * 0.5 + 0.25 for number in value], list(value)[:-1]]
    return []


def _mutant(case: Case, key: str, change: str, attribute: str, value: Any) -> Mutant:
    """A case with another value of an attribute (None: without it), and settings as constants."""
    model = onnx.load_from_string(case.model)
    node = model.graph.node[0]
    rest = [other for other in node.attribute if other.name != attribute]
    del node.attribute[:]
    node.attribute.extend(rest)
    if value is not None and value != []:
        node.attribute.append(helper.make_attribute(attribute, value))
    for output in model.graph.output:  # what it has now is not known
        output.type.tensor_type.ClearField("shape")
    feeds: dict[str, NDArray[Any]] = {}
    for value_info, array in zip(list(model.graph.input), case.data[0][0], strict=False):
        array = np.asarray(array)
        if feeds and array.ndim < 2 and array.size <= _MOST_SETTINGS and array.dtype.kind in "iub":
            model.graph.initializer.append(numpy_helper.from_array(array, value_info.name))
            model.graph.input.remove(value_info)
        else:
            feeds[value_info.name] = array
    return Mutant(key, f"{case.name}: {attribute} {change}", model.SerializeToString(), feeds)
