"""Every sampled configuration of the recurrent template computes what NumPy does."""

import numpy as np
import pytest

from calumma import tvm_compat
from calumma.contractions.recurrent.expression import recurrent
from calumma.contractions.recurrent.space import RecurrentSpace
from calumma.testing.kernels import call_all
from calumma.tvm_compat import codegen
from tests import isas
from tests.prim_funcs import check_space
from tests.recurrent_layers import arguments, expected, layer

L = isas.lanes()
CASES = {
    "lstm, one row": layer("lstm", 4, 1, 4 * L, L),
    "lstm, all of it": layer(
        "lstm", 5, 4, 2 * L + 3, L, reverse=True, peepholes=True, initial=(True, True), lengths=True
    ),
    "lstm, coupled": layer("lstm", 3, 2, 5, L, input_forget=True, peepholes=True, initial=(False, True)),
    "lstm, inputs as well": layer("lstm", 19, 1, 2 * L + 3, L, inputs=13, reverse=True, lengths=True),
    "gru, inputs as well": layer("gru", 17, 1, 4 * L, L, inputs=4 * L + 5),
    "gru": layer("gru", 4, 3, 2 * L + 1, L, lengths=True, initial=(True, False)),
    "gru, reset after the product": layer("gru", 4, 2, 4 * L, L, linear_before_reset=True, bias=True, reverse=True),
    "rnn": layer("rnn", 6, 4, 2 * L - 1, L, lengths=True),
}


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_is_right(name):
    given = arguments(CASES[name])
    check_space(RecurrentSpace, recurrent(CASES[name]), given, expected(CASES[name], given), isas.target(), n=4)


@pytest.mark.parametrize("name", CASES)
def test_the_unscheduled_function_is_right(name):
    case = CASES[name]
    given, right = arguments(case), expected(case, arguments(case))
    library = codegen.build(recurrent(case), tvm_compat.tvm_target(isas.target(), 2))
    for actual, wanted in zip(call_all(library, given, [array.shape for array in right]), right, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("isa", isas.NARROWER)
def test_narrow_vectors(isa):
    lanes = isas.lanes(isa)
    every = layer("lstm", 4, 4, 19, lanes, peepholes=True, initial=(True, True), lengths=True)
    for case in (every, layer("gru", 16, 1, 19, lanes, inputs=5, linear_before_reset=True, bias=True)):
        given = arguments(case)
        check_space(RecurrentSpace, recurrent(case), given, expected(case, given), isas.target(isa), n=3)
