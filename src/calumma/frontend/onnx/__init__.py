"""ONNX models to graphs, with the weights led around the converter.

TVM's converter sees large weights as inputs: nothing of their size is copied, checked or handed to another process, so
importing takes time by the number of nodes and not by the size of the weights. They become constants of the graph.

onnxslim runs only where a model computes with shapes (`_SHAPE_ARITHMETIC`), in a process of its own and on the model
without its weights. Folding BatchNorm and constants is the work of `simplify`: it takes milliseconds where onnxslim
takes 1 s (ResNet-50) to 30 s (ViT-B/16), and leaves the same operators on every model of the benchmark suite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calumma import tvm_compat
from calumma.frontend.importer import Clock, ImportedModel, Shapes
from calumma.frontend.onnx.element_types import check_types, inferred_types
from calumma.frontend.onnx.error_text import located, onnx_step
from calumma.frontend.onnx.graph_fields import opset_of
from calumma.frontend.onnx.initializers import detach_weights
from calumma.frontend.onnx.input_shapes import fix_shapes
from calumma.frontend.onnx.repairs import leave_out_empty_inputs, lift_constants, modernise, prune
from calumma.frontend.onnx.slimming import slim
from calumma.frontend.onnx.source import Fingerprint, Source, parse
from calumma.frontend.onnx.structure import check_graph, check_opset
from calumma.frontend.onnx.supported import check_operators, expand_functions

_SHAPE_ARITHMETIC = frozenset(
    {"ConstantOfShape", "If", "Loop", "NonZero", "Range", "Scan", "SequenceAt", "SequenceConstruct", "Shape", "Size"}
)


def import_onnx(model: str | Path | bytes, shapes: Shapes | None = None) -> ImportedModel:
    """Import an ONNX model of opset 7 to 21.

    Args:
        model: path of the file, whose external data lies in or below its folder, or the bytes of one.
        shapes: input name -> every dimension, for inputs with open dimensions.

    Raises:
        ModelError: the file is not a readable ONNX model, a dimension of an input is open, or something in it is not
            supported. One line: what, where, what to do.
    """
    clock = Clock()
    name = "model" if isinstance(model, bytes) else Path(model).stem
    with clock.phase("read"), contextlib.closing(Fingerprint()) as fingerprint:
        source = Source.of(model)
        fingerprint.add(source.data)
        proto = parse(source)
        with located(source.where):
            check_opset(proto)
            lift_constants(proto)
            check_graph(proto)
            leave_out_empty_inputs(proto.graph)
            bound = fix_shapes(proto, shapes or {})
            check_types(proto)
            weights = detach_weights(source, proto, fingerprint)
            proto = modernise(proto)
            prune(proto)
            with onnx_step("shapes and types do not agree"):
                inferred_types(proto)  # checks sizes, which onnxslim would compute with
        fingerprint.add(repr(sorted(bound.items())).encode())
        model_hash = fingerprint.hexdigest()
    with clock.phase("slim"):
        if _SHAPE_ARITHMETIC.isdisjoint(node.op_type for node in proto.graph.node):
            tvm_compat.load()
        else:
            with ThreadPoolExecutor(1) as background:
                slimmed = background.submit(slim, proto)
                tvm_compat.load()  # takes its two seconds while onnxslim works
                proto = slimmed.result()
    from calumma.frontend.onnx.converter import convert, supported_operators

    with located(source.where):
        with clock.phase("convert"):
            with onnx_step("shapes and types do not agree"):
                proto = expand_functions(proto, supported_operators())
                check_operators(proto, supported_operators())
                types = inferred_types(proto)
            mod = convert(proto, opset_of(proto), types)
        with clock.phase("graph"):
            graph = _graph(mod, proto, weights)
    return ImportedModel(graph, name, model_hash, clock.phases_s)


def _graph(mod: Any, proto: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]]) -> Any:
    """Read the converted module and put the detached weights back as constants."""
    from calumma.frontend.relax_graph import from_relax
    from calumma.graph.nodes import constant

    graph = from_relax(mod, [value.name for value in proto.graph.output])
    graph.replace({node: constant(weights[node.name], node.name) for node in graph.inputs if node.name in weights})
    graph.inputs = [node for node in graph.inputs if node.name not in weights]
    return graph
