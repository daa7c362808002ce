"""SEEDS (Gonzalez et al. 2023, arXiv 2305.14267): exponential integrators for the reverse SDE in t = -log(sigma), for x0 as predicted.

Each stage goes from the start of the step to a point inside it and adds that point's share of one noise path, which the following
stages go on with: what is added by sigma a shrinks to sigma b by (b / a)², and fresh noise of std b sqrt(1 - (b / a)²) makes up for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.rounding import between
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk


def seeds_2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """SEEDS-2 with its point half way. It asks for noise twice a step; `noise` is told the number of the draw."""

    def advance(s: Step) -> Tensor:
        middle = between(s.sigma, s.sigma_next, 1 / 2, s.x.dtype)
        first = _fresh(noise, 2 * s.i, s.sigma, middle)
        x0 = denoise(_shrunk(s, middle) + first, middle)
        both = _onward(first, noise, 2 * s.i + 1, middle, s.sigma_next)
        return toward(x0, s.x, (s.sigma_next / s.sigma) ** 2) + both

    return walk(denoise, x, sigmas, advance)


def seeds_3(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """SEEDS-3 with its points at one and two thirds. It asks for noise three times a step, as `seeds_2` does."""

    def advance(s: Step) -> Tensor:
        one, two = (between(s.sigma, s.sigma_next, share, s.x.dtype) for share in (1 / 3, 2 / 3))
        path = _fresh(noise, 3 * s.i, s.sigma, one)
        x0 = denoise(_shrunk(s, one) + path, one)
        path = _onward(path, noise, 3 * s.i + 1, one, two)
        x0 = denoise(_shrunk(s, two) + (x0 - s.x0) * (2 * _rise(s.sigma, two)) + path, two)
        path = _onward(path, noise, 3 * s.i + 2, two, s.sigma_next)
        return _shrunk(s, s.sigma_next) + (x0 - s.x0) * (1.5 * _rise(s.sigma, s.sigma_next)) + path

    return walk(denoise, x, sigmas, advance)


def _shrunk(s: Step, end: float) -> Tensor:
    """The mean at sigma `end` where x0 stays as it is."""
    return toward(s.x0, s.x, (end / s.sigma) ** 2)


def _rise(sigma: float, end: float) -> float:
    """-h phi_2(-h) with h = 2 log(sigma / end): the weight of x0's rise over the step, if it rises evenly in t."""
    h = 2 * math.log(sigma / end)
    return (h + math.expm1(-h)) / h if h else 0.0


def _fresh(noise: NoiseFn, draw: int, sigma: float, end: float) -> Tensor:
    end = min(end, sigma)  # points of a step that is a few last bits long can round past each other
    return noise(draw, sigma, end) * (end * math.sqrt(1 - (end / sigma) ** 2))


def _onward(path: Tensor, noise: NoiseFn, draw: int, sigma: float, end: float) -> Tensor:
    return path * (end / sigma) ** 2 + _fresh(noise, draw, sigma, end)
