"""The Beta distribution's quantiles in float64, which one family of schedules is spaced by."""

from __future__ import annotations

import math

_TINY = 1e-300  # stands for a 0 that would be divided by
_ROUNDS = 200  # at most, of either iteration; both end long before


def quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, for 0 <= p <= 1 and a, b > 0."""
    if p <= 0 or p >= 1:
        return float(p >= 1)
    far = p > distribution(0.5, a, b)  # from the nearer end, where x has more digits
    return 1 - _low_quantile(1 - p, b, a) if far else _low_quantile(p, a, b)


def _low_quantile(p: float, a: float, b: float) -> float:
    """The same for an x up to a half: Newton's method, kept inside a bracket that shrinks."""
    low, high = 0.0, 0.5
    x = min(math.exp((math.log(p * a) + _log_beta(a, b)) / a), 0.25)  # I_x is x^a / (a B(a, b)) near 0
    for _ in range(_ROUNDS):
        error = distribution(x, a, b) - p
        low, high = (x, high) if error < 0 else (low, x)
        step = error / math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - _log_beta(a, b))
        x, last = x - step if low < x - step < high else (low + high) / 2, x
        if abs(x - last) <= 1e-16 * x:
            break
    return x


def distribution(x: float, a: float, b: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, for 0 < x < 1."""
    if x > (a + 1) / (a + b + 2):
        return 1 - distribution(1 - x, b, a)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    return front / _fraction(x, a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)), Abramowitz and Stegun 26.5.8, by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for k in range(1, _ROUNDS):
        m, odd = divmod(k, 2)
        above = -(a + m) * (a + b + m) if odd else m * (b - m)
        term = above * x / ((a + 2 * m) * (a + 2 * m + (1 if odd else -1)))
        d = 1 / (1 + term * d or _TINY)
        c = 1 + term / c or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value
