"""Where the largest and the smallest elements are."""

from calumma.operators.extrema import rule
from calumma.operators.registry import Operator

OPERATOR_FAMILY = Operator(
    "extrema", rules={"argmax": rule.lower_index_of_extremum, "argmin": rule.lower_index_of_extremum}
)
