"""From the one dataflow block of an imported Relax function to a graph of operator nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tvm import relax
from tvm.ir import GenericConst

from calumma.core.errors import ModelError
from calumma.graph.build import check_size
from calumma.graph.nodes import INPUT, TUPLE_ITEM, Graph, Node, constant


def from_relax(mod: Any, output_names: list[str]) -> Graph:
    """Read the `main` function of an imported Relax module.

    Raises:
        ModelError: control flow, a call that is not an operator, or a shape that is not static.
    """
    func = mod["main"]
    known: dict[Any, Node] = {}
    inputs: list[Node] = []
    for param in func.params:
        node = Node(INPUT, shape=_static_shape(param, param.name), dtype=_dtype(param), name=param.name)
        known[param] = node
        inputs.append(node)

    def read(expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return known[expr]
        if isinstance(expr, GenericConst):
            return constant(expr.value.numpy())
        if isinstance(expr, relax.Tuple):
            return tuple(read(field) for field in expr.fields)
        return expr

    body = func.body
    for block in body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.MatchCast):
                raise ModelError(
                    f"{binding.var.name}: its shape is only known at run time; "
                    "give shape NAME=DIM,DIM,... of the inputs"
                )
            known[binding.var] = _node(binding.var, binding.value, read)
    result = read(body.body)
    outputs = list(result) if isinstance(result, tuple) else [result]
    if len(outputs) == 1 and isinstance(outputs[0].args, tuple) and outputs[0].op == "tuple":
        outputs = list(outputs[0].args)
    for output, name in zip(outputs, output_names, strict=False):
        if not isinstance(output, Node):
            raise ModelError(f"output {name}: a {type(output).__name__}, expected a tensor; leave this output out")
    names = output_names if len(output_names) == len(outputs) else [f"output_{i}" for i in range(len(outputs))]
    return Graph(inputs, outputs, names)


def _node(var: relax.Var, value: Any, read: Any) -> Any:
    if isinstance(value, (relax.Var, GenericConst)):
        return read(value)
    if isinstance(value, relax.Tuple):
        return Node("tuple", args=read(value), name=var.name)
    if isinstance(value, relax.TupleGetItem):
        source = read(value.tuple_value)
        if isinstance(source, tuple):
            return source[value.index]
        if source.op == "tuple":
            return source.args[value.index]
        return Node(
            TUPLE_ITEM,
            args=(source,),
            attrs=SimpleNamespace(index=value.index),
            shape=_static_shape(var, var.name),
            dtype=_dtype(var),
            name=var.name,
        )
    if not isinstance(value, relax.Call) or not hasattr(value.op, "name"):
        raise ModelError(f"{var.name}: {type(value).__name__} is not supported; only plain operators are")
    name = str(value.op.name).removeprefix("relax.")
    is_tensor = isinstance(var.ty, relax.TensorType)
    return Node(
        name,
        args=tuple(read(arg) for arg in value.args),
        attrs=value.attrs,
        shape=_static_shape(var, f"{var.name} ({name})") if is_tensor else (),
        dtype=_dtype(var) if is_tensor else "",
        name=var.name,
        call=value,
    )


def _static_shape(var: relax.Var, where: str) -> tuple[int, ...]:
    shape = getattr(var.ty, "shape", None)
    values = getattr(shape, "values", None)
    if values is None or not all(hasattr(v, "value") for v in values):
        raise ModelError(f"{where}: shape {shape} is not fixed; give every dimension: shape NAME=DIM,DIM,...")
    static = tuple(int(v.value) for v in values)
    check_size(where, _dtype(var), static)
    return static


def _dtype(var: relax.Var) -> str:
    return str(var.ty.dtype)
