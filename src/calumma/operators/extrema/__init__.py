"""Where the largest and the smallest elements are."""

from calumma.families.registry import Operator
from calumma.operators.extrema import rule

OPERATOR_FAMILY = Operator(
    "extrema", rules={"argmax": rule.lower_index_of_extremum, "argmin": rule.lower_index_of_extremum}
)
