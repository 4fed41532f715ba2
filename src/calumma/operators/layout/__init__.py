"""Operators that only move elements: reshapes, concatenation, transposes, slices, channel shuffles."""

from calumma.families.registry import Operator
from calumma.graph.nodes import CHANNEL_SHUFFLE, INTERLEAVE, TUPLE_ITEM
from calumma.operators.layout import rule

OPERATOR_FAMILY = Operator(
    "layout",
    rules={
        "reshape": rule.lower_reshape,
        "concat": rule.lower_concat,
        CHANNEL_SHUFFLE: rule.lower_shuffle,
        INTERLEAVE: rule.lower_interleave,
        "permute_dims": rule.lower_permute,
        "take": rule.lower_take,
        "split": rule.lower_split,
        "strided_slice": rule.lower_slice,
        TUPLE_ITEM: rule.lower_tuple_item,
    },
    moves=("reshape", "concat", "permute_dims", CHANNEL_SHUFFLE),
    joins=("concat", CHANNEL_SHUFFLE),
)
