"""Special functions of floating-point elements: of Bessel, gamma, zeta, error integrals, orthogonal polynomials.

Computed in float64, whatever the type of the elements, by what converges everywhere: recurrences, asymptotic series,
sums for integrals of periodic or quickly vanishing functions (Trefethen and Weideman, SIAM Review 56, 2014).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from calumma.expressions import statements
from calumma.graph.build import cast, expression, mapped, reshape
from calumma.graph.nodes import Node, constant
from calumma.semantics.movement import broadcast

Scalar = Callable[[tirx.Expr], tirx.Expr]
"""A float64 to a float64."""


def f64(value: float) -> tirx.Expr:
    return tirx.const(value, "float64")


def c_function(name: str) -> Callable[..., tirx.Expr]:
    """A function of C's mathematical library, of float64."""
    return lambda *x: tirx.call_pure_extern("float64", name, *x)


def polynomial(x: tirx.Expr, coefficients: Sequence[float]) -> tirx.Expr:
    """The highest power's coefficient first."""
    return functools.reduce(lambda held, c: held * x + f64(c), coefficients[1:], f64(coefficients[0]))


def _select(*cases: tuple[tirx.Expr, tirx.Expr], otherwise: tirx.Expr) -> tirx.Expr:
    """The value of the first case whose condition holds."""
    for condition, value in reversed(cases):
        otherwise = tirx.Select(condition, value, otherwise)
    return otherwise


# -- gamma -----------------------------------------------------------------------------------------

_DIGAMMA = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760)


def digamma(x: tirx.Expr) -> tirx.Expr:
    """The derivative of the logarithm of the gamma function: NaN at negative whole numbers."""
    pole = tirx.all(x <= f64(0), tirx.EQ(tirx.floor(x), x))
    mirrored = x < f64(0)
    y = tirx.Select(mirrored, f64(1) - x, tirx.Select(pole, f64(1), x))
    shift = functools.reduce(lambda held, k: held + f64(1) / (y + f64(k)), range(8), f64(0))
    z = y + f64(8)
    series = polynomial(f64(1) / (z * z), (*reversed(_DIGAMMA), 0))
    value = tirx.log(z) - f64(0.5) / z + series - shift
    turn = x - tirx.floor(x)
    value = tirx.Select(mirrored, value - f64(math.pi) / tirx.tan(f64(math.pi) * turn), value)
    at_zero = c_function("copysign")(f64(math.inf), f64(0) - x)
    return _select((tirx.EQ(x, f64(0)), at_zero), (pole, f64(math.nan)), otherwise=value)


def zeta(s: Node, q: Node) -> Node:
    """Hurwitz' zeta function: the sum of (q + k) ** -s, by Euler and Maclaurin."""
    power = c_function("pow")
    numbers = (12, -720, 30240, -1209600, 47900160, -1307674368000 / 691, 74724249600)

    def body(s: tirx.Expr, q: tirx.Expr) -> tirx.Expr:
        total, place = statements.counter("float64"), statements.counter("float64")
        total[0], place[0] = f64(0), q
        with T.While(tirx.all(place[0] < f64(12), s > f64(1), q > f64(-1e5))):
            total[0] = total[0] + power(place[0], f64(0) - s)
            place[0] = place[0] + f64(1)
        w = T.Bind(place[0])
        last = T.Bind(power(w, f64(0) - s))
        value = total[0] + last * w / (s - f64(1)) + f64(0.5) * last
        factor = s
        term = last / w
        for k, number in enumerate(numbers):
            value = value + factor * term / f64(number)
            factor = factor * (s + f64(2 * k + 1)) * (s + f64(2 * k + 2))
            term = term / (w * w)
        whole = tirx.EQ(tirx.floor(q), q)
        return _select(
            (tirx.EQ(s, f64(1)), f64(math.inf)),
            (s < f64(1), f64(math.nan)),
            (tirx.all(q <= f64(0), whole), f64(math.inf)),
            (tirx.all(q <= f64(0), tirx.NE(tirx.floor(s), s)), f64(math.nan)),
            otherwise=value,
        )

    return looped(body, s, q, name="zeta")


def incomplete_gamma(a: Node, x: Node, *, upper: bool) -> Node:
    """The regularised incomplete gamma function, by its series below a + 1 and Lentz' continued fraction above."""
    most, least = 2000, f64(1e-300)

    def body(a: tirx.Expr, x: tirx.Expr) -> tirx.Expr:
        factor = T.Bind(tirx.exp(a * tirx.log(x) - x - c_function("lgamma")(a)))
        total, term, d, step = (statements.counter("float64") for _ in range(4))
        below = T.Bind(x < a + f64(1))
        fits = T.Bind(tirx.all(a > f64(0), x > f64(0), x < f64(1e30), a < f64(1e30)))
        total[0], term[0], step[0] = f64(1) / a, f64(1) / a, f64(1)
        with T.While(tirx.all(fits, below, step[0] < f64(most), term[0] > total[0] * f64(1e-17))):
            term[0] = term[0] * x / (a + step[0])
            total[0] = total[0] + term[0]
            step[0] = step[0] + f64(1)
        lower = T.Bind(total[0] * factor)
        b, c = statements.counter("float64"), statements.counter("float64")
        b[0], c[0] = x + f64(1) - a, f64(1e300)
        d[0] = f64(1) / b[0]
        total[0], term[0], step[0] = d[0], f64(2), f64(1)
        with T.While(tirx.all(fits, tirx.Not(below), step[0] < f64(most), tirx.abs(term[0] - f64(1)) > f64(1e-16))):
            share = T.Bind(step[0] * (a - step[0]))
            b[0] = b[0] + f64(2)
            d[0] = share * d[0] + b[0]
            d[0] = f64(1) / tirx.Select(tirx.abs(d[0]) < least, least, d[0])
            c[0] = b[0] + share / c[0]
            c[0] = tirx.Select(tirx.abs(c[0]) < least, least, c[0])
            term[0] = d[0] * c[0]
            total[0] = total[0] * term[0]
            step[0] = step[0] + f64(1)
        tail = total[0] * factor
        value = tirx.Select(below, f64(1) - lower, tail) if upper else tirx.Select(below, lower, f64(1) - tail)
        infinite = f64(math.inf)
        bad = tirx.any(x < f64(0), a < f64(0), tirx.all(tirx.EQ(a, f64(0)), tirx.EQ(x, f64(0))))
        bad = tirx.any(bad, tirx.isnan(a), tirx.isnan(x), tirx.all(tirx.EQ(a, infinite), tirx.EQ(x, infinite)))
        none, all_of_it = (f64(1), f64(0)) if upper else (f64(0), f64(1))
        return _select(
            (bad, f64(math.nan)),
            (tirx.EQ(a, f64(0)), all_of_it),
            (tirx.any(tirx.EQ(x, f64(0)), tirx.EQ(a, infinite)), none),
            (tirx.EQ(x, infinite), all_of_it),
            otherwise=value,
        )

    return looped(body, a, x, name="incomplete_gamma")


# -- error integrals -------------------------------------------------------------------------------

_CENTRE = (
    (
        -39.69683028665376,
        220.9460984245205,
        -275.9285104469687,
        138.3577518672690,
        -30.66479806614716,
        2.506628277459239,
    ),
    (-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1.0),
)
_TAIL = (
    (
        *(-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838, -2.549732539343734),
        *(4.374664141464968, 2.938163982698783),
    ),
    (7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996, 3.754408661907416, 1.0),
)
_TAIL_FROM = 0.02425


def _quantile(p: tirx.Expr, rest: tirx.Expr) -> tirx.Expr:
    """The normal distribution's quantile of p = 1 - rest (Acklam's rational functions, 1.2e-9 relative error)."""
    off = (p - rest) * f64(0.5)
    square = off * off
    centre = off * polynomial(square, _CENTRE[0]) / polynomial(square, _CENTRE[1])
    small = tirx.min(p, rest)
    safe = tirx.Select(small > f64(0), small, f64(0.5))
    root = tirx.sqrt(f64(-2) * tirx.log(safe))
    tail = polynomial(root, _TAIL[0]) / polynomial(root, _TAIL[1])
    tail = tirx.Select(p < rest, tail, f64(0) - tail)
    end = tirx.Select(p < rest, f64(-math.inf), f64(math.inf))
    return _select(
        (tirx.any(tirx.isnan(p), small < f64(0)), f64(math.nan)),
        (tirx.EQ(small, f64(0)), end),
        (small < f64(_TAIL_FROM), tail),
        otherwise=centre,
    )


def ndtri(p: tirx.Expr) -> tirx.Expr:
    """The normal distribution's quantile function."""
    return _quantile(p, f64(1) - p)


def erfinv(y: tirx.Expr) -> tirx.Expr:
    """The inverse of the error function."""
    return _quantile((f64(1) + y) * f64(0.5), (f64(1) - y) * f64(0.5)) * f64(math.sqrt(0.5))


def erfcx(x: tirx.Expr) -> tirx.Expr:
    """e ** (x * x) * erfc(x)."""
    near = tirx.exp(x * x) * c_function("erfc")(x)
    wide = tirx.max(x, f64(5))
    fraction = functools.reduce(lambda held, k: f64(k / 2) / (wide + held), range(30, 0, -1), f64(0))
    far = f64(1 / math.sqrt(math.pi)) / (wide + fraction)
    return tirx.Select(x > f64(5), far, near)


def log_ndtr(x: tirx.Expr) -> tirx.Expr:
    """The logarithm of the normal distribution function."""
    scaled = x * f64(math.sqrt(0.5))
    low = tirx.min(x, f64(-1)) * f64(-math.sqrt(0.5))
    left = tirx.log(erfcx(low) * f64(0.5)) - low * low
    right = c_function("log1p")(f64(-0.5) * c_function("erfc")(scaled))
    return tirx.Select(x < f64(-1), left, right)


# -- Bessel functions ------------------------------------------------------------------------------

_ANGLES = 64
_FAR = 200.0


def bessel_i(order: int, *, scaled: bool) -> Scalar:
    """The modified Bessel function of the first kind of order 0 or 1; scaled: times e ** -|x|."""

    def function(x: tirx.Expr) -> tirx.Expr:
        size = tirx.abs(x)
        near, total = tirx.min(size, f64(_FAR)), f64(0)
        for angle in (np.arange(_ANGLES) + 0.5) * (math.pi / _ANGLES):
            share = math.cos(angle) if order else 1.0
            total = total + tirx.exp(near * f64(math.cos(angle) - 1)) * f64(share / _ANGLES)
        wide = tirx.max(size, f64(_FAR))
        inverse, square = f64(1) / (f64(8) * wide), 4 * order * order
        series, term = f64(1), f64(1)
        for k in range(1, 6):
            term = term * f64((square - (2 * k - 1) ** 2) / k) * (f64(0) - inverse)
            series = series + term
        far = series / tirx.sqrt(f64(2 * math.pi) * wide)
        value = tirx.Select(size > f64(_FAR), far, total)
        value = tirx.Select(tirx.isnan(x), x, value)
        if order:
            value = tirx.Select(x < f64(0), f64(0) - value, value)
        return value if scaled else value * tirx.exp(size)

    return function


def bessel_k(order: int, *, scaled: bool) -> Scalar:
    """The modified Bessel function of the second kind of order 0 or 1; scaled: times e ** x."""
    step, count = 0.4, 90

    def function(x: tirx.Expr) -> tirx.Expr:
        safe, total = tirx.max(x, f64(1e-13)), f64(0.5 * step)
        for k in range(1, count):
            t = k * step
            total = total + tirx.exp(safe * f64(1 - math.cosh(t)) + f64(0)) * f64(math.cosh(order * t) * step)
        value = total if scaled else total * tirx.exp(f64(0) - safe)
        return _select(
            (x < f64(0), f64(math.nan)), (tirx.EQ(x, f64(0)), f64(math.inf)), (tirx.isnan(x), x), otherwise=value
        )

    return function


def bessel(name: str) -> Scalar:
    """The Bessel functions of the C library: j0, j1, y0, y1."""
    return c_function(name)


def spherical_bessel_j0(x: tirx.Expr) -> tirx.Expr:
    """sin(x) / x."""
    safe = tirx.Select(tirx.abs(x) < f64(1e-9), f64(1), x)
    value = tirx.Select(tirx.abs(x) < f64(1e-9), f64(1), c_function("sin")(safe) / safe)
    return tirx.Select(tirx.EQ(tirx.abs(x), f64(math.inf)), f64(0), value)


# -- orthogonal polynomials ------------------------------------------------------------------------

Step = Callable[[tirx.Expr, tirx.Expr, tirx.Expr, tirx.Expr], tirx.Expr]

_POLYNOMIALS: dict[str, tuple[tuple[float, float], Step]] = {
    "chebyshev_t": ((1, 0), lambda x, k, p, q: f64(2) * x * p - q),
    "chebyshev_u": ((2, 0), lambda x, k, p, q: f64(2) * x * p - q),
    "chebyshev_v": ((2, -1), lambda x, k, p, q: f64(2) * x * p - q),
    "chebyshev_w": ((2, 1), lambda x, k, p, q: f64(2) * x * p - q),
    "hermite_h": ((2, 0), lambda x, k, p, q: f64(2) * (x * p - k * q)),
    "hermite_he": ((1, 0), lambda x, k, p, q: x * p - k * q),
    "laguerre_l": ((-1, 1), lambda x, k, p, q: ((f64(2) * k + f64(1) - x) * p - k * q) / (k + f64(1))),
    "legendre_p": ((1, 0), lambda x, k, p, q: ((f64(2) * k + f64(1)) * x * p - k * q) / (k + f64(1))),
}
"""Name -> slope and offset of the first degree, and x, k, p_k, p_(k - 1) to p_(k + 1)."""
POLYNOMIALS = tuple(_POLYNOMIALS)


def orthogonal_polynomial(name: str, x: Node, n: Node, *, shifted: bool = False) -> Node:
    """A polynomial of a degree, truncated to a whole number; 0 for a negative one.

    Args:
        name: one of `POLYNOMIALS`.
        shifted: of 2 x - 1 instead of x.
    """
    (slope, offset), step = _POLYNOMIALS[name]

    def body(x: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        x = T.Bind(f64(2) * x - f64(1) if shifted else x)
        degree = T.Bind(tirx.trunc(n))
        now, before, k = (statements.counter("float64") for _ in range(3))
        now[0], before[0], k[0] = f64(slope) * x + f64(offset), f64(1), f64(1)
        with T.While(tirx.all(k[0] < degree, degree < f64(1e6))):
            new = T.Bind(step(x, k[0], now[0], before[0]))
            before[0], now[0] = now[0], new
            k[0] = k[0] + f64(1)
        return _select((degree < f64(0), f64(0)), (tirx.EQ(degree, f64(0)), f64(1)), otherwise=now[0])

    return looped(body, x, n, name=name)


# -- how they are applied --------------------------------------------------------------------------


def applied(function: Scalar, x: Node, name: str) -> Node:
    """A function of float64 of each element."""
    dtype = x.dtype
    return mapped(lambda value: function(value.astype("float64")).astype(dtype), x, name, finite=False)


def looped(body: Callable[..., tirx.Expr], *nodes: Node, name: str) -> Node:
    """A function that emits loops, of one float64 of each node, which are broadcast; in the first one's type."""
    shape, dtype = np.broadcast_shapes(*(node.shape for node in nodes)), nodes[0].dtype
    size = math.prod(shape)
    if size == 0:
        return constant(np.zeros(shape, dtype))
    flat = [reshape(broadcast(cast(node, dtype), shape), (size,)) for node in nodes]

    def loop(*tensors: te.Tensor) -> te.Tensor:
        def every(*buffers: Any) -> None:
            *sources, out = buffers
            with T.parallel(0, size) as i:
                out[i] = body(*(T.Bind(source[i].astype("float64")) for source in sources)).astype(dtype)

        return statements.kernel(name, every, tensors, [((size,), dtype)])[0]

    return reshape(expression(loop, *flat, name=name), shape)
