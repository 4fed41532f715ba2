"""Losses of classification."""

from __future__ import annotations

from tvm import relax

from calumma.graph.build import operator
from calumma.graph.nodes import Node
from calumma.onnx_import.onnx_node import OnnxNode
from calumma.onnx_import.onnx_registry import onnx_rule
from calumma.semantics.losses import REDUCTIONS, negative_log_likelihood


def _loss(node: OnnxNode, log_probabilities: Node) -> Node:
    reduction = node.choice("reduction", REDUCTIONS, "mean")
    ignored = node.attribute("ignore_index", None)
    return negative_log_likelihood(log_probabilities, node.input(1), node.optional(2), reduction, ignored)


@onnx_rule("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(node: OnnxNode) -> Node:
    return _loss(node, node.input(0))


@onnx_rule("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(node: OnnxNode) -> tuple[Node, Node]:
    log_probabilities = operator(relax.op.nn.log_softmax, node.input(0), axis=1)
    return _loss(node, log_probabilities), log_probabilities
