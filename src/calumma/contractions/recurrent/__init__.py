"""Recurrent layers: LSTM, GRU and plain recurrent cells, in one direction."""

from calumma.contractions.recurrent import rule, sample
from calumma.contractions.recurrent.space import RecurrentSpace
from calumma.families.registry import Operator
from calumma.graph.nodes import RECURRENT

OPERATOR_FAMILY = Operator(
    "recurrent",
    rules={RECURRENT: rule.lower_recurrent},
    space=RecurrentSpace,
    templates=(RecurrentSpace,),
    samples={"recurrent": sample.write_recurrent},
)
