"""Nodes of constants, evaluated while a model is imported: values that decide shapes are known then.

ONNX's own reference implementation evaluates them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, helper
from onnx.reference import ReferenceEvaluator

from calumma.graph.nodes import CONSTANT

if TYPE_CHECKING:
    from calumma.onnx_import.element_types import TensorType
    from calumma.onnx_import.onnx_node import Typed

_LARGEST_ELEMENTS = 1 << 28
_GROWING = frozenset(
    {"CenterCropPad", "Col2Im", "ConstantOfShape", "EyeLike", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile"}
    | {"Upsample"}
)
"""Operators whose result may be larger than what they read: evaluated only where its size is known and small."""
_SLOW_ELEMENTS = 4096
_SLOW = frozenset(
    {"AffineGrid", "Attention", "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DFT", "DeformConv", "GRU"}
    | {"GridSample", "LRN", "LSTM", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "NonMaxSuppression", "QLinearConv"}
    | {"RNN", "RoiAlign", "STFT", "Unique"}
)
"""Operators whose reference implementation loops in Python: evaluated for small operands only."""
_FLAGS = frozenset({"allowzero", "exclusive", "fmod", "keepdims", "noop_with_empty_axes", "reverse", "upper"})
"""Attributes that are 0 or 1: the rule refuses anything else."""
_NEVER = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}) | {
    "RandomUniformLike"
}


def folded(
    proto: onnx.NodeProto,
    opsets: Mapping[str, int],
    inputs: Sequence[Typed | None],
    types: Mapping[str, TensorType],
) -> list[NDArray[Any]] | None:
    """The outputs of a node whose inputs are all constants; None where it is to be imported like any other."""
    given = [tensor for tensor in inputs if tensor is not None]
    if proto.domain or not given or any(tensor.node.op != CONSTANT for tensor in given) or proto.op_type in _NEVER:
        return None
    if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in proto.attribute):
        return None
    if any(attribute.name in _FLAGS and attribute.i not in (0, 1) for attribute in proto.attribute):
        return None
    read = sum(tensor.node.value.size for tensor in given)
    if read > (_SLOW_ELEMENTS if proto.op_type in _SLOW else _LARGEST_ELEMENTS) or not _is_small(proto, types):
        return None
    names = [name for name in dict.fromkeys(proto.input) if name]
    tensors = dict(zip((name for name in proto.input if name), given, strict=True))
    graph = helper.make_graph(
        [proto],
        "folded",
        [helper.make_tensor_value_info(name, tensors[name].element_type, None) for name in names],
        [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()])
    arrays = {
        name: tensors[name].node.value.astype(helper.tensor_dtype_to_np_dtype(tensors[name].element_type), copy=False)
        for name in names
    }
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = iter(ReferenceEvaluator(model).run(None, arrays))
    except Exception:  # noqa: BLE001 - what the reference does not cover has a rule, or is refused by that
        return None
    values = [next(results) if name else np.empty(0) for name in proto.output]
    return [np.asarray(value) for value in values] if all(map(_is_tensor, values)) else None


def _is_small(proto: onnx.NodeProto, types: Mapping[str, TensorType]) -> bool:
    shapes = [types[name][1] if name in types else None for name in proto.output if name]
    sizes = [math.prod(shape) for shape in shapes if shape is not None]
    if len(sizes) < len(shapes) and proto.op_type in _GROWING:
        return False
    return all(size <= _LARGEST_ELEMENTS for size in sizes)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic)) and np.asarray(value).dtype.kind not in "OUS"
