"""TVM's ONNX converter, led by us: errors name the node, results carry its name, and only operators come out.

Some of its converters emit tensor expressions where Relax has an operator for the same thing; those are turned back
into operators, which every pass of ours understands.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import onnx
from tvm import relax, topi
from tvm.relax.frontend.onnx import onnx_frontend

from calumma.core.errors import ModelError
from calumma.frontend.importer import reason


@functools.cache
def supported_operators() -> frozenset[str]:
    """Names of the operators that can be converted, of the ONNX domain and ONNX Runtime's together."""
    return frozenset(onnx_frontend._get_convert_map())


def convert(proto: onnx.ModelProto, opset: int) -> Any:
    """Convert a model of known operators and fixed shapes to a Relax module.

    Raises:
        ModelError: a node cannot be converted; names it and its operator.
    """
    importer = _Importer({}, None, keep_params_in_input=False, sanitize=False)
    # The converter prints the inputs of a node that fails, and warns of what `import_onnx` has checked already.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importer.from_onnx(proto.graph, opset)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"cannot be converted ({reason(error)}); export it with opset 17 and fixed shapes") from error


def _as_tensor(value: Any, dtype: str) -> relax.Expr:
    return value if isinstance(value, relax.Expr) else relax.const(value, dtype)


def _bound(operator: Callable) -> Callable:
    return lambda data, bound: operator(data, _as_tensor(bound, data.ty.dtype))


def _pad(mode: str) -> Callable:
    def pad(data: relax.Expr, before: Sequence[int], after: Sequence[int], value: Any = 0.0) -> relax.Expr:
        width = [int(amount) for pair in zip(before, after, strict=True) for amount in pair]
        return relax.op.nn.pad(data, width, mode, value if mode == "constant" else 0.0)

    return pad


_OPERATORS: dict[Any, Callable] = {
    topi.maximum: _bound(relax.op.maximum),
    topi.minimum: _bound(relax.op.minimum),
    topi.nn.pad: _pad("constant"),
    topi.nn.mirror_pad: lambda data, before, after, mode: _pad("reflect")(data, before, after),
    topi.nn.replicate_pad: _pad("replicate"),
    topi.nn.circular_pad: _pad("circular"),
    topi.tile: relax.op.tile,
    topi.einsum: lambda equation, *operands: relax.op.einsum(operands, equation),
    topi.flip: lambda data, axis: relax.op.flip(data, axis),
}


class _Builder(relax.BlockBuilder):
    """Names what it emits after the node in hand, and emits operators where tensor expressions are asked for."""

    node_name = ""

    def emit(self, expr: relax.Expr, name_hint: str = "") -> relax.Var:
        return super().emit(expr, name_hint or self.node_name)

    def emit_te(self, func: Callable, *args: Any, **kwargs: Any) -> relax.Var:
        if func not in _OPERATORS:
            raise ModelError(f"this form of it ({getattr(func, '__name__', func)}) is not supported")
        return self.emit(_OPERATORS[func](*args, **kwargs))


class _Importer(onnx_frontend.ONNXGraphImporter):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bb = _Builder()

    def _convert_operator(self, op_name: str, inputs: list, attrs: dict, opset: int) -> relax.Expr:
        name = attrs["tvm_custom"]["name"]
        self.bb.node_name = name
        try:
            result = super()._convert_operator(op_name, inputs, attrs, opset)
            if isinstance(result, relax.Call) and isinstance(result.ty, relax.TensorType):
                return self.bb.emit(result)
            return result
        except Exception as error:
            raise ModelError(
                f"node {name}: operator {op_name} cannot be converted ({reason(error)}); "
                "export it in another form, or cut the model off before this node"
            ) from error
