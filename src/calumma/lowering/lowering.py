"""From a simplified graph to a Relax module of fused PrimFuncs in blocked layout, with weights packed as parameters.

The walk asks the rules of the operator families (`calumma.operators`) for every node; what they decline is left to
Relax and to TVM's own legalisation, on plain tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax

from calumma import operators
from calumma.core.contraction import FLOAT32, Contraction
from calumma.core.errors import ModelError, reason
from calumma.core.values import TensorSpec
from calumma.graph.context import Declined, LoweringContext, StoredTypes
from calumma.graph.control_flow import subgraphs
from calumma.graph.layouts import Slots, Value
from calumma.graph.nodes import BRANCH, CONSTANT, INPUT, LOOP, Graph, Node
from calumma.lowering.fusion import fuse
from calumma.lowering.marked_regions import lower_branch, lower_loop
from calumma.lowering.stored_types import stored_types
from calumma.target import Target
from calumma.tvm_compat import kernel_calls

_KEPT = ("relax.reshape", "relax.concat")
"""Relax operators left in `main`: they cost nothing."""


@dataclass(frozen=True)
class LeftToTvm:
    """A node that TVM lowers, and why no rule of ours did."""

    node: str
    operator: str
    reasons: tuple[str, ...]
    """One per rule that declined; none where there is no rule for the operator."""


@dataclass(frozen=True)
class LoweredGraph:
    """A Relax module whose `main(inputs..., params...)` calls fused PrimFuncs, and the packed parameters."""

    mod: tvm.IRModule
    """`main` returns the outputs, then the run-time extents of their bounded axes in order."""
    params: tuple[np.ndarray, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layout_transforms: int
    """Kernels that do nothing but change the layout of an activation."""
    left: tuple[LeftToTvm, ...] = ()
    """Nodes that no rule of ours covers."""


def lower(graph: Graph, target: Target, contraction: Contraction = FLOAT32) -> LoweredGraph:
    """Lower a simplified graph for a CPU.

    Args:
        contraction: what convolutions and matrix products read.

    Raises:
        ModelError: an operator that neither we nor TVM can lower.
    """
    return _Lowering(graph, target, contraction).run()


class _Lowering:
    """The walk over a graph, and what TVM does with its result."""

    def __init__(self, graph: Graph, target: Target, contraction: Contraction) -> None:
        self.graph = graph
        self.graphs = [graph, *subgraphs(graph)]
        self.orders: dict[Node, Slots] = {}
        users: dict[Node, list[Node]] = {}
        contracting: set[Node] = set()
        narrow: set[Node] = set()
        for each in self.graphs:
            own = each.users()
            users.update(own)
            self.orders.update(_channel_orders(each, own, target.lanes))
            types = stored_types(each, contraction, target.lanes)
            contracting.update(types.contracting)
            narrow.update(types.narrow)
        self.context = LoweringContext(target, contraction, users, StoredTypes(contracting, narrow))
        self.left: list[LeftToTvm] = []

    def run(self) -> LoweredGraph:
        lo, graph = self.context, self.graph
        inputs = []
        for node in graph.inputs:
            var = relax.Var(_identifier(node.name), relax.TensorType(node.shape, node.dtype))
            lo.values[node] = Value(var, node.shape)
            inputs.append(var)
        try:
            with lo.builder.function("main", pure=len(self.graphs) == 1):
                self._walk(graph)
                results = [self._returned(node) for node in graph.roots]
                output = results[0] if len(results) == 1 else relax.Tuple(results)
                lo.builder.emit_func_output(output, params=[*inputs, *lo.param_vars])
        except ModelError:
            lo.builder._end_block()  # or TVM warns of the open block when the builder goes
            raise
        passes = [relax.transform.ConvertToDataflow(min_size=1), relax.transform.DeadCodeElimination(["main"])]
        mod = tvm.transform.Sequential(passes)(lo.builder.finalize())
        return LoweredGraph(  # the order counts: legalisation may add parameters
            mod=fuse(self._legalized(mod), len(inputs)),
            params=tuple(lo.params),
            inputs=tuple(TensorSpec(n.name, n.shape, n.dtype) for n in graph.inputs),
            outputs=tuple(
                TensorSpec(name, n.shape, n.dtype, tuple(axis for output, axis in graph.extents if output == index))
                for index, (name, n) in enumerate(zip(graph.output_names, graph.outputs, strict=True))
            ),
            layout_transforms=lo.transforms,
            left=tuple(self.left),
        )

    # -- the walk ---------------------------------------------------------------------------------

    def _walk(self, graph: Graph) -> None:
        """Lower every node of a graph whose inputs have values."""
        lo = self.context
        for node in graph.nodes():
            if node.op not in (INPUT, CONSTANT) and node not in lo.values:
                lo.values[node] = lo.as_stored(node, self._in_order(node, self._lower_node(node)))

    def _in_order(self, node: Node, value: Any) -> Any:
        return self.context.to_blocked(value, self.orders[node]) if node in self.orders else value

    def _returned(self, node: Node) -> relax.Expr:
        """A graph output must be a fresh plain tensor: not an input, not a parameter unless that holds nothing."""
        value = self.context.plain(node)
        if 0 in node.shape:
            return value.expr
        source = node
        while source.op == "reshape":  # an alias of its argument
            source = source.args[0]
        return self.context.copied(value) if source.op in (INPUT, CONSTANT) else value.expr

    def _lower_node(self, node: Node) -> Any:
        declined = []
        try:
            if node.op == BRANCH:
                return lower_branch(self.context, node, self._walk)
            if node.op == LOOP:
                return lower_loop(self.context, node, self._walk)
            for rule in operators.rules_for(node.op):
                value = rule(self.context, node)
                if not isinstance(value, Declined):
                    return value
                declined.append(value.reason)
            self.left.append(LeftToTvm(node.name, node.op, tuple(declined)))
            return self._relax_call(node)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"node {node.name}: operator {node.op} cannot be compiled ({reason(error)}); "
                "export it in another form, or cut the model off before this node"
            ) from error

    def _relax_call(self, node: Node) -> Any:
        """Hand an operator to Relax on plain tensors; TVM's legalisation lowers it later."""
        if node.call is None:
            raise ModelError(f"node {node.name}: operator {node.op} has no lowering; export the model without it")

        def argument(arg: Any) -> Any:
            if isinstance(arg, tuple):
                return relax.Tuple([argument(x) for x in arg])
            if isinstance(arg, Node):
                if arg.op == CONSTANT and arg.value.ndim == 0:
                    return relax.const(arg.value, arg.dtype)
                return self.context.plain(arg).expr
            return arg

        call = ir.Call(node.call.op, [argument(a) for a in node.args], node.call.attrs, node.call.ty_args)
        return Value(self.context.builder.emit(call), node.shape)

    # -- what is left to TVM ----------------------------------------------------------------------

    def _legalized(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Let TVM lower the operators left to it; a constant among their arguments becomes a parameter."""
        lo = self.context
        with tvm.transform.PassContext(opt_level=3):
            try:
                mod = _legalize(mod)
            except Exception as error:  # TVM raises whatever its rules throw
                raise self._refused(mod) or error from error
        self._check_legalized(mod)

        def hoisted(call: ir.Call) -> ir.Call:
            values = [
                lo.param(value.value.numpy(), ("hoisted", value)) if isinstance(value, ir.GenericConst) else value
                for value in kernel_calls.arguments(call)
            ]
            return kernel_calls.with_arguments(call, values)

        before = len(lo.param_vars)
        main = mod["main"]
        body = kernel_calls.rewritten(main, hoisted)
        if len(lo.param_vars) > before:
            params = [*main.params, *lo.param_vars[before:]]
            mod["main"] = relax.Function(params, body, main.ret_ty, main.is_pure, main.attrs)
        return mod

    def _refused(self, mod: tvm.IRModule) -> ModelError | None:
        """The error that names the operator which TVM cannot lower: the first that fails alone."""
        for binding in (binding for block in mod["main"].body.blocks for binding in block.bindings):
            operator = getattr(getattr(binding.value, "op", None), "name", "")
            if not operator or operator == kernel_calls.OPERATOR or operator in _KEPT:
                continue
            builder = relax.BlockBuilder()
            with builder.function("main", relax.analysis.free_vars(binding.value)):
                builder.emit_func_output(builder.emit(binding.value))
            try:
                _legalize(builder.finalize())
            except Exception as error:  # noqa: BLE001 - this is what is looked for
                return ModelError(
                    f"{self._where(operator, binding)} cannot be compiled "
                    f"({reason(error)}); export it in another form, or cut the model off before this node"
                )
        return None

    def _check_legalized(self, mod: tvm.IRModule) -> None:
        """Raise ModelError for an operator that TVM knows but cannot lower."""
        for binding in (binding for block in mod["main"].body.blocks for binding in block.bindings):
            operator = getattr(getattr(binding.value, "op", None), "name", kernel_calls.OPERATOR)
            if operator not in (kernel_calls.OPERATOR, *_KEPT):
                raise ModelError(
                    f"{self._where(operator, binding)} is not supported; "
                    "export the model without it, or cut the model off before this node"
                )

    def _where(self, operator: str, binding: Any) -> str:
        """A node of the graph that has a Relax operator, for people."""
        operator = operator.removeprefix("relax.")
        node = next((n for graph in self.graphs for n in graph.nodes() if n.op == operator), None)
        return f"node {node.name if node else binding.var.name_hint}: operator {operator}"


def _channel_orders(graph: Graph, users: Mapping[Node, list[Node]], lanes: int) -> dict[Node, Slots]:
    """The slots in which to store the values whose readers want them in an order of their own."""
    joins = frozenset(op for family in operators.families() for op in family.joins)
    found: dict[Node, Slots] = {}
    for family in reversed(operators.families()):  # the youngest has the last word, as with rules
        if family.orders is not None:
            found.update(family.orders(graph, users, lanes, joins))
    return found


def _legalize(mod: tvm.IRModule) -> tvm.IRModule:
    with tvm.target.Target("llvm"):
        mod = relax.backend.DispatchSortScan()(mod)
    return relax.transform.LegalizeOps(skip_ops=list(_KEPT))(mod)


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"input_{cleaned}"
