"""TVM's ONNX converter, led by us: errors name the node, results carry its name, and only operators come out.

Some of its converters emit tensor expressions where Relax has an operator for the same thing; those are turned back
into operators, which every pass of ours understands.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from tvm import relax, topi
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx import onnx_frontend

from calumma.core.errors import ModelError, reason
from calumma.frontend.indices import within


@functools.cache
def supported_operators() -> frozenset[str]:
    """Names of the operators that can be converted, of the ONNX domain and ONNX Runtime's together."""
    return frozenset(onnx_frontend._get_convert_map())


TensorType = tuple[str, tuple[int, ...]]
"""Element type and shape."""


def convert(proto: onnx.ModelProto, opset: int, expected: Mapping[str, TensorType]) -> Any:
    """Convert a model of known operators and fixed shapes to a Relax module.

    Args:
        proto: the model; every node has a name of its own.
        opset: of the ONNX domain.
        expected: node name -> type of its first output, where it is known.

    Raises:
        ModelError: a node cannot be converted; names it and its operator.
    """
    importer = _Importer(expected)
    # The converter prints the inputs of a node that fails, and warns of what `import_onnx` has checked already.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importer.from_onnx(proto.graph, opset)
        except ModelError:
            importer.bb._end_block()  # or TVM warns of the open block when the builder goes
            raise
        except Exception as error:
            raise ModelError(
                f"cannot be converted ({reason(error)}); export it with opset 17 and fixed shapes"
            ) from error


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
            raise ModelError(
                f"{getattr(func, '__name__', 'this form')} is not supported; export it in another form, "
                "or cut the model off before this node"
            )
        return self.emit(_OPERATORS[func](*args, **kwargs))


class _Importer(onnx_frontend.ONNXGraphImporter):
    def __init__(self, expected: Mapping[str, TensorType]) -> None:
        super().__init__({}, None, keep_params_in_input=False, sanitize=False)
        self.bb = _Builder()
        self._expected = expected

    def _convert_operator(self, op_name: str, inputs: list, attrs: dict, opset: int) -> relax.Expr:
        name = attrs["tvm_custom"]["name"]
        self.bb.node_name = name
        try:
            if op_name in _PREPARATIONS:
                _PREPARATIONS[op_name](inputs, attrs)
            if op_name in _INDEXED:
                inputs[1] = self.bb.emit(within(inputs[1], _INDEXED[op_name](inputs, attrs)))
            result = super()._convert_operator(op_name, inputs, attrs, opset)
            if isinstance(result, relax.Expr) and isinstance(result.ty, relax.TensorType):
                self._check_type(name, result.ty)
                return self.bb.emit(result) if isinstance(result, relax.Call) else result
            return result
        except ModelError as error:
            raise ModelError(f"node {name}: operator {op_name}: {error}") from error
        except Exception as error:
            raise ModelError(
                f"node {name}: operator {op_name} cannot be converted ({reason(error)}); "
                "export it in another form, or cut the model off before this node"
            ) from error

    def _check_type(self, node_name: str, found: relax.TensorType) -> None:
        """Compare with what ONNX infers for the node: a converter that gives something else computes something else."""
        expected = self._expected.get(node_name)
        shape = None if found.shape is None else tuple(getattr(size, "value", None) for size in found.shape.values)
        if expected is not None and shape is not None and None not in shape and (str(found.dtype), shape) != expected:
            raise ValueError(f"its result is {found.dtype}{list(shape)}, expected {expected[0]}{list(expected[1])}")


def _use_explicit_padding(inputs: list, attrs: dict) -> None:
    """Replace auto_pad: the converter pads in a kernel of its own (Conv), or wrongly (MaxPool, SAME_LOWER)."""
    mode = attrs.get("auto_pad", b"NOTSET")
    if mode not in (b"SAME_UPPER", b"SAME_LOWER"):
        return
    sizes = [int(size) for size in inputs[0].ty.shape.values][2:]
    kernel = attrs.get("kernel_shape") or [int(size) for size in inputs[1].ty.shape.values][2:]
    strides, dilations = (attrs.get(name) or [1] * len(sizes) for name in ("strides", "dilations"))
    before, after = [], []
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == b"SAME_UPPER" else large)
        after.append(large if mode == b"SAME_UPPER" else small)
    del attrs["auto_pad"]
    attrs["pads"] = tuple(before + after)


def _cast_exponent(inputs: list, attrs: dict) -> None:
    """ONNX lets base and exponent differ in type, Relax does not."""
    base, exponent = inputs
    if base.ty.dtype != exponent.ty.dtype:
        is_constant = isinstance(exponent, GenericConst)
        dtype = str(base.ty.dtype)
        inputs[1] = (
            relax.const(exponent.value.numpy().astype(dtype), dtype)
            if is_constant
            else relax.op.astype(exponent, dtype)
        )


def _check_resize(inputs: list, attrs: dict) -> None:
    """TVM derives the scale from the sizes, ONNX takes the scale it is given: they differ where the size is rounded."""
    if (
        len(inputs) < 3
        or not isinstance(inputs[2], GenericConst)
        or attrs.get("coordinate_transformation_mode") == b"align_corners"
    ):
        return
    sizes = np.array([int(size) for size in inputs[0].ty.shape.values])
    scales = inputs[2].value.numpy()
    exact = sizes * scales
    if not np.allclose(exact, np.round(exact), rtol=0, atol=1e-3):
        raise ModelError(
            f"scales {scales.tolist()} of {sizes.tolist()} give no whole sizes; export it with sizes instead of scales"
        )


def _axis_size(inputs: list, attrs: dict) -> int:
    return int(inputs[0].ty.shape[attrs.get("axis", 0)])


def _column_sizes(inputs: list, attrs: dict) -> list[int]:
    first = attrs.get("batch_dims", 0)
    return [int(size) for size in inputs[0].ty.shape][first : first + int(inputs[1].ty.shape[-1])]


_INDEXED: dict[str, Callable[[list, dict], int | list[int]]] = {
    "GatherElements": _axis_size,
    "GatherND": _column_sizes,
    "ScatterElements": _axis_size,
    "ScatterND": _column_sizes,
}
"""Operators that take positions, and the sizes of the axes that these are in."""

_PREPARATIONS: dict[str, Callable[[list, dict], None]] = {
    "Conv": _use_explicit_padding,
    "AveragePool": _use_explicit_padding,
    "LpPool": _use_explicit_padding,
    "MaxPool": _use_explicit_padding,
    "Pow": _cast_exponent,
    "Resize": _check_resize,
}
"""Operators whose inputs or attributes are rewritten or checked before the converter sees them."""
