"""ONNX models to graphs: our own import, a rule per operator and version.

`import_onnx` reads and checks the file; `scope` walks over the nodes; `folding` evaluates those of constants. The
`registry` holds the rules, which lie by family in `onnx_rules`. A rule reads a node through `onnx_node.OnnxNode`, which
refuses a node of which something is not read. ONNX's own type inference is the second opinion on every result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import onnx

from calumma import tvm_compat
from calumma.core.errors import ModelError
from calumma.graph.imported_model import Clock, ImportedModel, Shapes
from calumma.onnx_import.error_text import located, onnx_step
from calumma.onnx_import.initializers import detach_weights
from calumma.onnx_import.input_shapes import fix_shapes, take_shapes
from calumma.onnx_import.repairs import (
    inline_functions,
    leave_out_initialised_inputs,
    prune,
    write_out_defaults,
    write_out_sizes,
)
from calumma.onnx_import.source import Fingerprint, Source, parse
from calumma.onnx_import.structure import check_graph, check_opset


def import_onnx(model: str | Path | bytes, shapes: Shapes | None, register_rules: Callable[[], None]) -> ImportedModel:
    """Import an ONNX model of any opset that the installed onnx knows.

    Args:
        model: path of the file, whose external data lies in or below its folder, or the bytes of one.
        shapes: input name -> every dimension, for inputs with open dimensions.
        register_rules: makes the rules of all operators known; called when the file is read and sound.

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
            leave_out_initialised_inputs(proto)
            check_graph(proto)
            bound = fix_shapes(proto, shapes or {})
            declared = take_shapes(proto)
            weights = detach_weights(source, proto, fingerprint)
            proto = inline_functions(proto)
        fingerprint.add(repr(sorted(bound.items())).encode())
        model_hash = fingerprint.hexdigest()
        tvm_compat.load()
    register_rules()
    from calumma.onnx_import.model_graph import model_graph
    from calumma.onnx_import.supported import expand_functions

    with located(source.where), clock.phase("graph"):
        with onnx_step("shapes and types do not agree"):
            proto = expand_functions(proto)
            prune(proto)
            write_out_defaults(proto)
            write_out_sizes(proto)
            proto = onnx.shape_inference.infer_shapes(proto, check_type=True, data_prop=True)
        try:
            graph = model_graph(proto, tuple(bound), weights, declared)
        except RecursionError as error:
            raise ModelError("its sub-graphs are nested too deeply; export it again") from error
    return ImportedModel(graph, name, model_hash, clock.phases_s)
