"""Elementary functions as expressions that LLVM turns into vector code.

TVM lowers `exp`, `erf`, `tanh` and `log` to calls of the C library, one per lane. These are polynomials and bit tricks
over float32, good to a few units in the last place (see each function); NaN goes in and comes out.

Written to compile fast as well: TVM's analyzer expands the variables of a `Select`'s condition, then the variables in
what they are bound to, in every pass and in exponential time. A bound variable is therefore clamped by `min` and `max`,
and only the argument itself is ever a condition.

Every function takes and returns a scalar float32 `PrimExpr` (an element of a tensor) unless it says tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx

from calumma.space.blocks import OPERATOR

_LOG2_E = 1.4426950408889634
# ln 2 in two parts: n * _LN2_HIGH is exact for |n| < 2^9 (Cody and Waite, 1980).
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
# Below the first, exp is 0 in float32; above the second, infinite.
_EXP_LOW, _EXP_HIGH = -104.0, 89.0
# exp(r) = 1 + r + r^2 P(r) on [-ln2/2, ln2/2], highest power first (Cephes expf).
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# log(1 + f) = f - f^2/2 + f^3 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1], highest power first (Cephes logf).
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SMALLEST_NORMAL = 1.17549435e-38
_SQRT_HALF_BITS = 0x3F3504F3
# tanh(x) = x P(x^2) / Q(x^2), the minimax fit of Eigen; beyond the bound tanh rounds to 1.
_TANH_BOUND = 7.90531110763549805
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
# erf(x) = x P(x^2) / Q(x^2), the minimax fit of Eigen; beyond the bound erf rounds to 1.
_ERF_BOUND = 3.832506856900711
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def exp(x: tirx.Expr) -> tirx.Expr:
    """e^x within 2 ulp; subnormal results, 0 and infinity included."""

    def clamped(x: tirx.Expr) -> tirx.Expr:
        return _let(tirx.floor(x * _f32(_LOG2_E) + _f32(0.5)), lambda n: powers(x, n))

    def powers(x: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        r = x - n * _f32(_LN2_HIGH) - n * _f32(_LN2_LOW)
        value = _let(r, lambda r: _polynomial(r, _EXP) * (r * r) + r + _f32(1.0))
        # Two factors: 2^n itself leaves the range of float32 where the result is subnormal or infinite.
        return _let(n.astype("int32"), lambda p: value * _power_of_two(p >> 1) * _power_of_two(p - (p >> 1)))

    return _let(x, lambda x: _let(_clamp(x, _EXP_LOW, _EXP_HIGH), clamped))


def log(x: tirx.Expr) -> tirx.Expr:
    """Natural logarithm within 2 ulp; -inf at 0, NaN below."""

    def logarithm(x: tirx.Expr) -> tirx.Expr:
        # 1 if x is subnormal, else 0: its exponent is counted after a multiplication by 2^23.
        subnormal = tirx.max(_f32(0.0), (_f32(_SMALLEST_NORMAL) - x) * _f32(2.0**126) * _f32(2.0**23))
        value = _let(
            tirx.min(_f32(1.0), subnormal),
            lambda s: _normal_log(x * (s * _f32(2.0**23 - 1.0) + _f32(1.0)), s * _f32(23.0)),
        )
        value = tirx.Select(x < _f32(0.0), _f32(math.nan), value)
        value = tirx.Select(x == _f32(0.0), _f32(-math.inf), value)
        return tirx.Select(x < _f32(math.inf), value, x)

    return _let(x, logarithm)


def _normal_log(x: tirx.Expr, halvings: tirx.Expr) -> tirx.Expr:
    """log(x / 2^halvings) of a positive, normal, finite x; anything else gives a number without meaning."""

    def parts(bits: tirx.Expr, exponent: tirx.Expr) -> tirx.Expr:
        # The mantissa in [sqrt(1/2), sqrt(2)): the exponent is counted from sqrt(1/2)'s bits.
        mantissa = tirx.reinterpret("float32", bits - (exponent << 23))
        n = exponent.astype("float32") - halvings
        return _let(n, lambda n: _let(mantissa - _f32(1.0), lambda f: combined(n, f)))

    def combined(n: tirx.Expr, f: tirx.Expr) -> tirx.Expr:
        tail = _polynomial(f, _LOG) * f * (f * f) + n * _f32(_LN2_LOW) - _f32(0.5) * (f * f)
        return f + tail + n * _f32(_LN2_HIGH)

    return _let(
        tirx.reinterpret("int32", x),
        lambda bits: _let((bits - tirx.const(_SQRT_HALF_BITS, "int32")) >> 23, lambda e: parts(bits, e)),
    )


def tanh(x: tirx.Expr) -> tirx.Expr:
    """Hyperbolic tangent within 4e-7 relative."""
    return _saturating_ratio(x, _TANH_P, _TANH_Q, _TANH_BOUND)


def erf(x: tirx.Expr) -> tirx.Expr:
    """Error function within 4e-7 relative."""
    return _saturating_ratio(x, _ERF_P, _ERF_Q, _ERF_BOUND)


def sigmoid(x: tirx.Expr) -> tirx.Expr:
    """1 / (1 + e^-x) within 3 ulp."""
    return _f32(1.0) / (_f32(1.0) + exp(_f32(0.0) - x))


def silu(x: tirx.Expr) -> tirx.Expr:
    """x * sigmoid(x) (swish)."""
    return _let(x, lambda x: x / (_f32(1.0) + exp(_f32(0.0) - x)))


def gelu(x: tirx.Expr) -> tirx.Expr:
    """x * Phi(x), Phi the normal distribution function; absolute error below 4e-7 * |x|."""
    return _let(x, lambda x: _f32(0.5) * x * (_f32(1.0) + erf(x * _f32(math.sqrt(0.5)))))


def gelu_tanh(x: tirx.Expr) -> tirx.Expr:
    """GELU's tanh approximation."""
    scale = _f32(math.sqrt(2.0 / math.pi))
    return _let(x, lambda x: _f32(0.5) * x * (_f32(1.0) + tanh(scale * (x + _f32(0.044715) * x * x * x))))


def margin(position: tirx.Expr, size: int) -> tirx.Expr:
    """How far `position` is from the nearer end of [0, size): negative outside; `tirx.min` joins several of them."""
    return tirx.min(position, size - 1 - position)


def masked(x: tirx.Expr, inside: tirx.Expr, otherwise: float = 0.0) -> tirx.Expr:
    """x, but `otherwise` where the integer `inside` is negative (see `margin`).

    Bits instead of a condition: TVM turns a select around a load into a branch, and cannot build code that shares a
    vector of truth values. The sign is taken from a float, whose width is known: Relax widens integers afterwards.
    `x` is float32, or of a type of 16 bits, of which nothing but 0 stands outside.
    """
    hide = tirx.reinterpret("int32", inside.astype("float32")) >> 31
    if str(x.ty) != "float32":
        return tirx.reinterpret(str(x.ty), tirx.reinterpret("int16", x) & tirx.bitwise_not(hide).astype("int16"))
    bits = tirx.reinterpret("int32", x) & tirx.bitwise_not(hide)
    if otherwise:
        bits = bits | (tirx.reinterpret("int32", _f32(otherwise)) & hide)
    return tirx.reinterpret("float32", bits)


def elementwise(function: Callable[[tirx.Expr], tirx.Expr], x: te.Tensor, name: str) -> te.Tensor:
    """Apply one of the functions above to every element of a float32 tensor; `name` says what the task is called."""
    return te.compute(x.shape, lambda *i: function(x(*i)), name=name, tag="elemwise", attrs={OPERATOR: name})


def _let(value: tirx.Expr, body: Callable[[tirx.Var], tirx.Expr]) -> tirx.Expr:
    """body(value) with the value computed once: TVM copies shared expressions, which nested functions would
    multiply.
    """
    variable = tirx.Var("t", value.ty)
    return tirx.Let(variable, value, body(variable))


def _f32(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")


def _clamp(x: tirx.Expr, low: float, high: float) -> tirx.Expr:
    # max(c, x) becomes c > x ? c : x, so that NaN falls through.
    return tirx.min(_f32(high), tirx.max(_f32(low), x))


def _saturating_ratio(
    x: tirx.Expr, numerator: Sequence[float], denominator: Sequence[float], bound: float
) -> tirx.Expr:
    """x P(x^2) / Q(x^2) for |x| <= bound, the sign of x beyond: exactly +-1, which gelu needs far from 0."""

    def ratio(x: tirx.Expr) -> tirx.Expr:
        value = _let(x * x, lambda s: x * _polynomial(s, numerator) / _polynomial(s, denominator))
        value = tirx.Select(x < _f32(-bound), _f32(-1.0), value)
        return tirx.Select(x > _f32(bound), _f32(1.0), value)

    return _let(x, ratio)


def _polynomial(x: tirx.Expr, coefficients: Sequence[float]) -> tirx.Expr:
    """Horner's rule, highest power first."""
    value = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _f32(coefficient)
    return value


def _power_of_two(n: tirx.Expr) -> tirx.Expr:
    """2^n for int32 n in [-126, 127]."""
    return tirx.reinterpret("float32", (n + tirx.const(127, "int32")) << 23)
