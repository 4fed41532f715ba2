"""Linear models and the preparation of features, of the domain ai.onnx.ml, for tensors of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx

from calumma.graph.build import cast, expression, operator, reshape, scalar
from calumma.graph.nodes import Node, constant
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics.indices import gathered
from calumma.semantics.movement import concatenated, sliced
from calumma.semantics.reductions import index_of_extremum

ML = "ai.onnx.ml"
_SMALLEST = 1e-30


@onnx_rule("Binarizer", domain=ML)
def binarizer(node: OnnxNode) -> Node:
    x = node.input(0)
    above = operator(relax.op.greater, x, scalar(node.attribute("threshold"), x.dtype))
    return cast(above, x.dtype)


@onnx_rule("Scaler", domain=ML)
def scaler(node: OnnxNode) -> Node:
    x = cast(node.input(0), "float32")
    offset, scale = (
        np.asarray(node.attribute(name, default), "float32") for name, default in (("offset", 0.0), ("scale", 1.0))
    )
    return operator(relax.op.multiply, operator(relax.op.subtract, x, constant(offset)), constant(scale))


@onnx_rule("Normalizer", domain=ML)
def normalizer(node: OnnxNode) -> Node:
    x = cast(node.input(0), "float32")
    kind = node.choice("norm", ("MAX", "L1", "L2"))
    axis = len(x.shape) - 1
    if kind == "MAX":
        norm = operator(relax.op.max, x, axis=[axis], keepdims=True)
    else:
        magnitude = operator(relax.op.abs, x) if kind == "L1" else operator(relax.op.multiply, x, x)
        norm = operator(relax.op.sum, magnitude, axis=[axis], keepdims=True)
        norm = norm if kind == "L1" else operator(relax.op.sqrt, norm)
    is_zero = operator(relax.op.equal, norm, scalar(0, x.dtype))
    return operator(relax.op.divide, x, operator(relax.op.where, is_zero, scalar(1, x.dtype), norm))


@onnx_rule("Imputer", domain=ML)
def imputer(node: OnnxNode) -> Node:
    """Replaces one value, which may be NaN, by one for all columns or one for each."""
    x = node.input(0)
    kind = "float" if x.dtype.startswith("float") else "int64"
    node.ignore(*(f"{name}{'int64' if kind == 'float' else 'float'}{s}" for name, s in _IMPUTER))
    values = np.asarray(node.attribute(f"imputed_value_{kind}s"), x.dtype)
    replaced = node.attribute(f"replaced_value_{kind}")
    is_missing = (
        operator(relax.op.isnan, x) if replaced != replaced else operator(relax.op.equal, x, scalar(replaced, x.dtype))
    )
    return operator(relax.op.where, is_missing, constant(values), x)


_IMPUTER = (("imputed_value_", "s"), ("replaced_value_", ""))


@onnx_rule("ArrayFeatureExtractor", domain=ML)
def feature_extractor(node: OnnxNode) -> Node:
    x, indices = node.input(0), node.input(1)
    picked = gathered(x, reshape(indices, (int(np.prod(indices.shape)),)), len(x.shape) - 1)
    return reshape(picked, (1, *picked.shape)) if len(x.shape) == 1 else picked


@onnx_rule("FeatureVectorizer", domain=ML)
def feature_vectorizer(node: OnnxNode) -> Node:
    parts = []
    for x, width in zip(node.inputs(), node.attribute("inputdimensions"), strict=True):
        x = cast(x if len(x.shape) == 2 else reshape(x, (x.shape[0], 1)), "float32")
        missing = int(width) - x.shape[1]
        if missing > 0:
            x = concatenated([x, constant(np.zeros((x.shape[0], missing), "float32"))], 1)
        parts.append(sliced(x, {1: slice(0, int(width))}) if missing < 0 else x)
    return concatenated(parts, 1)


@onnx_rule("OneHotEncoder", domain=ML)
def one_hot_encoder(node: OnnxNode) -> Node:
    """Categories that are numbers; what is none of them becomes zeros."""
    x = node.input(0)
    categories = np.asarray(node.attribute("cats_int64s"), "int64")
    if not node.attribute("zeros"):
        raise node.refused("values that are no category would end the run", "set zeros to 1")
    last = operator(relax.op.expand_dims, cast(x, "int64"), len(x.shape))
    return cast(operator(relax.op.equal, last, constant(categories)), "float32")


@onnx_rule("LabelEncoder", since=2, domain=ML)
def label_encoder(node: OnnxNode) -> Node:
    """Numbers for numbers."""
    x = node.input(0)
    keys, values = (_numbers(node, kind) for kind in ("keys", "values"))
    if keys is None or values is None or len(keys) != len(values):
        raise node.refused("it maps text, or as many keys as there are not values")
    given = node.attribute("default_tensor", None)
    default = node.attribute("default_int64" if values.dtype == np.int64 else "default_float")
    default = default if given is None else given.reshape(-1)[0]
    node.ignore("default_string", "default_int64", "default_float")

    def looked_up(x: te.Tensor, keys: te.Tensor, values: te.Tensor) -> te.Tensor:
        count = int(keys.shape[0])
        k = te.reduce_axis((0, count), "k")

        def place(*i: tirx.Var) -> tirx.Expr:
            found = tirx.any(keys(k) == x(*i), tirx.all(keys(k) != keys(k), x(*i) != x(*i)))
            return te.min(tirx.Select(found, k, tirx.const(count, "int32")), axis=k)

        where = te.compute(x.shape, place, name="label_place")

        def label(*i: tirx.Var) -> tirx.Expr:
            value = values(tirx.min(where(*i), count - 1))
            return tirx.Select(where(*i) < count, value, tirx.const(default, values.dtype))

        return te.compute(x.shape, label, name="label")

    return expression(looked_up, x, constant(keys.astype(x.dtype)), constant(values), name="label")


def _numbers(node: OnnxNode, kind: str) -> NDArray[Any] | None:
    for suffix, dtype in (("int64s", "int64"), ("floats", "float32")):
        if node.has_attribute(f"{kind}_{suffix}"):
            return np.asarray(node.attribute(f"{kind}_{suffix}"), dtype)
    tensor = node.attribute(f"{kind}_tensor", None)
    return None if tensor is None or tensor.dtype.kind in "OUS" else tensor.reshape(-1)


@onnx_rule("LinearRegressor", domain=ML)
def linear_regressor(node: OnnxNode) -> Node:
    return post_transformed(node, _linear(node, int(node.attribute("targets"))))


@onnx_rule("LinearClassifier", domain=ML)
def linear_classifier(node: OnnxNode) -> Sequence[Node | None]:
    labels = node.attribute("classlabels_ints", None) or node.attribute("classlabels_strings", None) or ()
    node.ignore("multi_class")
    intercepts = node.attribute("intercepts", None) or ()
    classes = max(len(intercepts), 1) if intercepts else max(len(labels), 1)
    scores = _linear(node, classes)
    if classes == 1 and len(labels) == 2:
        threshold = 0.0
        transformed = two_sided(node, scores, are_shares=True)
        return [chosen_labels(node, labels, scores, threshold), transformed]
    if classes == 1:
        raise node.refused("it has one class", "export the model with two")
    return [chosen_labels(node, labels, scores, None), post_transformed(node, scores)]


def _linear(node: OnnxNode, outputs: int) -> Node:
    x = cast(node.input(0), "float32")
    x = x if len(x.shape) == 2 else reshape(x, (1, *x.shape))
    weights = np.asarray(node.attribute("coefficients"), "float32").reshape(outputs, -1)
    product = operator(relax.op.matmul, x, constant(np.ascontiguousarray(weights.T)))
    return added(product, np.asarray(node.attribute("intercepts", None) or (), np.float64))


def added(scores: Node, base: NDArray[np.float64]) -> Node:
    """Scores (N, C) and a number for each column; none for none."""
    return operator(relax.op.add, scores, constant(base.astype(scores.dtype))) if base.size else scores


def chosen_labels(node: OnnxNode, labels: Sequence[Any], scores: Node, threshold: float | None) -> Node | None:
    """The label of the highest score; with a threshold, of a single score above it or not. None for text."""
    if not labels or isinstance(labels[0], str):
        return None
    if threshold is None:
        place = index_of_extremum(scores, 1, False, True)
    else:
        above = operator(relax.op.greater, scores, scalar(threshold, scores.dtype))
        place = reshape(cast(above, "int64"), (scores.shape[0],))
    return gathered(constant(np.asarray(labels, "int64")), place, 0)


def two_sided(node: OnnxNode, score: Node, *, are_shares: bool) -> Node:
    """The scores (N, 2) of two classes from that of the second (N, 1), as ONNX Runtime derives the first.

    Args:
        are_shares: whether both add up to 1, instead of 0. A softmax leaves a single score as it is.
    """
    transform = str(node.attribute("post_transform", "NONE"))
    one = scalar(1, score.dtype)
    if transform == "LOGISTIC":
        share = operator(relax.op.sigmoid, score)
        other = operator(relax.op.sigmoid, operator(relax.op.negative, score))
        return concatenated([other, share], 1)
    if transform == "PROBIT":
        raise node.refused(f"post_transform {transform} is not supported")
    other = operator(relax.op.subtract, one, score) if are_shares else operator(relax.op.negative, score)
    return concatenated([other, score], 1)


def post_transformed(node: OnnxNode, scores: Node, transform: str | None = None) -> Node:
    """Scores (N, C) after the attribute post_transform, or a given one."""
    transform = str(node.attribute("post_transform", "NONE")) if transform is None else transform
    if transform == "NONE" or (scores.shape[1] == 1 and transform != "PROBIT"):  # as ONNX Runtime leaves one score
        return scores
    if transform == "LOGISTIC":
        return operator(relax.op.sigmoid, scores)
    if transform == "SOFTMAX":
        return operator(relax.op.nn.softmax, scores, axis=-1)
    if transform == "SOFTMAX_ZERO":
        return _softmax_zero(cast(scores, "float32"))
    raise node.refused(f"post_transform {transform} is not supported")


def _softmax_zero(scores: Node) -> Node:
    """Softmax in which zeros stay zeros."""
    tiny = scalar(1e-7, scores.dtype)
    shares = operator(relax.op.nn.softmax, scores, axis=-1)
    is_kept = operator(relax.op.greater, operator(relax.op.abs, scores), tiny)
    kept = operator(relax.op.where, is_kept, shares, scalar(0, scores.dtype))
    total = operator(relax.op.sum, kept, axis=[-1], keepdims=True)
    is_empty = operator(relax.op.equal, total, scalar(0, scores.dtype))
    ratio = operator(relax.op.divide, kept, operator(relax.op.where, is_empty, scalar(1, scores.dtype), total))
    return operator(relax.op.where, is_empty, scalar(0.5, scores.dtype), ratio)
