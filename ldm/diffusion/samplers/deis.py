"""DEIS (Zhang and Chen 2022, eq. 15, tAB): the slope as a polynomial in a time variable, integrated exactly over the step in sigma."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from ldm.diffusion.samplers.integrals import lagrange, phi
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, walk, weighted

ORDER = 3
FEW = 15  # with fewer steps, the last one is Euler's in log sigma (diffusers)
_RANGE = (0.002, 80.0)  # sigma at the ends of the time variable's VP process (Karras et al. 2022, table 1), which begins at _START
_START = 1e-3
Weights = Callable[[Sequence[float], float], list[float]]  # (sigmas of the slopes, newest first, the next sigma) -> a weight each


def deis(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None, *, second: bool = False) -> Iterator[Step]:
    """Order 3 in the time of a VP process with linear beta (diff-sampler, ComfyUI), or, if `second`, order 2 in log sigma (diffusers)."""
    order, weights = (2, weights_in_log_sigma) if second else (ORDER, weights_in_time)
    slopes: deque[Tensor] = deque(maxlen=order)  # newest first

    def advance(s: Step) -> Tensor:
        slopes.appendleft((s.x - s.x0) / s.sigma)
        used = 1 if second and s.i == len(sigmas) - 2 < FEW - 1 else len(slopes)
        nodes = sigmas[s.i :: -1][:used]
        return weighted(s, weights(nodes, s.sigma_next), list(slopes)[:used])

    return walk(denoise, x, sigmas, advance)


def weights_in_log_sigma(nodes: Sequence[float], end: float) -> list[float]:
    """The integrals of the polynomials in log sigma: closed forms, as d(sigma) is an exponential there."""
    h = math.log(nodes[0] / end)
    at = [math.log(nodes[0] / node) / h for node in nodes]  # in u, from 0 to 1 over the step: sigma = nodes[0] exp(-h u)
    powers = [-h * end * math.factorial(p) * phi(p + 1, h) for p in range(len(nodes))]
    return [sum(c * power for c, power in zip(lagrange(at, j), powers, strict=True)) for j in range(len(nodes))]


def weights_in_time(nodes: Sequence[float], end: float) -> list[float]:
    """The integrals of the polynomials in VP time, by Gauss' rule in log sigma.

    Sigmas so small that time does not tell them apart leave their weight to the newest.
    """
    at = [vp_time(node) for node in nodes]
    apart = next((k for k in range(1, len(at)) if at[k] - at[k - 1] < 1e-9), len(at))
    low, high = math.log(end), math.log(nodes[0])
    points, lengths = _gauss()
    sigmas = np.exp((high + low) / 2 + (high - low) / 2 * points)
    shares = lengths * sigmas * (low - high) / 2  # of d(sigma), downwards
    times = [vp_time(float(sigma)) - at[0] for sigma in sigmas]
    tables = [lagrange([t - at[0] for t in at[:apart]], j) for j in range(apart)]
    sums = [float(shares @ np.polynomial.polynomial.polyval(times, table)) for table in tables]
    return sums + [0.0] * (len(nodes) - apart)


@cache
def _gauss() -> tuple[Any, Any]:
    """The points of Gauss' rule in [-1, 1] and their weights."""
    return np.polynomial.legendre.leggauss(64)


def vp_time(sigma: float) -> float:
    """t of a VP process with sigma² + 1 = exp(slope t² / 2 + start t), which has _RANGE at _START and 1."""
    low, high = (math.log1p(end**2) for end in _RANGE)
    slope = 2 * (low / _START - high) / (_START - 1)
    start = high - slope / 2
    return (math.sqrt(start**2 + 2 * slope * math.log1p(sigma**2)) - start) / slope
