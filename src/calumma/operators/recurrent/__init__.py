"""Recurrent layers: LSTM, GRU and plain recurrent cells, in one direction."""

from calumma.graph.nodes import RECURRENT
from calumma.operators.recurrent import rule, sample
from calumma.operators.recurrent.space import RecurrentSpace
from calumma.operators.registry import Operator

OPERATOR_FAMILY = Operator(
    "recurrent",
    rules={RECURRENT: rule.lower_recurrent},
    space=RecurrentSpace,
    templates=(RecurrentSpace,),
    samples={"recurrent": sample.write_recurrent},
)
