"""Operators of the domain ai.onnx.ml, which models of scikit-learn and of boosted trees are made of."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from calumma.core.errors import ModelError
from calumma.frontend.importer import import_model
from tests.compiled_model import compiled

FEATURES, DEPTH, TREES = 4, 3, 3
COMPARISONS = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


def trees(seed: int, kind: str, ids: tuple[int, ...], *, positive: bool = False) -> dict[str, Any]:
    """Attributes of random trees. Leaves of the first have a weight for each id, of the others for one of them."""
    rng = np.random.default_rng(seed)
    found: dict[str, list] = defaultdict(list)
    first_leaf = 2**DEPTH - 1
    for tree in range(TREES):
        for number in range(2 ** (DEPTH + 1) - 1):
            leaf = number >= first_leaf
            node = {
                "treeids": tree,
                "nodeids": number,
                "featureids": 0 if leaf else int(rng.integers(FEATURES)),
                "values": 0.0 if leaf else float(rng.normal()),
                "modes": "LEAF" if leaf else str(rng.choice(COMPARISONS)),
                "truenodeids": 0 if leaf else 2 * number + 1,
                "falsenodeids": 0 if leaf else 2 * number + 2,
                "missing_value_tracks_true": 0 if leaf else int(rng.integers(2)),
            }
            for name, value in node.items():
                found[f"nodes_{name}"].append(value)
            for target in (ids if tree == 0 else (ids[number % len(ids)],)) if leaf else ():
                weight = float(rng.normal())
                entry = {
                    "treeids": tree,
                    "nodeids": number,
                    "ids": target,
                    "weights": abs(weight) if positive else weight,
                }
                for name, value in entry.items():
                    found[f"{kind}_{name}"].append(value)
    return dict(found)


def model(nodes: list[onnx.NodeProto], feeds: dict[str, NDArray]) -> bytes:
    """A model of this domain alone, whose outputs are all results."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for node in nodes for name in node.output]
    graph = helper.make_graph(nodes, "ml", inputs, outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto).SerializeToString()


def test_trees_and_linear_models_and_features() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((7, FEATURES), np.float32)
    holes = rows.copy()
    holes[2, 1] = holes[3, 0] = np.nan
    feeds: dict[str, NDArray] = {
        "rows": rows,
        "holes": holes,
        "counts": rng.integers(0, 4, (7, FEATURES)),
        "columns": np.array([2, 0]),
    }
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> None:
        results = [f"y{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(operator, list(inputs), results, domain="ai.onnx.ml", **attributes))

    for seed, aggregate in enumerate(("SUM", "AVERAGE", "MIN", "MAX")):
        more: dict[str, Any] = {"n_targets": 3, "aggregate_function": aggregate, "base_values": [0.5, 1.0, 2.0]}
        add("TreeEnsembleRegressor", "holes", **trees(seed, "target", (0, 1, 2)), **more)
    two: dict[str, Any] = {"classlabels_int64s": [5, 7], "outputs": 2}
    add("TreeEnsembleClassifier", "rows", **trees(5, "class", (0, 1, 2)), classlabels_int64s=[5, 7, 9], outputs=2)
    add(
        "TreeEnsembleClassifier", "rows", **trees(6, "class", (0,)), post_transform="LOGISTIC", base_values=[0.2], **two
    )
    add("TreeEnsembleClassifier", "rows", **trees(7, "class", (0,), positive=True), **two)
    add("TreeEnsembleClassifier", "rows", **trees(8, "class", (1,)), post_transform="SOFTMAX", **two)
    line: dict[str, Any] = {"coefficients": rng.standard_normal(4).tolist(), "intercepts": [0.1]}
    add("LinearRegressor", "rows", **line)
    add("LinearClassifier", "rows", classlabels_ints=[3, 4], post_transform="LOGISTIC", outputs=2, **line)
    planes: dict[str, Any] = {"coefficients": rng.standard_normal(12).tolist(), "intercepts": [0.1, 0.2, 0.3]}
    add("LinearClassifier", "rows", classlabels_ints=[3, 4, 8], post_transform="SOFTMAX_ZERO", outputs=2, **planes)
    for norm in ("MAX", "L1", "L2"):
        add("Normalizer", "rows", norm=norm)
    add("Scaler", "counts", offset=[1.0], scale=[2.0])
    add("Binarizer", "rows", threshold=0.2)
    add("Imputer", "holes", imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=float("nan"))
    add("OneHotEncoder", "counts", cats_int64s=[3, 0, 1])
    add("LabelEncoder", "counts", keys_int64s=[0, 2], values_floats=[1.5, 2.5], default_float=-3.0)
    add("ArrayFeatureExtractor", "rows", "columns")
    data = model(nodes, feeds)
    expected = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)
    names = [name for node in nodes for name in node.output]
    for name, ours, theirs in zip(names, compiled(import_model(data)).run(feeds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes_truenodeids": [0] * 45}, "below itself"),
        ({"target_ids": [9] * 24}, "a target outside of the 1"),
        ({"nodes_featureids": [7] * 45}, "a feature outside of the 4"),
    ],
)
def test_what_is_no_tree_is_refused(changed: dict[str, Any], message: str) -> None:
    attributes = {**trees(0, "target", (0,)), **changed}
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, **attributes)
    with pytest.raises(ModelError, match=message):
        import_model(model([node], {"x": np.zeros((2, FEATURES), np.float32)}))
