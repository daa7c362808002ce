"""DPM-Solver++ (Lu et al. 2022b): exponential integrators in t = -log(sigma), for the data prediction x0."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.rounding import midpoint
from ldm.diffusion.samplers.integrals import lagrange, moment
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, ancestral, toward, walk, walk_renewing


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M), algorithm 2: x0 extrapolated to the middle of the step from the last two; the first step is Euler's."""
    past: deque[Step] = deque(maxlen=1)

    def advance(s: Step) -> Tensor:
        return toward(_extrapolated(past, s), s.x, s.sigma_next / s.sigma)

    return walk(denoise, x, sigmas, advance)


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """DPM-Solver++ for the SDE, second order by an evaluation at the midpoint, eta 1.

    It asks for noise on two intervals with a common start, sigma to the midpoint and sigma to sigma_next: `noise` must
    answer with increments of one Brownian path.
    """

    def advance(s: Step) -> Tensor:
        middle = midpoint(s.sigma, s.sigma_next, s.x.dtype)
        half = _stochastic(s, s.x0, middle, noise)
        return _stochastic(s, denoise(half, middle), s.sigma_next, noise)

    return walk(denoise, x, sigmas, advance)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """The SDE form of 2M, midpoint rule, eta 1: its first-order part shrinks by (sigma_next / sigma)², noise makes up the rest."""
    past: deque[Step] = deque(maxlen=1)

    def advance(s: Step) -> Tensor:
        ratio = s.sigma_next / s.sigma
        fresh = noise(s.i, s.sigma, s.sigma_next) * (s.sigma_next * math.sqrt(1 - ratio**2))
        return toward(_extrapolated(past, s), s.x, ratio**2) + fresh

    return walk(denoise, x, sigmas, advance)


def dpmpp_2m_sde_heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """The SDE form of 2M with the integral of the line through the last two x0 in place of its midpoint (k-diffusion's "heun")."""
    return _multistep_sde(denoise, x, sigmas, noise, order=2)


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """The same with a parabola through the last three x0 (k-diffusion, 2023), whose square counts half: see `_multistep_sde`."""
    return _multistep_sde(denoise, x, sigmas, noise, order=3)


def dpmpp_2s_a(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """DPM-Solver++(2S), algorithm 1 with its point at the middle, down below the next sigma, then fresh noise up to it."""

    def onward(s: Step, down: float) -> Tensor:
        middle = midpoint(s.sigma, down, s.x.dtype) if down else 0.0
        x0 = denoise(toward(s.x0, s.x, middle / s.sigma), middle) if middle else s.x0
        return toward(x0, s.x, down / s.sigma)

    return walk_renewing(denoise, x, sigmas, noise, onward)


def _multistep_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn, order: int) -> Iterator[Step]:
    """x0 as the polynomial through its last `order` values, integrated against the decay exp(-2 t) of the SDE at eta 1.

    k-diffusion takes the coefficient of the square, half the second derivative, for the derivative: the term that would make order 3 is
    half of what it should be there, and in every engine.
    """
    past: deque[Step] = deque(maxlen=order)  # newest first

    def advance(s: Step) -> Tensor:
        past.appendleft(s)
        h = math.log(s.sigma / s.sigma_next)
        at = [math.log(s.sigma / old.sigma) / h for old in past]  # in u, from 0 to 1 over the step
        moments = [moment(p, 2 * h) / max(1, p) for p in range(len(at))]
        ratio = s.sigma_next / s.sigma
        out = toward(s.x0, s.x, ratio**2)
        for j, old in list(enumerate(past))[1:]:
            out = out + (old.x0 - s.x0) * sum(a * b for a, b in zip(lagrange(at, j), moments, strict=True))
        return out + noise(s.i, s.sigma, s.sigma_next) * (s.sigma_next * math.sqrt(1 - ratio**2))

    return walk(denoise, x, sigmas, advance)


def _stochastic(s: Step, x0: Tensor, end: float, noise: NoiseFn) -> Tensor:
    """From `s` to sigma `end` with x0 held constant: down below it, then noise up to it."""
    down, up = ancestral(s.sigma, end)
    return toward(x0, s.x, down / s.sigma) + noise(s.i, s.sigma, end) * up


def _extrapolated(past: deque[Step], s: Step) -> Tensor:
    """x0 at the middle of the step, in log sigma, on the line through the last two; puts `s` into `past`."""
    last = past.pop() if past else None
    past.append(s)
    if last is None:
        return s.x0
    lengths = math.log(s.sigma / s.sigma_next) / math.log(last.sigma / last.sigma_next)
    return s.x0 + (s.x0 - last.x0) * (0.5 * lengths)
