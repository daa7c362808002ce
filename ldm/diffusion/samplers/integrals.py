"""Numbers that several solvers are built of: polynomials through past points, and integrals of exponentials."""

from __future__ import annotations

import math
from collections.abc import Sequence

_TERMS = 24  # of the series of phi: enough for 16 digits up to |z| = 1


def lagrange(nodes: Sequence[float], j: int) -> list[float]:
    """Coefficients of 1, u, u² ... of the polynomial that is 1 at nodes[j] and 0 at the others."""
    powers = [1.0]
    for k, zero in enumerate(nodes):
        if k != j:
            shifted, scaled = [0.0, *powers], [*(zero * c for c in powers), 0.0]
            powers = [(a - b) / (nodes[j] - zero) for a, b in zip(shifted, scaled, strict=True)]
    return powers


def phi(k: int, z: float) -> float:
    """The integral over u from 0 to 1 of exp((1 - u) z) u^(k-1) / (k-1)!, for k >= 1: sum over n of z^n / (n + k)!.

    Near 0 by that series: the recurrence phi(k + 1) = (phi(k) - 1 / k!) / z loses all digits there.
    """
    if abs(z) < 1:
        return sum(z**n / math.factorial(n + k) for n in range(_TERMS))
    value = math.expm1(z) / z
    for n in range(1, k):
        value = (value - 1 / math.factorial(n)) / z
    return value


def moment(p: int, c: float) -> float:
    """The integral over u from 0 to 1 of c exp(-(1 - u) c) u^p."""
    return c * math.factorial(p) * phi(p + 1, -c)
