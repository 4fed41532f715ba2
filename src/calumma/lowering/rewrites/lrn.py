"""Local response normalisation, which importers take apart."""

from __future__ import annotations

from types import SimpleNamespace

from calumma.graph.nodes import CONSTANT, LRN, Graph, Node


def recover_lrn(graph: Graph) -> None:
    """x / (bias + alpha * avgpool_over_channels(x^2)) ^ beta, as importers write local response normalisation."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op != "divide" or node.args[1].op != "power":
            continue
        data, power = node.args
        base, beta = power.args
        if base.op != "add" or base.args[0].op != "multiply":
            continue
        scaled, bias = base.args
        mean, alpha = scaled.args
        pool = mean.args[0] if mean.op == "reshape" else mean
        if pool.op != "nn.avg_pool3d" or not pool.attrs.count_include_pad:
            continue
        square = pool.args[0].args[0] if pool.args[0].op == "reshape" else pool.args[0]
        if square.op != "multiply" or square.args[0] is not data or square.args[1] is not data:
            continue
        window, *others = (int(v) for v in pool.attrs.pool_size)
        scalars = [p.value for p in (alpha, beta, bias) if p.op == CONSTANT and p.value.size == 1]
        if len(scalars) != 3 or others != [1, 1] or len(data.shape) != 4:
            continue
        a, b, c = (float(v.reshape(())) for v in scalars)
        attrs = SimpleNamespace(size=window, alpha=a, beta=b, bias=c)
        mapping[node] = Node(LRN, args=(data,), attrs=attrs, shape=node.shape, dtype=node.dtype, name=node.name)
    graph.replace(mapping)
